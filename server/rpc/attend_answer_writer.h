// An AttendResponse's bytes, written where gRPC sends them from: backends write outputs straight into the slice that
// leaves the machine, and the message's other fields are put around them. Any protobuf parser reads it.
//
// Or in memory that a device reaches and the caller reads (attend_answer_in_place.cc).
#ifndef SANTA_SERVER_RPC_ATTEND_ANSWER_WRITER_H_
#define SANTA_SERVER_RPC_ATTEND_ANSWER_WRITER_H_

#include <grpc/slice.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

// For one answer after another, without allocating but for what Take gives away: Reset; an Add for each item, in the
// request's order; Allocate or AllocateIn; then the outputs are written, and failures and statistics noted; Take or
// Copy. Not thread safe.
class AttendAnswerWriter {
 public:
  // What any AttendStatistics takes at most, as encoded: a number for each query head, and others.
  static constexpr size_t StatisticsRoom(int32_t num_query_heads) {
    return 256 + sizeof(float) * static_cast<size_t>(num_query_heads);
  }

  AttendAnswerWriter() = default;
  ~AttendAnswerWriter() { Release(); }
  AttendAnswerWriter(const AttendAnswerWriter&) = delete;
  AttendAnswerWriter& operator=(const AttendAnswerWriter&) = delete;

  void Reset(uint64_t request_id, const KvLayout& layout);

  void AddRefused(const absl::Status& status);           // not OK
  void AddAnswered(DType dtype, bool wants_statistics);  // the dtype of o

  void Allocate();
  // The answer is put together in `room`, of whole lines of 64 bytes, from which nothing is read: others may write it.
  // False where it might be larger; then it is to be allocated.
  bool AllocateIn(std::span<char> room);
  // [H][D] and [H], of an item that was added as answered. Aligned, o to 64 bytes; nothing is in them yet.
  void* o(size_t item) { return base() + items_[item].o; }
  float* lse(size_t item);

  size_t memory() const { return allocated_ ? GRPC_SLICE_LENGTH(slice_) : 0; }  // bytes that it keeps

  void SetFailed(size_t item, const absl::Status& status) { items_[item].status = status; }
  // Of an item that wants them; at most StatisticsRoom, encoded.
  void SetStatistics(size_t item, const v1::AttendStatistics& statistics);

  // The answer, either way; of what was allocated in a room, Copy into that.
  grpc::ByteBuffer Take();
  // Its length in `room`, which begins at a multiple of 64 bytes; RESOURCE_EXHAUSTED, naming the room, where it is
  // larger.
  absl::StatusOr<size_t> Copy(std::span<char> room);

 private:
  struct Item {
    absl::Status status;
    DType dtype = DType::kFloat32;
    bool wants_statistics = false;
    size_t o = 0;    // offsets into the slice, or the room
    size_t end = 0;  // of what the item may take of the room
    size_t statistics_length = 0;
  };

  bool in_place() const { return !room_.empty(); }
  char* base() { return in_place() ? room_.data() : reinterpret_cast<char*>(GRPC_SLICE_START_PTR(slice_)); }
  size_t lse_bytes() const { return sizeof(float) * layout_.num_query_heads; }
  size_t statistics_room(const Item& item) const {
    return item.wants_statistics ? StatisticsRoom(layout_.num_query_heads) : 0;
  }
  size_t o_bytes(const Item& item) const {
    return static_cast<size_t>(layout_.num_query_heads) * layout_.head_dim * SizeOf(item.dtype);
  }
  size_t lse_at(const Item& item) const;
  size_t statistics_at(const Item& item) const { return lse_at(item) + lse_bytes(); }
  void Release();
  void Assemble();  // slices_
  void AssembleFailed(const Item& item);
  void AssembleAnswered(size_t index);
  size_t FinishInPlace();
  char* FinishFailed(const Item& item, char* to);
  char* FinishAnswered(const Item& item, char* to);

  static constexpr size_t kLseLengthInPlace = 3;  // with its tag four bytes, so that lse is aligned as o is

  KvLayout layout_;
  uint64_t request_id_ = 0;
  std::vector<Item> items_;
  std::vector<float> lse_;
  grpc_slice slice_ = {};  // all answered items, with room before and behind each output
  bool allocated_ = false;
  bool given_away_ = false;  // some of the slice is gRPC's
  std::vector<grpc::Slice> slices_;
  std::span<char> room_;  // or none
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_ATTEND_ANSWER_WRITER_H_
