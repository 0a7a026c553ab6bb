// The wire's bytes to steps and back.
#ifndef SANTA_SERVER_RPC_WIRE_H_
#define SANTA_SERVER_RPC_WIRE_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "server/engine/step.h"
#include "server/metrics/metrics.h"
#include "server/rpc/attend_answer_writer.h"
#include "server/rpc/attend_request_reader.h"
#include "server/rpc/slow_step_log.h"
#include "server/rpc/tensor_memory.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

grpc::Status ToGrpc(const absl::Status& status);

// INVALID_ARGUMENT when the bytes are no message of this kind.
absl::Status Decode(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message);
grpc::ByteBuffer Encode(const google::protobuf::MessageLite& message);

// A request in memory that its sender may write meanwhile, and the room for its answer there.
struct SharedMessage {
  std::span<const char> bytes = {};
  std::span<char> room = {};  // as AttendAnswerWriter::AllocateIn has it
  bool mapped = false;        // the device reaches both: q is left and the answer written where they are
};

// One request of an Attend stream: owns what came, the step whose pointers lead into it, and the answer, which the step
// fills. Used for one request after another, without allocating: but for what gRPC is given to send. Not thread safe;
// does not move.
class AttendExchange {
 public:
  explicit AttendExchange(TensorMemory::Map map) : reader_(std::move(map)) {}
  AttendExchange(const AttendExchange&) = delete;
  AttendExchange& operator=(const AttendExchange&) = delete;

  // An error ends the stream: bytes that are no request, or a number of items outside [1, max_items], which cannot be
  // answered item by item (each answer would be larger than what it answers).
  absl::Status Read(const grpc::ByteBuffer& bytes, const KvLayout& layout, int32_t max_items, Metrics* metrics);
  absl::Status Read(const SharedMessage& message, const KvLayout& layout, int32_t max_items, Metrics* metrics);

  // The items that are valid; the others have their answer already. Tenant, deadline and `done` are the caller's to
  // set.
  Step* step() { return &step_; }

  // The answer, once every item of the step has its status; either way, of a message in shared memory in its room.
  grpc::ByteBuffer Answer();
  // As AttendAnswerWriter::Copy has it.
  absl::StatusOr<size_t> AnswerInto(std::span<char> room);

  uint64_t request_id() const { return reader_.request_id(); }
  size_t memory() const { return reader_.memory() + writer_.memory(); }  // bytes that it keeps
  size_t place = 0;                                                      // in the caller's list of exchanges
  bool surplus = false;                                                  // the pool's: it is not to be kept
  int32_t slot = 0;  // the caller's, as the next one: where in a ring it came from
  StepTimes times;

 private:
  void ReadItems(const KvLayout& layout, std::span<char> mapped_room, Metrics* metrics);
  void Fill();  // what the answer has beside the outputs

  AttendRequestReader reader_;
  AttendAnswerWriter writer_;
  v1::AttendStatistics statistics_;
  Step step_;
  std::vector<int> places_;    // step item -> request item
  std::vector<float> errors_;  // relative standard errors, [step item][H]
  absl::flat_hash_set<uint64_t> seen_;
};

// Exchanges that are not in use, for all streams. Thread safe.
class ExchangePool {
 public:
  // What is kept maps its memory; to map takes longer than a step.
  explicit ExchangePool(TensorMemory::Map map) : map_(std::move(map)) {}

  std::unique_ptr<AttendExchange> Take();
  void Return(std::unique_ptr<AttendExchange> exchange);

 private:
  // What is kept: more exchanges than a busy server has in flight, none of them with the memory of a giant's message.
  static constexpr size_t kMost = 256;
  static constexpr size_t kMostMemory = 1 << 20;

  const TensorMemory::Map map_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<AttendExchange>> free_;
  size_t living_ = 0;  // those in use too
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_WIRE_H_
