#include "client/encode.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream.h>
#include <grpc/slice.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <utility>
#include <vector>

namespace santa::client_internal {
namespace {

using Message = std::shared_ptr<const google::protobuf::MessageLite>;

// Gathers slices: some that protobuf writes into, some that lie in the message.
class SliceOutput final : public google::protobuf::io::ZeroCopyOutputStream {
 public:
  explicit SliceOutput(Message message) : message_(std::move(message)) {}

  bool Next(void** data, int* size) override {
    slices_.emplace_back(kBlock);
    *data = const_cast<uint8_t*>(slices_.back().begin());
    *size = kBlock;
    count_ += kBlock;
    return true;
  }

  void BackUp(int count) override {
    count_ -= count;
    const grpc_slice last = slices_.back().c_slice();
    slices_.back() = grpc::Slice(grpc_slice_sub(last, 0, GRPC_SLICE_LENGTH(last) - static_cast<size_t>(count)),
                                 grpc::Slice::STEAL_REF);
    grpc_slice_unref(last);
  }

  int64_t ByteCount() const override { return count_; }

  bool AllowsAliasing() const override { return true; }
  bool WriteAliasedRaw(const void* data, int size) override {
    const auto release = [](void* message) { delete static_cast<Message*>(message); };
    slices_.emplace_back(grpc_slice_new_with_user_data(const_cast<void*>(data), static_cast<size_t>(size), release,
                                                       new Message(message_)),
                         grpc::Slice::STEAL_REF);
    count_ += size;
    return true;
  }

  grpc::ByteBuffer Take() const { return {slices_.data(), slices_.size()}; }

 private:
  static constexpr int kBlock = 512;  // an item's small fields; longer fields are referred to

  const Message message_;
  std::vector<grpc::Slice> slices_;
  int64_t count_ = 0;
};

}  // namespace

grpc::ByteBuffer EncodeByReference(const Message& message) {
  SliceOutput output(message);
  {
    google::protobuf::io::CodedOutputStream coded(&output);
    coded.EnableAliasing(true);
    message->SerializeToCodedStream(&coded);
  }
  return output.Take();
}

bool Decode(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message) {
  grpc::ByteBuffer copy(bytes);  // of references
  grpc::ProtoBufferReader reader(&copy);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

}  // namespace santa::client_internal
