// Messages to bytes without copying their tensors.
#ifndef SANTA_CLIENT_ENCODE_H_
#define SANTA_CLIENT_ENCODE_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>

namespace santa::client_internal {

// As protobuf encodes it. Long `bytes` fields are not copied: the buffer refers to the message, and keeps it alive.
grpc::ByteBuffer EncodeByReference(const std::shared_ptr<const google::protobuf::MessageLite>& message);

// False: the bytes are no such message.
bool Decode(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message);

}  // namespace santa::client_internal

#endif  // SANTA_CLIENT_ENCODE_H_
