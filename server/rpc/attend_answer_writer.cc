#include "server/rpc/attend_answer_writer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "ring/streaming_writer.h"
#include "server/rpc/answer_fields.h"

namespace santa {
namespace {

using answer_fields::kVarint;
using answer_fields::PutLength;
using answer_fields::PutTag;
using answer_fields::PutTensorHead;
using answer_fields::PutVarint;
using answer_fields::VarintSize;

static_assert(std::endian::native == std::endian::little, "lse is sent as it lies in memory");

constexpr size_t kAlignment = 64;
constexpr size_t kHeadRoom = 64;   // of an item's fields before the data of o: at most 54 bytes
constexpr size_t kLengthRoom = 6;  // a tag and a length

size_t AlignUp(size_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void AttendAnswerWriter::Reset(uint64_t request_id, const KvLayout& layout) {
  if (given_away_) Release();
  request_id_ = request_id;
  layout_ = layout;
  items_.clear();
  room_ = {};
}

void AttendAnswerWriter::Release() {
  if (allocated_) grpc_slice_unref(slice_);
  allocated_ = given_away_ = false;
}

void AttendAnswerWriter::AddRefused(const absl::Status& status) { items_.push_back({.status = status}); }

void AttendAnswerWriter::AddAnswered(DType dtype, bool wants_statistics) {
  items_.push_back({.status = {}, .dtype = dtype, .wants_statistics = wants_statistics});
}

void AttendAnswerWriter::Allocate() {
  size_t size = 0;
  for (Item& item : items_) {
    if (!item.status.ok()) continue;
    item.o = AlignUp(size + kHeadRoom);
    size = item.o + o_bytes(item) + kLengthRoom + lse_bytes() + statistics_room(item);
  }
  if (size == 0) return;
  if (memory() < size + kAlignment) {
    Release();
    slice_ = grpc_slice_malloc(size + kAlignment);
    allocated_ = true;
  }
  const size_t misaligned = reinterpret_cast<uintptr_t>(base()) % kAlignment;
  if (misaligned != 0) {
    for (Item& item : items_) item.o += kAlignment - misaligned;
  }
  lse_.resize(items_.size() * layout_.num_query_heads);
}

// Behind o come lse and its length, whose sizes are known.
size_t AttendAnswerWriter::lse_at(const Item& item) const {
  return item.o + o_bytes(item) + 1 + (in_place() ? kLseLengthInPlace : VarintSize(lse_bytes()));
}

float* AttendAnswerWriter::lse(size_t index) {
  if (in_place()) return reinterpret_cast<float*>(base() + lse_at(items_[index]));
  return lse_.data() + index * layout_.num_query_heads;
}

void AttendAnswerWriter::SetStatistics(size_t index, const v1::AttendStatistics& statistics) {
  Item& item = items_[index];
  const size_t length = statistics.ByteSizeLong();
  char* const begin = base() + statistics_at(item);
  char* const body = PutLength(v1::AttendResult::kStatisticsFieldNumber, length, begin);
  statistics.SerializeWithCachedSizesToArray(reinterpret_cast<uint8_t*>(body));
  item.statistics_length = body + length - begin;
}

grpc::ByteBuffer AttendAnswerWriter::Take() {
  Assemble();
  grpc::ByteBuffer bytes(slices_.data(), slices_.size());
  slices_.clear();
  given_away_ = true;
  return bytes;
}

absl::StatusOr<size_t> AttendAnswerWriter::Copy(std::span<char> room) {
  if (in_place()) return FinishInPlace();
  Assemble();
  StreamingWriter writer(room);
  bool fits = true;
  for (const grpc::Slice& slice : slices_) fits = fits && writer.Append(slice.begin(), slice.size());
  slices_.clear();
  if (fits) return writer.Finish();
  return absl::ResourceExhaustedError(absl::StrCat("the answer is larger than its room of ", room.size(), " bytes"));
}

void AttendAnswerWriter::Assemble() {
  slices_.clear();
  if (request_id_ != 0) {
    std::array<char, 11> id;
    const char* const end =
        PutVarint(request_id_, PutTag(v1::AttendResponse::kRequestIdFieldNumber, kVarint, id.data()));
    slices_.emplace_back(id.data(), end - id.data());
  }
  for (size_t i = 0; i < items_.size(); ++i) {
    if (items_[i].status.ok()) {
      AssembleAnswered(i);
    } else {
      AssembleFailed(items_[i]);
    }
  }
}

void AttendAnswerWriter::AssembleFailed(const Item& item) {
  v1::AttendResponse response;
  v1::ItemStatus* const status = response.add_results()->mutable_status();
  status->set_code(static_cast<int>(item.status.code()));
  status->set_message(std::string(item.status.message()));
  slices_.emplace_back(response.SerializeAsString());  // a part of a message: parts that follow each other merge
}

void AttendAnswerWriter::AssembleAnswered(size_t index) {
  const Item& item = items_[index];
  const size_t data_bytes = o_bytes(item);
  char* const lse_begin = base() + item.o + data_bytes;
  std::memcpy(PutLength(v1::AttendResult::kLseFieldNumber, lse_bytes(), lse_begin), lse(index), lse_bytes());
  const size_t end = statistics_at(item) + item.statistics_length;

  // Inside out, as each length counts what follows it.
  std::array<char, kHeadRoom> tensor;
  const size_t tensor_head = PutTensorHead(layout_, item.dtype, data_bytes, tensor.data()) - tensor.data();
  std::array<char, kHeadRoom> result;
  char* to = PutLength(v1::AttendResult::kStatusFieldNumber, 0, result.data());  // OK: an empty message
  to = PutLength(v1::AttendResult::kOFieldNumber, tensor_head + data_bytes, to);
  const size_t result_head = to - result.data();
  std::array<char, kHeadRoom> head;
  to = PutLength(v1::AttendResponse::kResultsFieldNumber, result_head + tensor_head + (end - item.o), head.data());
  to = std::copy_n(result.data(), result_head, to);
  to = std::copy_n(tensor.data(), tensor_head, to);
  const size_t length = to - head.data();
  std::memcpy(base() + item.o - length, head.data(), length);
  slices_.emplace_back(grpc_slice_sub(slice_, item.o - length, end), grpc::Slice::STEAL_REF);
}

}  // namespace santa
