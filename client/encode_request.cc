// An AttendRequest into shared memory. Written for speed: protobuf's own way through its streams takes a third of what
// it takes to write the tensors, and this one hardly any time.
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message.h>
#include <google/protobuf/unknown_field_set.h>

#include <array>
#include <cstdint>
#include <string>

#include "client/encode.h"
#include "ring/streaming_writer.h"

namespace santa::client_internal {
namespace {

using google::protobuf::io::CodedOutputStream;

// Longer than any caller's. What is longer still, and fields that this build does not know, protobuf writes.
constexpr int kMostExtents = 8;
constexpr size_t kMostOptions = 1024;

enum WireType : uint8_t { kVarint = 0, kBytes = 2 };

size_t VarintSize(uint64_t value) { return CodedOutputStream::VarintSize64(value); }

// Of a field with so many bytes in it; every field here has a tag of one byte.
size_t FieldSize(size_t bytes) { return 1 + VarintSize(bytes) + bytes; }

// Of an enum or an int64 as protobuf has them; nothing where it is 0.
size_t NumberSize(int64_t value) { return value == 0 ? 0 : 1 + VarintSize(static_cast<uint64_t>(value)); }

size_t ShapeSize(const v1::Tensor& tensor) {
  size_t bytes = 0;
  for (const int64_t extent : tensor.shape()) bytes += VarintSize(static_cast<uint64_t>(extent));
  return bytes;
}

size_t TensorSize(const v1::Tensor& tensor) {
  return NumberSize(tensor.dtype()) + (tensor.shape().empty() ? 0 : FieldSize(ShapeSize(tensor))) +
         (tensor.data().empty() ? 0 : FieldSize(tensor.data().size()));
}

bool IsKnown(const google::protobuf::Message& message) {
  return message.GetReflection()->GetUnknownFields(message).empty();
}

bool IsUsual(const v1::Tensor& tensor) { return tensor.shape_size() <= kMostExtents && IsKnown(tensor); }

// Its fields go by way of a block, its tensors' data from where it lies.
class RequestWriter {
 public:
  explicit RequestWriter(std::span<char> room) : writer_(room) {}

  // False where protobuf has to write it.
  bool Write(const v1::AttendRequest& request) {
    if (!IsKnown(request)) return false;
    PutNumber(v1::AttendRequest::kRequestIdFieldNumber, static_cast<int64_t>(request.request_id()));
    PutNumber(v1::AttendRequest::kLayerFieldNumber, request.layer());
    for (const v1::AttendItem& item : request.items()) {
      if (!WriteItem(item)) return false;
    }
    Flush();
    return true;
  }

  // 0: there was too little room.
  size_t Finish() {
    const size_t written = writer_.Finish();
    return fits_ ? written : 0;
  }

 private:
  bool WriteItem(const v1::AttendItem& item) {
    const size_t handle = item.has_handle() ? item.handle().ByteSizeLong() : 0;
    const size_t options = item.has_options() ? item.options().ByteSizeLong() : 0;
    if (!IsKnown(item) || handle > kMostOptions || options > kMostOptions || !IsUsual(item.q()) || !IsUsual(item.k()) ||
        !IsUsual(item.v())) {
      return false;
    }
    const size_t q = TensorSize(item.q()), k = TensorSize(item.k()), v = TensorSize(item.v());
    PutLength(v1::AttendRequest::kItemsFieldNumber,
              (item.has_handle() ? FieldSize(handle) : 0) + NumberSize(item.position()) +
                  (item.has_q() ? FieldSize(q) : 0) + (item.has_k() ? FieldSize(k) : 0) +
                  (item.has_v() ? FieldSize(v) : 0) + (item.has_options() ? FieldSize(options) : 0));
    if (item.has_handle()) PutMessage(v1::AttendItem::kHandleFieldNumber, handle, item.handle());
    PutNumber(v1::AttendItem::kPositionFieldNumber, item.position());
    if (item.has_q()) PutTensor(v1::AttendItem::kQFieldNumber, q, item.q());
    if (item.has_k()) PutTensor(v1::AttendItem::kKFieldNumber, k, item.k());
    if (item.has_v()) PutTensor(v1::AttendItem::kVFieldNumber, v, item.v());
    if (item.has_options()) PutMessage(v1::AttendItem::kOptionsFieldNumber, options, item.options());
    Flush();
    return true;
  }

  void PutTensor(int field, size_t bytes, const v1::Tensor& tensor) {
    PutLength(field, bytes);
    PutNumber(v1::Tensor::kDtypeFieldNumber, tensor.dtype());
    if (!tensor.shape().empty()) {
      PutLength(v1::Tensor::kShapeFieldNumber, ShapeSize(tensor));
      for (const int64_t extent : tensor.shape()) PutVarint(static_cast<uint64_t>(extent));
    }
    if (tensor.data().empty()) return;
    PutLength(v1::Tensor::kDataFieldNumber, tensor.data().size());
    Flush();
    Append(tensor.data().data(), tensor.data().size());
  }

  // Whose ByteSizeLong was called.
  void PutMessage(int field, size_t bytes, const google::protobuf::MessageLite& message) {
    PutLength(field, bytes);
    end_ = message.SerializeWithCachedSizesToArray(end_);
  }

  void PutNumber(int field, int64_t value) {
    if (value == 0) return;
    *end_++ = static_cast<uint8_t>(field << 3 | kVarint);
    PutVarint(static_cast<uint64_t>(value));
  }
  void PutLength(int field, size_t bytes) {
    *end_++ = static_cast<uint8_t>(field << 3 | kBytes);
    PutVarint(bytes);
  }
  void PutVarint(uint64_t value) { end_ = CodedOutputStream::WriteVarint64ToArray(value, end_); }

  void Flush() {
    Append(block_.data(), static_cast<size_t>(end_ - block_.data()));
    end_ = block_.data();
  }
  void Append(const void* data, size_t size) { fits_ = fits_ && writer_.Append(data, size); }

  StreamingWriter writer_;
  // What comes between two tensors' data: an item's options, the next one's handle, and numbers.
  std::array<uint8_t, 2 * kMostOptions + 512> block_;
  uint8_t* end_ = block_.data();
  bool fits_ = true;
};

}  // namespace

size_t EncodeInto(const v1::AttendRequest& request, std::span<char> room) {
  RequestWriter writer(room);
  const bool usual = writer.Write(request);
  const size_t written = writer.Finish();
  if (usual) return written;
  const size_t bytes = request.ByteSizeLong();
  return bytes <= room.size() && request.SerializeToArray(room.data(), static_cast<int>(room.size())) ? bytes : 0;
}

}  // namespace santa::client_internal
