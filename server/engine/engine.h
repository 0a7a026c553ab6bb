// The engine: one device thread that takes work from all callers, forms batches across them, runs the backend and hands
// results back.
//
// Work that arrives while the device is busy forms the next batch, whatever its caller, layer, method or length
// (batch_former.h has the rules of order). Where more waits than a batch takes, callers take turns (fair_share.h). A
// caller's items fail alone.
//
// A device that takes several batches at a time (Backend::max_decodes_in_flight) gets the next one while it works on
// the last, once it is well on with that (batch_forecast.h): then a second thread waits for answers and hands them
// back, in the order in which the batches began.
//
// Handing a small step to another thread takes microseconds, and on a device that is the CPU it and the answer's way
// back can take longer than the step: one that finds the device idle may be run by the thread that brought it
// (RunHere).
#ifndef SANTA_SERVER_ENGINE_ENGINE_H_
#define SANTA_SERVER_ENGINE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/engine/step.h"
#include "server/kv/page_pool.h"
#include "server/kv/sequence_store.h"

namespace santa {

struct EngineOptions {
  int64_t max_queued_items = 4096;  // past it Submit answers RESOURCE_EXHAUSTED; a step without items counts as one
  int64_t max_queued_items_per_tenant = 4096;                    // the same of one tenant's
  int32_t max_batch_items = 256;                                 // a step that has more is a batch of its own
  absl::Duration background_patience = absl::Milliseconds(100);  // see SubmitBackground
  absl::Duration longest_here = absl::Microseconds(200);         // see RunHere
};

// What one batch did, for metrics. Called after each batch and before the `done` of its steps, one batch at a time;
// must not block. Steps that were dropped before they ran are not among them.
struct BatchReport {
  bool background = false;  // the one step of SubmitBackground
  absl::Duration device_time;
  std::span<const Step* const> steps;
};

class Engine {
 public:
  // Backend, store and pool outlive the engine. Starts the device thread, which calls the backend (but for AwaitDecode
  // and RunHere, as above). `on_batch` may be empty.
  Engine(Backend* backend, SequenceStore* store, PagePool* pool, const EngineOptions& options,
         std::function<void(const BatchReport&)> on_batch);
  ~Engine();  // Shutdown()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // When the device thread hears of a step: kInRunHere, where the caller goes on to RunHere. It should do so soon, as
  // until then nobody may look at the step.
  enum class Wake { kNow, kInRunHere };

  // Queues the step; the caller keeps it alive until `done` was called. Thread safe; never waits for the device.
  // RESOURCE_EXHAUSTED: the queue is full, or the tenant's part of it; the message says in how many milliseconds there
  // should be room. UNAVAILABLE: shut down, or the device failed. Then `done` is not called.
  absl::Status Submit(Step* step, Wake wake = Wake::kNow);

  // Where a step waits alone for a device that is idle: runs it, on this thread, if it is expected to take no longer
  // than `longest_here`; or on a device that takes several batches at a time, and so works by itself, begins it here.
  // In every other case the device thread has it. Thread safe; not with a lock held that some step's `done` takes.
  void RunHere();

  // For the server's own measurements: the step runs as a batch of its own, so that device_time is its alone; where it
  // only reads it renews no lease, and it is in no count of items. It begins when no other work waits, and at the
  // latest `background_patience` after it became the first of its kind to wait. UNAVAILABLE: shut down, or the device
  // failed; then, as in Submit, `done` is not called. Thread safe, from within `done` too.
  absl::Status SubmitBackground(Step* step);

  // Backend::MapMemory. No step that is not done names the memory when the mapping ends. Thread safe.
  std::unique_ptr<MappedMemory> MapMemory(std::span<char> memory);

  // Runs what is queued, but background steps, which fail with UNAVAILABLE, then stops the device thread. Idempotent
  // and thread safe, but not from within `done`.
  void Shutdown();

  int64_t queued_items() const;
  int64_t running_items() const;
  // OK, or UNAVAILABLE with what the device failed of: from then on every step gets it, and health should turn to
  // NOT_SERVING.
  absl::Status device_status() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_ENGINE_H_
