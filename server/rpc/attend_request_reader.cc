#include "server/rpc/attend_request_reader.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/slice_cursor.h"

namespace santa {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kArenaBlock = 16 << 10;

enum WireType : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

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

google::protobuf::ArenaOptions OptionsFor(char* block) {
  google::protobuf::ArenaOptions options;
  options.initial_block = block;
  options.initial_block_size = kArenaBlock;
  return options;
}

}  // namespace

// Takes a message apart: the tensors' data to one place, all else, as it came, to another; their few other fields it
// reads itself. Its functions return false for what is malformed and what is unusual; protobuf tells them apart.
class AttendRequestReader::Parts {
 public:
  Parts(std::span<const grpc::Slice> slices, int32_t max_items, bool leave_queries, std::span<char> data,
        std::string* fields, std::vector<ItemTensors>* tensors)
      : cursor_(slices),
        max_items_(max_items),
        leave_queries_(leave_queries),
        data_(data),
        fields_(*fields),
        tensors_(*tensors) {}

  bool ReadRequest() {
    while (cursor_.left() > 0) {
      const size_t begin = cursor_.left();
      Tag tag;
      if (!ReadTag(0, &tag)) return false;
      if (tag.field != v1::AttendRequest::kItemsFieldNumber) {
        if (!CopyField(tag, 0)) return false;
        continue;
      }
      size_t end = 0;
      if (tag.type != kBytes || !ReadLength(0, &end)) return false;
      stride_ = begin - end;
      if (++items_ > max_items_) {
        cursor_.Skip(cursor_.left() - end);
      } else if (!ReadItem(tag, end)) {
        return false;
      }
    }
    return true;
  }

  int64_t items() const { return items_; }

 private:
  struct Tag {
    uint32_t whole = 0;
    uint32_t field = 0;
    uint8_t type = 0;
  };

  // `end`, here and below: how many bytes are left where the enclosing message ends.
  bool ReadTag(size_t end, Tag* tag) {
    uint64_t value = 0;
    if (!cursor_.ReadVarint(&value) || cursor_.left() < end || value > std::numeric_limits<uint32_t>::max()) {
      return false;
    }
    *tag = {.whole = static_cast<uint32_t>(value),
            .field = static_cast<uint32_t>(value >> 3),
            .type = static_cast<uint8_t>(value & 7)};
    return tag->field != 0;
  }

  // Of something that lies within the message; *inner_end is where it ends.
  bool ReadLength(size_t end, size_t* inner_end) {
    uint64_t length = 0;
    if (!cursor_.ReadVarint(&length) || cursor_.left() < end || length > cursor_.left() - end) return false;
    *inner_end = cursor_.left() - static_cast<size_t>(length);
    return true;
  }

  bool ReadItem(const Tag& tag, size_t end) {
    tensors_.emplace_back();
    ItemTensors& tensors = tensors_.back();
    const size_t begin = BeginMessage(tag);
    while (cursor_.left() > end) {
      Tag inner;
      if (!ReadTag(end, &inner)) return false;
      TensorFields* tensor = nullptr;
      if (inner.type == kBytes) {
        if (inner.field == v1::AttendItem::kQFieldNumber) tensor = &tensors.q;
        if (inner.field == v1::AttendItem::kKFieldNumber) tensor = &tensors.k;
        if (inner.field == v1::AttendItem::kVFieldNumber) tensor = &tensors.v;
      }
      if (tensor == nullptr) {
        if (!CopyField(inner, end)) return false;
        continue;
      }
      size_t tensor_end = 0;
      const bool leave = leave_queries_ && tensor == &tensors.q;
      if (!ReadLength(end, &tensor_end) || !ReadTensor(tensor_end, leave, tensor)) return false;
      tensors.q_in_place |= leave;
    }
    EndMessage(begin);
    return cursor_.left() == end;
  }

  // As protobuf merges a field that comes twice, the last data counts, and all extents do.
  bool ReadTensor(size_t end, bool leave, TensorFields* tensor) {
    tensor->present = true;
    while (cursor_.left() > end) {
      Tag tag;
      uint64_t number = 0;
      size_t field_end = 0;
      if (!ReadTag(end, &tag)) return false;
      if (tag.field == v1::Tensor::kDataFieldNumber && tag.type == kBytes) {
        if (!ReadLength(end, &field_end) || !ReadData(cursor_.left() - field_end, leave, &tensor->data)) return false;
      } else if (tag.field == v1::Tensor::kShapeFieldNumber && tag.type == kBytes) {
        if (!ReadLength(end, &field_end)) return false;
        while (cursor_.left() > field_end) {
          if (!ReadExtent(field_end, tensor)) return false;
        }
      } else if (tag.field == v1::Tensor::kShapeFieldNumber && tag.type == kVarint) {
        if (!ReadExtent(end, tensor)) return false;
      } else if (tag.field == v1::Tensor::kDtypeFieldNumber && tag.type == kVarint) {
        if (!cursor_.ReadVarint(&number) || cursor_.left() < end) return false;
        tensor->dtype = static_cast<int>(number);
      } else {
        return false;
      }
    }
    return cursor_.left() == end;
  }

  bool ReadExtent(size_t end, TensorFields* tensor) {
    uint64_t extent = 0;
    if (tensor->num_extents == TensorFields::kMostExtents || !cursor_.ReadVarint(&extent) || cursor_.left() < end) {
      return false;
    }
    tensor->extents[tensor->num_extents++] = static_cast<int64_t>(extent);
    return true;
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

  bool CopyField(const Tag& tag, size_t end) {
    AppendVarint(tag.whole);
    uint64_t value = 0;
    size_t field_end = 0;
    switch (tag.type) {
      case kVarint:
        if (!cursor_.ReadVarint(&value) || cursor_.left() < end) return false;
        AppendVarint(value);
        return true;
      case kBytes:
        if (!ReadLength(end, &field_end)) return false;
        AppendVarint(cursor_.left() - field_end);
        return CopyBytes(cursor_.left() - field_end, end);
      case kFixed64:
        return CopyBytes(8, end);
      case kFixed32:
        return CopyBytes(4, end);
      default:
        return false;
    }
  }

  bool CopyBytes(size_t count, size_t end) {
    if (cursor_.left() - end < count) return false;
    const size_t at = fields_.size();
    fields_.resize(at + count);
    cursor_.Copy(count, fields_.data() + at, ahead());
    return true;
  }

  // Where queries are passed over, what is read lies in pieces: but items are usually alike, so that where this one is
  // read, the next one will be.
  size_t ahead() const { return leave_queries_ ? stride_ : kPrefetchAhead; }

  void AppendVarint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) fields_ += static_cast<char>(value | 0x80);
    fields_ += static_cast<char>(value);
  }

  // A message within the message, whose length is known at its end only: five bytes hold any.
  size_t BeginMessage(const Tag& tag) {
    AppendVarint(tag.whole);
    fields_.append(kLengthBytes, 0);
    return fields_.size();
  }
  void EndMessage(size_t begin) {
    size_t length = fields_.size() - begin;
    for (size_t i = begin - kLengthBytes; i < begin; ++i, length >>= 7) {
      fields_[i] = static_cast<char>((length & 0x7f) | (i + 1 < begin ? 0x80 : 0));
    }
  }

  static constexpr size_t kLengthBytes = 5;

  SliceCursor cursor_;
  const int32_t max_items_;
  const bool leave_queries_;
  std::span<char> data_;  // free; aligned
  std::string& fields_;
  std::vector<ItemTensors>& tensors_;
  int64_t items_ = 0;
  size_t stride_ = 0;  // from the item at hand to the next
};

AttendRequestReader::AttendRequestReader(TensorMemory::Map map)
    : data_(std::move(map)),
      arena_block_(std::make_unique<char[]>(kArenaBlock)),
      arena_(OptionsFor(arena_block_.get())) {}

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
  fields_.clear();
  tensors_.clear();
  size_t length = 0;
  for (const grpc::Slice& part : parts) length += part.size();
  // Alignment takes room too, a little beside tensors of any size; where it takes more, protobuf reads the message.
  constexpr size_t kSpare = 4096;
  data_.MakeRoom(length + length / 4 + kSpare);
  Parts reader(parts, max_items, leave_queries, data_.bytes(), &fields_, &tensors_);
  if (!reader.ReadRequest()) return ReadByProtobuf(parts, max_items);
  for (ItemTensors& tensors : tensors_) tensors.mapped = data_.mapped();
  if (absl::Status status = CheckCount(reader.items(), max_items); !status.ok()) return status;
  arena_.Reset();
  request_ = google::protobuf::Arena::CreateMessage<v1::AttendRequest>(&arena_);
  return request_->ParseFromString(fields_) ? absl::OkStatus() : Unreadable();
}

absl::Status AttendRequestReader::ReadByProtobuf(std::span<const grpc::Slice> parts, int32_t max_items) {
  std::string message;  // of our own: it is read twice
  for (const grpc::Slice& part : parts) message.append(reinterpret_cast<const char*>(part.begin()), part.size());
  const absl::StatusOr<int64_t> items = CountItems(message);
  if (!items.ok()) return items.status();
  if (absl::Status status = CheckCount(*items, max_items); !status.ok()) return status;
  arena_.Reset();
  request_ = google::protobuf::Arena::CreateMessage<v1::AttendRequest>(&arena_);
  if (!request_->ParseFromString(message)) return Unreadable();
  tensors_.clear();
  for (const v1::AttendItem& item : request_->items()) tensors_.push_back(TensorsOf(item));
  return absl::OkStatus();
}

}  // namespace santa
