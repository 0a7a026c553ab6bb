#include "server/engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/engine/batch_former.h"
#include "server/engine/batch_runner.h"

namespace santa {

struct Engine::State {
  State(Backend* backend, SequenceStore* store, PagePool* pool, const EngineOptions& engine_options,
        std::function<void(const BatchReport&)> report)
      : options(engine_options),
        on_batch(std::move(report)),
        former(std::max(engine_options.max_batch_items, 1)),
        runner(backend, store, pool) {}

  const EngineOptions options;
  const std::function<void(const BatchReport&)> on_batch;

  mutable std::mutex mutex;
  std::condition_variable work_arrived;
  std::vector<Step*> arrived;  // in order; the device thread takes all of it at once
  int64_t queued_items = 0;    // of `arrived` and `waiting`
  int64_t running_items = 0;
  bool stopping = false;
  bool device_failed = false;
  std::string device_error;  // a string, and not a Status, which threads would share

  std::mutex join_mutex;
  std::thread thread;

  // The device thread's own.
  BatchFormer former;
  BatchRunner runner;
  std::vector<Step*> waiting;  // in order of arrival
  std::vector<Step*> batch;
  std::vector<Step*> dropped;
  BatchReport report;

  void Loop();
  bool TakeWork();
  void FormBatch();
  void RunBatch();
  void Finish(std::vector<Step*>* steps);
};

Engine::Engine(Backend* backend, SequenceStore* store, PagePool* pool, const EngineOptions& options,
               std::function<void(const BatchReport&)> on_batch)
    : state_(std::make_unique<State>(backend, store, pool, options, std::move(on_batch))) {
  state_->thread = std::thread([state = state_.get()] { state->Loop(); });
}

Engine::~Engine() { Shutdown(); }

absl::Status Engine::Submit(Step* step) {
  const int64_t weight = Weight(*step);
  step->enqueued = absl::Now();
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->device_failed) return absl::UnavailableError(state_->device_error);
  if (state_->stopping) return absl::UnavailableError("the server is shutting down");
  if (weight > state_->options.max_queued_items - state_->queued_items) {
    return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", state_->queued_items, " items wait, and ",
                                                     weight, " more would pass the ", state_->options.max_queued_items,
                                                     " that may"));
  }
  state_->arrived.push_back(step);
  state_->queued_items += weight;
  if (state_->arrived.size() == 1) state_->work_arrived.notify_one();
  return absl::OkStatus();
}

void Engine::Shutdown() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stopping = true;
    state_->work_arrived.notify_one();
  }
  std::lock_guard<std::mutex> lock(state_->join_mutex);  // a second caller waits here too until the thread has ended
  if (state_->thread.joinable()) state_->thread.join();
}

int64_t Engine::queued_items() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->queued_items;
}

int64_t Engine::running_items() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->running_items;
}

absl::Status Engine::device_status() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->device_failed ? absl::UnavailableError(state_->device_error) : absl::OkStatus();
}

void Engine::State::Loop() {
  while (TakeWork()) {
    FormBatch();
    Finish(&dropped);
    if (!batch.empty()) RunBatch();
  }
}

// Waits until there is work; false when there is none left and none will come.
bool Engine::State::TakeWork() {
  std::unique_lock<std::mutex> lock(mutex);
  work_arrived.wait(lock, [this] { return stopping || !arrived.empty() || !waiting.empty(); });
  waiting.insert(waiting.end(), arrived.begin(), arrived.end());
  arrived.clear();
  return !waiting.empty();
}

void Engine::State::FormBatch() {
  batch.clear();
  dropped.clear();
  const absl::Time now = absl::Now();
  // Only this thread sets device_failed and device_error.
  if (device_failed) {
    for (Step* step : waiting) FailStep(absl::UnavailableError(device_error), step);
    dropped.swap(waiting);
  } else {
    former.Form(now, &waiting, &batch, &dropped);
  }
  int64_t taken = 0;
  int64_t running = 0;
  for (std::vector<Step*>* steps : {&batch, &dropped}) {
    for (Step* step : *steps) {
      step->queue_time = now - step->enqueued;
      taken += Weight(*step);
      if (steps == &batch) running += static_cast<int64_t>(step->items.size());
    }
  }
  std::lock_guard<std::mutex> lock(mutex);
  queued_items -= taken;
  running_items = running;
}

void Engine::State::RunBatch() {
  const absl::Status status = runner.Run(batch, absl::Now(), &report.device_time);
  {
    std::lock_guard<std::mutex> lock(mutex);
    running_items = 0;
    if (!status.ok()) {
      device_error = std::string(status.message());
      device_failed = true;
    }
  }
  if (on_batch) {
    report.steps.assign(batch.begin(), batch.end());
    on_batch(report);
  }
  Finish(&batch);
}

// Hands the steps back; from its `done` on, a step may be gone.
void Engine::State::Finish(std::vector<Step*>* steps) {
  for (Step* step : *steps) {
    // Moved out, as the step may delete itself while it is called.
    const std::function<void()> done = std::move(step->done);
    if (done) done();
  }
  steps->clear();
}

}  // namespace santa
