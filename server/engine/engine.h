// The engine: one device thread that takes work from all callers, forms batches across them, runs the backend and hands
// results back.
//
// Work that arrives while the device is busy forms the next batch, whatever its caller, layer, method or length; order
// is kept for each sequence: a batch has at most one piece of work for a (sequence, layer) pair, later ones wait for
// the next batch. A caller's items fail alone.
#ifndef SANTA_SERVER_ENGINE_ENGINE_H_
#define SANTA_SERVER_ENGINE_ENGINE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
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
};

// One sequence's part of a step. The caller fills the first half and owns all that the pointers name until `done`.
struct StepItem {
  SequenceHandle sequence;
  NewTokens tokens;  // count 0: nothing to append
  // Attention of one query at `position`; with q == nullptr the item only appends (prefill).
  int64_t position = 0;
  AttentionOptions options;
  const float* sink_logits = nullptr;  // [H] or null
  DType io_dtype = DType::kFloat32;
  const void* q = nullptr;  // [H][D]
  void* o = nullptr;        // [H][D]
  float* lse = nullptr;     // [H]

  // Filled by the engine.
  absl::Status status;
  int64_t tokens_appended = 0;
  DecodeStatistics statistics;
};

struct Step {
  std::string tenant;
  int32_t layer = 0;
  std::vector<StepItem> items;
  absl::Time deadline = absl::InfiniteFuture();  // a step still queued then gets DEADLINE_EXCEEDED on every item
  std::atomic<bool> cancelled{false};            // a step still queued gets CANCELLED on every item

  // Called exactly once, on the device thread (or on Submit's when the engine has shut down); must not block.
  std::function<void()> done;

  // Filled by the engine.
  absl::Time enqueued;
  absl::Duration queue_time;
  absl::Duration device_time;  // of the whole batch
  int32_t batch_items = 0;
};

struct EngineOptions {
  int64_t max_queued_items = 4096;  // past it Submit answers RESOURCE_EXHAUSTED
  int32_t max_batch_items = 256;
};

// What one batch did, for metrics. Called on the device thread after each batch; must not block.
struct BatchReport {
  absl::Duration device_time;
  std::vector<const Step*> steps;
};

class Engine {
 public:
  // Backend and store outlive the engine. Starts the device thread.
  Engine(Backend* backend, SequenceStore* store, PagePool* pool, const EngineOptions& options,
         std::function<void(const BatchReport&)> on_batch);
  ~Engine();  // Shutdown()

  // Queues the step; the caller keeps it alive until `done` was called. Thread safe; never blocks.
  // RESOURCE_EXHAUSTED: the queue is full; UNAVAILABLE: shut down, or the device failed. Then `done` is not called.
  absl::Status Submit(Step* step);

  // Runs what is queued, then stops the device thread. Idempotent.
  void Shutdown();

  int64_t queued_items() const;
  int64_t running_items() const;
  // OK, or what the device failed of: from then on every step gets it, and health should turn to NOT_SERVING.
  absl::Status device_status() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_ENGINE_H_
