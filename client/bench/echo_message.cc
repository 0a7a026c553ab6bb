#include "client/bench/echo_message.h"

#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include <cstring>

#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::bench {

namespace v1 = ::santa::attention::v1;

grpc::ByteBuffer ZeroBytes(size_t count) {
  grpc::Slice slice(count);
  std::memset(const_cast<uint8_t*>(slice.begin()), 0, count);
  return {&slice, 1};
}

grpc::ByteBuffer EncodeMessage(const google::protobuf::MessageLite& message) {
  grpc::ByteBuffer bytes;
  constexpr int kBlock = 1 << 20;
  grpc::ProtoBufferWriter writer(&bytes, kBlock, static_cast<int>(message.ByteSizeLong()));
  message.SerializeToZeroCopyStream(&writer);
  return bytes;
}

bool DecodeMessage(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message) {
  grpc::ByteBuffer copy(bytes);  // of references
  grpc::ProtoBufferReader reader(&copy);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

bool AnswerByProtobuf(const grpc::ByteBuffer& request, grpc::ByteBuffer* answer) {
  v1::AttendRequest message;
  if (!DecodeMessage(request, &message)) return false;
  v1::AttendResponse response;
  response.set_request_id(message.request_id());
  for (const v1::AttendItem& item : message.items()) {
    v1::AttendResult& result = *response.add_results();
    result.mutable_status();
    *result.mutable_o() = item.q();
    if (item.q().shape_size() == 3) result.mutable_lse()->Resize(static_cast<int>(item.q().shape(1)), 0);
  }
  *answer = EncodeMessage(response);
  return true;
}

}  // namespace santa::bench
