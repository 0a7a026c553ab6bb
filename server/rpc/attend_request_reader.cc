#include "server/rpc/attend_request_reader.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <limits>
#include <span>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/slice_cursor.h"

namespace santa {
namespace {

constexpr size_t kAlignment = 64;

enum WireType : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

constexpr uint32_t TagOf(int field, WireType type) { return static_cast<uint32_t>(field) << 3 | type; }

absl::Status Unreadable() { return absl::InvalidArgumentError("the message is not a request of this method"); }

absl::Status CheckCount(int64_t items, int32_t max_items) {
  if (items >= 1 && items <= max_items) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("items is ", items, " long; allowed is [1, ", max_items, "]"));
}

// How many items a request has, without making them: an empty item takes two bytes on the wire and a hundred in memory.
absl::StatusOr<int64_t> CountItems(const std::string& message) {
  using google::protobuf::internal::WireFormatLite;
  google::protobuf::io::CodedInputStream input(reinterpret_cast<const uint8_t*>(message.data()),
                                               static_cast<int>(message.size()));
  int64_t items = 0;
  while (const uint32_t tag = input.ReadTag()) {
    if (WireFormatLite::GetTagFieldNumber(tag) == v1::AttendRequest::kItemsFieldNumber) ++items;
    if (!WireFormatLite::SkipField(&input, tag)) return Unreadable();
  }
  if (!input.ConsumedEntireMessage()) return Unreadable();
  return items;
}

}  // namespace

// Takes a message apart: the tensors' data to one place, all else into the reader's fields. Its functions return false
// for what is malformed and what is unusual; protobuf tells them apart.
class AttendRequestReader::Parts {
 public:
  Parts(std::span<const grpc::Slice> slices, int32_t max_items, bool leave_queries, AttendRequestReader* reader)
      : cursor_(slices),
        max_items_(max_items),
        leave_queries_(leave_queries),
        data_(reader->data_.bytes()),
        request_(*reader) {}

  bool ReadRequest() {
    while (cursor_.left() > 0) {
      const size_t begin = cursor_.left();
      uint32_t tag = 0;
      uint64_t number = 0;
      size_t end = 0;
      if (!ReadTag(0, &tag)) return false;
      switch (tag) {
        case TagOf(v1::AttendRequest::kRequestIdFieldNumber, kVarint):
          if (!ReadNumber(0, &request_.request_id_)) return false;
          break;
        case TagOf(v1::AttendRequest::kLayerFieldNumber, kVarint):
          if (!ReadNumber(0, &number)) return false;
          request_.layer_ = static_cast<uint32_t>(number);
          break;
        case TagOf(v1::AttendRequest::kItemsFieldNumber, kBytes):
          if (!ReadLength(0, &end)) return false;
          stride_ = begin - end;
          if (++items_ > max_items_) {
            cursor_.Skip(cursor_.left() - end);
          } else if (!ReadItem(end, &request_.items_.emplace_back())) {
            return false;
          }
          break;
        default:
          if (!SkipField(tag, 0)) return false;
      }
    }
    return true;
  }

  int64_t items() const { return items_; }

 private:
  // `end`, here and below: how many bytes are left where the enclosing message ends.
  bool ReadTag(size_t end, uint32_t* tag) {
    uint64_t value = 0;
    if (!ReadNumber(end, &value) || value > std::numeric_limits<uint32_t>::max()) return false;
    *tag = static_cast<uint32_t>(value);
    return *tag >> 3 != 0;
  }

  bool ReadNumber(size_t end, uint64_t* number) { return cursor_.ReadVarint(number) && cursor_.left() >= end; }

  // Numbers are cut to their field's width, as protobuf does it.
  template <typename Field>
  bool ReadNumberInto(size_t end, Field* field) {
    uint64_t number = 0;
    if (!ReadNumber(end, &number)) return false;
    *field = static_cast<Field>(number);
    return true;
  }

  bool ReadFloat(size_t end, float* field) {
    if (cursor_.left() - end < sizeof(*field)) return false;
    cursor_.Copy(sizeof(*field), reinterpret_cast<char*>(field), ahead());
    return true;
  }

  // Of something that lies within the message; *inner_end is where it ends.
  bool ReadLength(size_t end, size_t* inner_end) {
    uint64_t length = 0;
    if (!ReadNumber(end, &length) || length > cursor_.left() - end) return false;
    *inner_end = cursor_.left() - static_cast<size_t>(length);
    return true;
  }

  // A message that comes twice is merged, as protobuf does it: so what is there stays until a field of it comes.
  bool ReadItem(size_t end, ItemFields* item) {
    while (cursor_.left() > end) {
      uint32_t tag = 0;
      size_t inner_end = 0;
      if (!ReadTag(end, &tag)) return false;
      switch (tag) {
        case TagOf(v1::AttendItem::kHandleFieldNumber, kBytes):
          item->has_handle = true;
          if (!ReadLength(end, &inner_end) || !ReadHandle(inner_end, &item->handle)) return false;
          break;
        case TagOf(v1::AttendItem::kPositionFieldNumber, kVarint):
          if (!ReadNumberInto(end, &item->position)) return false;
          break;
        case TagOf(v1::AttendItem::kQFieldNumber, kBytes):
          item->tensors.q_in_place = leave_queries_;
          if (!ReadLength(end, &inner_end) || !ReadTensor(inner_end, leave_queries_, &item->tensors.q)) return false;
          break;
        case TagOf(v1::AttendItem::kKFieldNumber, kBytes):
          if (!ReadLength(end, &inner_end) || !ReadTensor(inner_end, false, &item->tensors.k)) return false;
          break;
        case TagOf(v1::AttendItem::kVFieldNumber, kBytes):
          if (!ReadLength(end, &inner_end) || !ReadTensor(inner_end, false, &item->tensors.v)) return false;
          break;
        case TagOf(v1::AttendItem::kOptionsFieldNumber, kBytes):
          if (!ReadLength(end, &inner_end) || !ReadOptions(inner_end, &item->options)) return false;
          break;
        default:
          if (!SkipField(tag, end)) return false;
      }
    }
    return cursor_.left() == end;
  }

  bool ReadHandle(size_t end, SequenceHandle* handle) {
    while (cursor_.left() > end) {
      uint32_t tag = 0;
      if (!ReadTag(end, &tag)) return false;
      switch (tag) {
        case TagOf(v1::SequenceHandle::kIdFieldNumber, kVarint):
          if (!ReadNumber(end, &handle->id)) return false;
          break;
        case TagOf(v1::SequenceHandle::kGenerationFieldNumber, kVarint):
          if (!ReadNumber(end, &handle->generation)) return false;
          break;
        default:
          if (!SkipField(tag, end)) return false;
      }
    }
    return cursor_.left() == end;
  }

  bool ReadOptions(size_t end, OptionFields* options) {
    while (cursor_.left() > end) {
      uint32_t tag = 0;
      if (!ReadTag(end, &tag) || !ReadOption(tag, end, options)) return false;
    }
    return cursor_.left() == end;
  }

  bool ReadOption(uint32_t tag, size_t end, OptionFields* options) {
    using Options = v1::AttentionOptions;
    switch (tag) {
      case TagOf(Options::kMethodFieldNumber, kVarint):
        return ReadNumberInto(end, &options->method);
      case TagOf(Options::kSampleCountFieldNumber, kVarint):
        return ReadNumberInto(end, &options->sample_count);
      case TagOf(Options::kSeedFieldNumber, kVarint):
        return ReadNumber(end, &options->seed);
      case TagOf(Options::kScaleFieldNumber, kFixed32):
        return ReadFloat(end, &options->scale);
      case TagOf(Options::kWindowFieldNumber, kVarint):
        return ReadNumberInto(end, &options->window);
      case TagOf(Options::kSoftCapFieldNumber, kFixed32):
        return ReadFloat(end, &options->soft_cap);
      case TagOf(Options::kSinkLogitsFieldNumber, kBytes):
        return ReadSinks(end, &options->sink_logits);
      case TagOf(Options::kSinkLogitsFieldNumber, kFixed32):  // one by one, which nobody writes
        return false;
      case TagOf(Options::kBudgetRoundingFieldNumber, kVarint):
        return ReadNumberInto(end, &options->budget_rounding);
      case TagOf(Options::kWantStatisticsFieldNumber, kVarint):
        return ReadNumberInto(end, &options->want_statistics);
      case TagOf(Options::kTargetRelativeErrorFieldNumber, kFixed32):
        return ReadFloat(end, &options->target_relative_error);
      case TagOf(Options::kScoreDrawsFieldNumber, kVarint):
        return ReadNumberInto(end, &options->score_draws);
      default:
        return SkipField(tag, end);
    }
  }

  // In one run; what comes in several protobuf joins.
  bool ReadSinks(size_t end, std::span<const float>* sinks) {
    size_t inner_end = 0;
    if (!sinks->empty() || !ReadLength(end, &inner_end)) return false;
    const size_t bytes = cursor_.left() - inner_end;
    std::string_view data;
    if (bytes % sizeof(float) != 0 || !ReadData(bytes, false, &data)) return false;
    *sinks = {reinterpret_cast<const float*>(data.data()), bytes / sizeof(float)};
    return true;
  }

  // As protobuf merges a field that comes twice, the last data counts, and all extents do.
  bool ReadTensor(size_t end, bool leave, TensorFields* tensor) {
    tensor->present = true;
    while (cursor_.left() > end) {
      uint32_t tag = 0;
      size_t field_end = 0;
      if (!ReadTag(end, &tag)) return false;
      switch (tag) {
        case TagOf(v1::Tensor::kDataFieldNumber, kBytes):
          if (!ReadLength(end, &field_end) || !ReadData(cursor_.left() - field_end, leave, &tensor->data)) return false;
          break;
        case TagOf(v1::Tensor::kShapeFieldNumber, kBytes):
          if (!ReadLength(end, &field_end)) return false;
          while (cursor_.left() > field_end) {
            if (!ReadExtent(field_end, tensor)) return false;
          }
          break;
        case TagOf(v1::Tensor::kShapeFieldNumber, kVarint):
          if (!ReadExtent(end, tensor)) return false;
          break;
        case TagOf(v1::Tensor::kDtypeFieldNumber, kVarint):
          if (!ReadNumberInto(end, &tensor->dtype)) return false;
          break;
        default:
          return false;
      }
    }
    return cursor_.left() == end;
  }

  bool ReadExtent(size_t end, TensorFields* tensor) {
    if (tensor->num_extents == TensorFields::kMostExtents) return false;
    return ReadNumberInto(end, &tensor->extents[tensor->num_extents++]);
  }

  bool ReadData(size_t length, bool leave, std::string_view* data) {
    if (leave) {
      const char* const bytes = cursor_.Borrow(length);
      *data = {bytes, length};
      return bytes != nullptr;
    }
    if (length > data_.size()) return false;
    cursor_.Copy(length, data_.data(), ahead());
    *data = {data_.data(), length};
    data_ = data_.subspan(std::min(data_.size(), (length + kAlignment - 1) / kAlignment * kAlignment));
    return true;
  }

  // One that nobody here knows.
  bool SkipField(uint32_t tag, size_t end) {
    uint64_t number = 0;
    size_t field_end = 0;
    switch (tag & 7) {
      case kVarint:
        return ReadNumber(end, &number);
      case kBytes:
        if (!ReadLength(end, &field_end)) return false;
        cursor_.Skip(cursor_.left() - field_end);
        return true;
      case kFixed64:
        return SkipBytes(8, end);
      case kFixed32:
        return SkipBytes(4, end);
      default:
        return false;
    }
  }

  bool SkipBytes(size_t count, size_t end) {
    if (cursor_.left() - end < count) return false;
    cursor_.Skip(count);
    return true;
  }

  // Where queries are passed over, what is read lies in pieces: but items are usually alike, so that where this one is
  // read, the next one will be.
  size_t ahead() const { return leave_queries_ ? stride_ : kPrefetchAhead; }

  SliceCursor cursor_;
  const int32_t max_items_;
  const bool leave_queries_;
  std::span<char> data_;  // free; aligned
  AttendRequestReader& request_;
  int64_t items_ = 0;
  size_t stride_ = 0;  // from the item at hand to the next
};

absl::Status AttendRequestReader::Read(const grpc::ByteBuffer& bytes, int32_t max_items) {
  slices_.clear();
  if (!bytes.Dump(&slices_).ok()) return Unreadable();
  absl::Status status = ReadParts(slices_, max_items, false);
  slices_.clear();  // gRPC's memory
  return status;
}

absl::Status AttendRequestReader::Read(std::span<const char> bytes, int32_t max_items, bool leave_queries) {
  const grpc::Slice whole(bytes.data(), bytes.size(), grpc::Slice::STATIC_SLICE);
  return ReadParts({&whole, 1}, max_items, leave_queries);
}

absl::Status AttendRequestReader::ReadParts(std::span<const grpc::Slice> parts, int32_t max_items, bool leave_queries) {
  request_id_ = 0;
  layer_ = 0;
  items_.clear();
  message_.reset();
  size_t length = 0;
  for (const grpc::Slice& part : parts) length += part.size();
  // Alignment takes room too, a little beside tensors of any size; where it takes more, protobuf reads the message.
  constexpr size_t kSpare = 4096;
  data_.MakeRoom(length + length / 4 + kSpare);
  Parts reader(parts, max_items, leave_queries, this);
  if (!reader.ReadRequest()) return ReadByProtobuf(parts, max_items);
  for (ItemFields& item : items_) item.tensors.mapped = data_.mapped();
  return CheckCount(reader.items(), max_items);
}

absl::Status AttendRequestReader::ReadByProtobuf(std::span<const grpc::Slice> parts, int32_t max_items) {
  std::string message;  // of our own: it is read twice
  for (const grpc::Slice& part : parts) message.append(reinterpret_cast<const char*>(part.begin()), part.size());
  const absl::StatusOr<int64_t> items = CountItems(message);
  if (!items.ok()) return items.status();
  if (absl::Status status = CheckCount(*items, max_items); !status.ok()) return status;
  message_ = std::make_unique<v1::AttendRequest>();
  if (!message_->ParseFromString(message)) return Unreadable();
  request_id_ = message_->request_id();
  layer_ = message_->layer();
  items_.clear();
  for (const v1::AttendItem& item : message_->items()) items_.push_back(FieldsOf(item));
  return absl::OkStatus();
}

}  // namespace santa
