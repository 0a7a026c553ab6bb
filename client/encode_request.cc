// An AttendRequest into shared memory, or the frame of one whose tensors others write there. Written for speed:
// protobuf's own way through its streams takes a third of what it takes to write the tensors, and this one hardly any
// time.
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message.h>
#include <google/protobuf/unknown_field_set.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "client/encode.h"
#include "client/wire.h"
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

bool IsKnown(const google::protobuf::Message& message) {
  return message.GetReflection()->GetUnknownFields(message).empty();
}

bool IsUsual(const v1::Tensor& tensor) { return tensor.shape_size() <= kMostExtents && IsKnown(tensor); }

// Where a request's bytes go: all of them.
class CopyingSink {
 public:
  explicit CopyingSink(std::span<char> room) : writer_(room) {}

  static size_t DataSize(const v1::Tensor& tensor) { return tensor.data().size(); }
  void BeginItem() {}
  bool Append(const void* data, size_t size) { return writer_.Append(data, size); }
  bool AppendData(int /*field*/, const v1::Tensor& tensor, size_t size) { return Append(tensor.data().data(), size); }
  size_t Finish() { return writer_.Finish(); }

 private:
  StreamingWriter writer_;
};

// Those around tensors' data, which others write: few, and between lines that are theirs.
class PlacingSink {
 public:
  PlacingSink(std::span<char> room, std::vector<TensorRooms>* rooms) : room_(room), rooms_(*rooms) {}

  static size_t DataSize(const v1::Tensor& tensor) { return DataBytes(tensor).value_or(0); }
  void BeginItem() { rooms_.emplace_back(); }
  bool Append(const void* data, size_t size) {
    const std::span<char> to = Take(size);
    if (to.size() < size) return false;
    std::copy_n(static_cast<const char*>(data), size, to.data());
    return true;
  }
  bool AppendData(int field, const v1::Tensor& /*tensor*/, size_t size) {
    TensorRooms& item = rooms_.back();
    std::span<char>& room = field == v1::AttendItem::kQFieldNumber   ? item.q
                            : field == v1::AttendItem::kKFieldNumber ? item.k
                                                                     : item.v;
    room = Take(size);
    return room.size() == size;
  }
  size_t Finish() const { return written_; }

 private:
  // Empty where there is less.
  std::span<char> Take(size_t size) {
    if (size > room_.size() - written_) return {};
    written_ += size;
    return room_.subspan(written_ - size, size);
  }

  const std::span<char> room_;
  std::vector<TensorRooms>& rooms_;
  size_t written_ = 0;
};

// Its fields go by way of a block, its tensors' data from where it lies, if it does.
template <class Sink>
class RequestWriter {
 public:
  explicit RequestWriter(Sink sink) : sink_(std::move(sink)) {}

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
    const size_t written = sink_.Finish();
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
    sink_.BeginItem();
    const Size q = SizeOfTensor(item.q()), k = SizeOfTensor(item.k()), v = SizeOfTensor(item.v());
    PutLength(v1::AttendRequest::kItemsFieldNumber,
              (item.has_handle() ? FieldSize(handle) : 0) + NumberSize(item.position()) +
                  (item.has_q() ? FieldSize(q.tensor) : 0) + (item.has_k() ? FieldSize(k.tensor) : 0) +
                  (item.has_v() ? FieldSize(v.tensor) : 0) + (item.has_options() ? FieldSize(options) : 0));
    if (item.has_handle()) PutMessage(v1::AttendItem::kHandleFieldNumber, handle, item.handle());
    PutNumber(v1::AttendItem::kPositionFieldNumber, item.position());
    if (item.has_q()) PutTensor(v1::AttendItem::kQFieldNumber, q, item.q());
    if (item.has_k()) PutTensor(v1::AttendItem::kKFieldNumber, k, item.k());
    if (item.has_v()) PutTensor(v1::AttendItem::kVFieldNumber, v, item.v());
    if (item.has_options()) PutMessage(v1::AttendItem::kOptionsFieldNumber, options, item.options());
    Flush();
    return true;
  }

  struct Size {
    size_t data = 0;
    size_t tensor = 0;  // all of its fields
  };
  static Size SizeOfTensor(const v1::Tensor& tensor) {
    const size_t data = Sink::DataSize(tensor);
    return {data, NumberSize(tensor.dtype()) + (tensor.shape().empty() ? 0 : FieldSize(ShapeSize(tensor))) +
                      (data == 0 ? 0 : FieldSize(data))};
  }

  void PutTensor(int field, const Size& size, const v1::Tensor& tensor) {
    PutLength(field, size.tensor);
    PutNumber(v1::Tensor::kDtypeFieldNumber, tensor.dtype());
    if (!tensor.shape().empty()) {
      PutLength(v1::Tensor::kShapeFieldNumber, ShapeSize(tensor));
      for (const int64_t extent : tensor.shape()) PutVarint(static_cast<uint64_t>(extent));
    }
    if (size.data == 0) return;
    PutLength(v1::Tensor::kDataFieldNumber, size.data);
    Flush();
    fits_ = fits_ && sink_.AppendData(field, tensor, size.data);
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
    fits_ = fits_ && sink_.Append(block_.data(), static_cast<size_t>(end_ - block_.data()));
    end_ = block_.data();
  }

  Sink sink_;
  // What comes between two tensors' data: an item's options, the next one's handle, and numbers.
  std::array<uint8_t, 2 * kMostOptions + 512> block_;
  uint8_t* end_ = block_.data();
  bool fits_ = true;
};

}  // namespace

size_t EncodeInto(const v1::AttendRequest& request, std::span<char> room) {
  RequestWriter<CopyingSink> writer(CopyingSink{room});
  const bool usual = writer.Write(request);
  const size_t written = writer.Finish();
  if (usual) return written;
  const size_t bytes = request.ByteSizeLong();
  return bytes <= room.size() && request.SerializeToArray(room.data(), static_cast<int>(room.size())) ? bytes : 0;
}

size_t PlaceInto(const v1::AttendRequest& request, std::span<char> room, std::vector<TensorRooms>* rooms) {
  rooms->clear();
  RequestWriter<PlacingSink> writer(PlacingSink{room, rooms});
  return writer.Write(request) ? writer.Finish() : 0;
}

}  // namespace santa::client_internal
