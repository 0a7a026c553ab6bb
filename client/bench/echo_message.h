// The messages of an echo.
#ifndef SANTA_CLIENT_BENCH_ECHO_MESSAGE_H_
#define SANTA_CLIENT_BENCH_ECHO_MESSAGE_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>

namespace santa::bench {

grpc::ByteBuffer ZeroBytes(size_t count);

// As the stubs that protoc generates do it.
grpc::ByteBuffer EncodeMessage(const google::protobuf::MessageLite& message);
bool DecodeMessage(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message);

// Parses an AttendRequest and makes the AttendResponse that a server would give, with each item's q for its o. False:
// the bytes are no request.
bool AnswerByProtobuf(const grpc::ByteBuffer& request, grpc::ByteBuffer* answer);

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_ECHO_MESSAGE_H_
