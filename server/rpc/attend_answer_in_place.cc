// An answer that is put together where its caller reads it: a device writes o and lse there, aligned, before anybody
// knows how long the fields between them will be. So each item's place is fixed beforehand, and the gap before it, of
// statistics that came shorter or an item that failed, becomes the item's `padding`.
#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "server/rpc/answer_fields.h"
#include "server/rpc/attend_answer_writer.h"

namespace santa {
namespace {

using namespace answer_fields;  // NOLINT(google-build-using-namespace): what this file is made of

constexpr size_t kLine = 64;
constexpr size_t kLength = 5;           // bytes of a length that is not known yet, whatever it will be
constexpr size_t kHead = 1 + kLength;   // with its tag
constexpr size_t kRequestIdRoom = 11;   // with its tag
constexpr size_t kHeadRoom = 128;       // of an item's fields before the data of o: at most 66 bytes
constexpr size_t kLeastItemRoom = 512;  // so that a refusal fits: what is longer is cut
constexpr size_t kStatusFields = 32;    // of a refusal, beside its message

char* PutLongLength(int field, size_t length, char* to) {
  return PutLongVarint(length, kLength, PutTag(field, kBytes, to));
}

}  // namespace

bool AttendAnswerWriter::AllocateIn(std::span<char> room) {
  size_t size = kRequestIdRoom;
  for (Item& item : items_) {
    const size_t begin = size;
    if (item.status.ok()) {
      item.o = (begin + kHeadRoom + kLine - 1) / kLine * kLine;
      size = item.o + o_bytes(item) + 1 + kLseLengthInPlace + lse_bytes() + statistics_room(item);
    }
    item.end = size = std::max(size, begin + kLeastItemRoom);
  }
  if (size > room.size()) return false;
  room_ = room;
  return true;
}

size_t AttendAnswerWriter::FinishInPlace() {
  char* to = room_.data();
  if (request_id_ != 0) to = PutVarint(request_id_, PutTag(v1::AttendResponse::kRequestIdFieldNumber, kVarint, to));
  for (const Item& item : items_) to = item.status.ok() ? FinishAnswered(item, to) : FinishFailed(item, to);
  return to - room_.data();
}

char* AttendAnswerWriter::FinishFailed(const Item& item, char* to) {
  const size_t room = room_.data() + item.end - to;
  v1::ItemStatus status;
  status.set_code(static_cast<int>(item.status.code()));
  status.set_message(std::string(item.status.message().substr(0, room - kStatusFields)));
  const size_t length = status.ByteSizeLong();
  char* const body = to + kHead;
  char* const fields = PutLongLength(v1::AttendResult::kStatusFieldNumber, length, body);
  status.SerializeWithCachedSizesToArray(reinterpret_cast<uint8_t*>(fields));
  PutLongLength(v1::AttendResponse::kResultsFieldNumber, fields + length - body, to);
  return fields + length;
}

char* AttendAnswerWriter::FinishAnswered(const Item& item, char* to) {
  const size_t data_bytes = o_bytes(item);
  char* const o = room_.data() + item.o;
  PutLongVarint(lse_bytes(), kLseLengthInPlace, PutTag(v1::AttendResult::kLseFieldNumber, kBytes, o + data_bytes));
  char* const end = room_.data() + statistics_at(item) + item.statistics_length;

  std::array<char, kHeadRoom> head;
  const size_t tensor_head = PutTensorHead(layout_, item.dtype, data_bytes, head.data()) - head.data();
  std::array<char, kHeadRoom> last;                                            // what comes right before o's data
  char* at = PutLength(v1::AttendResult::kStatusFieldNumber, 0, last.data());  // OK: an empty message
  at = PutLength(v1::AttendResult::kOFieldNumber, tensor_head + data_bytes, at);
  at = std::copy_n(head.data(), tensor_head, at);
  const size_t last_bytes = at - last.data();
  std::memcpy(o - last_bytes, last.data(), last_bytes);

  char* const body = to + kHead;
  PutLongLength(v1::AttendResponse::kResultsFieldNumber, end - body, to);
  PutLongLength(v1::AttendResult::kPaddingFieldNumber, o - last_bytes - (body + kHead), body);
  return end;
}

}  // namespace santa
