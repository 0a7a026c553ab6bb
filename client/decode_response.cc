// An AttendResponse out of shared memory. What another core or a device has just written takes its time to come: it is
// asked for ahead of the copy, or left where it is, as `padding` is, which is of no meaning.
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/encode.h"
#include "ring/prefetching_copy.h"

namespace santa::client_internal {
namespace {

enum WireType : uint8_t { kVarint = 0, kBytes = 2 };

constexpr uint64_t Tag(int field, WireType type) { return static_cast<uint64_t>(field) << 3 | type; }

// Reads a message's fields, each byte once: whoever shares the memory may write it meanwhile.
class FieldReader {
 public:
  explicit FieldReader(std::span<const char> bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

  bool done() const { return at_ == end_; }

  // False where the bytes end first, or the number is longer than ten.
  bool ReadVarint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (at_ == end_) return false;
      const auto byte = static_cast<uint8_t>(*static_cast<const volatile char*>(at_++));
      *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  // A field's bytes.
  bool ReadBytes(std::span<const char>* bytes) {
    uint64_t length = 0;
    if (!ReadVarint(&length) || length > static_cast<uint64_t>(end_ - at_)) return false;
    *bytes = {at_, static_cast<size_t>(length)};
    at_ += length;
    return true;
  }

 private:
  const char* at_;
  const char* const end_;
};

void Copy(std::span<const char> from, std::string* to) {
  to->resize(from.size());
  PrefetchingCopy(to->data(), from.data(), from.size(), kPrefetchAhead);
}

// Here and below, false: protobuf has to read it, as it is malformed or not as the server writes it. Outputs are copied
// where there is no view for them.
bool ReadTensor(FieldReader fields, v1::Tensor* tensor, OutputView* view) {
  std::span<const char> bytes;
  for (uint64_t tag = 0, number = 0; !fields.done();) {
    if (!fields.ReadVarint(&tag)) return false;
    if (tag == Tag(v1::Tensor::kDtypeFieldNumber, kVarint)) {
      if (!fields.ReadVarint(&number)) return false;
      tensor->set_dtype(static_cast<v1::DataType>(number));
    } else if (tag == Tag(v1::Tensor::kShapeFieldNumber, kBytes)) {
      if (!fields.ReadBytes(&bytes)) return false;
      for (FieldReader extents(bytes); !extents.done(); tensor->add_shape(static_cast<int64_t>(number))) {
        if (!extents.ReadVarint(&number)) return false;
      }
    } else if (tag == Tag(v1::Tensor::kDataFieldNumber, kBytes)) {
      if (!fields.ReadBytes(&bytes)) return false;
      if (view == nullptr) {
        Copy(bytes, tensor->mutable_data());
      } else {
        view->o = {bytes.data(), bytes.size()};
      }
    } else {
      return false;
    }
  }
  return true;
}

bool ReadMessage(std::span<const char> bytes, google::protobuf::MessageLite* message) {
  return bytes.empty() || message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

void AddNumbers(std::span<const char> bytes, google::protobuf::RepeatedField<float>* numbers) {
  const int before = numbers->size();
  numbers->Resize(before + static_cast<int>(bytes.size() / sizeof(float)), 0);
  std::memcpy(numbers->mutable_data() + before, bytes.data(), bytes.size());
}

bool ReadLse(std::span<const char> bytes, v1::AttendResult* result, OutputView* view) {
  if (bytes.size() % sizeof(float) != 0) return false;
  if (view == nullptr) {
    AddNumbers(bytes, result->mutable_lse());
    return true;
  }
  if (!view->lse.empty()) return false;
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(float) == 0) {
    view->lse = {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
  } else {
    AddNumbers(bytes, result->mutable_lse());
    view->lse = {result->lse().data(), static_cast<size_t>(result->lse_size())};
  }
  return true;
}

// Messages that come twice would have to be merged.
bool ReadResult(FieldReader fields, v1::AttendResult* result, OutputView* view) {
  std::span<const char> bytes;
  for (uint64_t tag = 0; !fields.done();) {
    if (!fields.ReadVarint(&tag) || (tag & 7) != kBytes || !fields.ReadBytes(&bytes)) return false;
    switch (tag >> 3) {
      case v1::AttendResult::kStatusFieldNumber:
        if (result->has_status() || !ReadMessage(bytes, result->mutable_status())) return false;
        break;
      case v1::AttendResult::kOFieldNumber:
        if (result->has_o() || !ReadTensor(FieldReader(bytes), result->mutable_o(), view)) return false;
        break;
      case v1::AttendResult::kLseFieldNumber:
        if (!ReadLse(bytes, result, view)) return false;
        break;
      case v1::AttendResult::kStatisticsFieldNumber:
        if (result->has_statistics() || !ReadMessage(bytes, result->mutable_statistics())) return false;
        break;
      case v1::AttendResult::kPaddingFieldNumber:
        break;
      default:
        return false;
    }
  }
  return true;
}

bool ReadResponse(FieldReader fields, v1::AttendResponse* response, std::vector<OutputView>* views) {
  std::span<const char> bytes;
  for (uint64_t tag = 0, number = 0; !fields.done();) {
    if (!fields.ReadVarint(&tag)) return false;
    if (tag == Tag(v1::AttendResponse::kRequestIdFieldNumber, kVarint)) {
      if (!fields.ReadVarint(&number)) return false;
      response->set_request_id(number);
    } else if (tag == Tag(v1::AttendResponse::kResultsFieldNumber, kBytes)) {
      OutputView* const view = views == nullptr ? nullptr : &views->emplace_back();
      if (!fields.ReadBytes(&bytes) || !ReadResult(FieldReader(bytes), response->add_results(), view)) return false;
    } else {
      return false;
    }
  }
  return true;
}

bool Decode(std::span<const char> bytes, bool copies, std::optional<AttendAnswer>* answer) {
  v1::AttendResponse response;
  std::vector<OutputView> views;
  if (!ReadResponse(FieldReader(bytes), &response, copies ? nullptr : &views)) {
    views.clear();
    if (!response.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return false;
  }
  answer->emplace(std::move(response), std::move(views));
  return true;
}

}  // namespace

bool DecodeFrom(std::span<const char> bytes, std::optional<AttendAnswer>* answer) {
  return Decode(bytes, /*copies=*/true, answer);
}

bool DecodeInPlace(std::span<const char> bytes, std::optional<AttendAnswer>* answer) {
  return Decode(bytes, /*copies=*/false, answer);
}

}  // namespace santa::client_internal
