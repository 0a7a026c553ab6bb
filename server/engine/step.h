// A step: the unit of work that callers hand to the engine.
#ifndef SANTA_SERVER_ENGINE_STEP_H_
#define SANTA_SERVER_ENGINE_STEP_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/kv/sequence_store.h"

namespace santa {

// New tokens of one layer of one sequence: k and v are [count][H_kv][D] of `dtype`, finite, owned by the caller.
struct NewTokens {
  int64_t position = 0;
  int64_t count = 0;
  DType dtype = DType::kFloat32;
  const void* k = nullptr;
  const void* v = nullptr;
  bool mapped = false;  // as in KvAppend
};

// One sequence's part of a step. The caller fills the first half and owns all that the pointers name until `done`.
struct StepItem {
  SequenceHandle sequence;
  NewTokens tokens;  // count 0: nothing to append
  // Attention of one query at `position`, which sees the tokens 0 .. position; with q == nullptr the item only appends
  // (prefill). With tokens, position < tokens.position + tokens.count.
  int64_t position = 0;
  AttentionOptions options;            // valid, as Validate(options) has it
  const float* sink_logits = nullptr;  // [H] or null
  DType io_dtype = DType::kFloat32;
  const void* q = nullptr;                   // [H][D]
  void* o = nullptr;                         // [H][D]
  float* lse = nullptr;                      // [H]
  std::span<float> relative_standard_error;  // [H], as in DecodeItem, or empty: not asked for
  // q lies in mapped memory (Engine::MapMemory). Nobody need have looked at it: the device does, and an item whose q is
  // not finite fails with INVALID_ARGUMENT after it has stored its tokens.
  bool maps_query = false;
  bool maps_answer = false;         // o and lse lie in such memory, as in DecodeItem
  bool shared_with_caller = false;  // who may write q, o and lse even now

  // Filled by the engine. The answer (o, lse, errors, statistics) is there when the status is OK:
  // NOT_FOUND: no such sequence. INVALID_ARGUMENT: no such layer, a negative number, a missing pointer, or the sequence
  // comes twice in the step. OUT_OF_RANGE: position (of the query or of the tokens) above what the layer holds (named
  // in the message), or past max_tokens_per_sequence. FAILED_PRECONDITION: a token is stored at that position already
  // and differs. RESOURCE_EXHAUSTED: no free page. UNIMPLEMENTED: options that the backend has not
  // got. CANCELLED, DEADLINE_EXCEEDED: see Step. UNAVAILABLE: the device
  // failed. Unless it was the device that failed, or the q that it found, an item that is not OK has stored nothing.
  absl::Status status;
  int64_t tokens_appended = 0;
  DecodeStatistics statistics;
  QueryFault query_fault;  // with maps_query
  int64_t truncations =
      0;  // of the sequence, as ReadPlan has it: a query that is repeated while it stays sees the same
};

struct Step {
  std::string tenant;
  uint64_t client = 0;   // tells a tenant's callers apart; they get equal shares of the device
  std::string trace_id;  // of the call that brought it, for logs and answers; may be empty
  int32_t layer = 0;
  std::vector<StepItem> items;
  absl::Time deadline = absl::InfiniteFuture();  // a step still queued then gets DEADLINE_EXCEEDED on every item
  std::atomic<bool> cancelled{false};            // a step still queued gets CANCELLED on every item
  bool background = false;                       // the server's own (SubmitBackground): renews no lease

  // Called exactly once for each step that Submit took, on a thread of the engine's or one in its RunHere and never two
  // at a time, after every item has its status. May delete the step. Must not block nor call Shutdown; Submit is fine.
  std::function<void()> done;

  // Filled by the engine.
  int64_t turn = 0;  // FairShare's, as the next two
  int64_t tenant_turn = 0;
  uint64_t arrival = 0;
  absl::Time enqueued;
  absl::Duration queue_time;
  absl::Duration device_time;  // of the whole batch
  int32_t batch_items = 0;
};

// What a step counts for in the bounds of queue and batch, and in its client's share: its items, but at least 1.
int64_t Weight(const Step& step);

// INVALID_ARGUMENT: what an item gets whose q is not finite.
absl::Status QueryIsNotFinite(const QueryFault& fault);

// Gives every item of the step this status.
void FailStep(const absl::Status& status, Step* step);

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_STEP_H_
