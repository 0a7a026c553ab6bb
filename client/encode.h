// Messages to bytes and back, their tensors copied once or not at all.
#ifndef SANTA_CLIENT_ENCODE_H_
#define SANTA_CLIENT_ENCODE_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "client/placed_step.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::client_internal {

namespace v1 = ::santa::attention::v1;

// As protobuf encodes it. Long `bytes` fields are not copied: the buffer refers to the message, and keeps it alive.
grpc::ByteBuffer EncodeByReference(const std::shared_ptr<const google::protobuf::MessageLite>& message);

// The same into `room`, which begins at a multiple of 64 bytes and is another process's to read. The bytes; 0 where
// there is less room than that.
size_t EncodeInto(const v1::AttendRequest& request, std::span<char> room);

// The same but for the tensors' data, which nobody has yet: their dtypes and shapes say how much it will be, and rooms,
// of each item, where it is to be written. 0 also where protobuf would have to write it (fields that are unknown here).
size_t PlaceInto(const v1::AttendRequest& request, std::span<char> room, std::vector<TensorRooms>* rooms);

// False: the bytes are no such message.
bool Decode(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message);

// The same of bytes that another process wrote and may go on writing; at most 2 GiB. Paddings are left out. Outputs are
// copied once, or left where they are.
bool DecodeFrom(std::span<const char> bytes, std::optional<AttendAnswer>* answer);
bool DecodeInPlace(std::span<const char> bytes, std::optional<AttendAnswer>* answer);

}  // namespace santa::client_internal

#endif  // SANTA_CLIENT_ENCODE_H_
