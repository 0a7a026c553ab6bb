#include "server/engine/engine.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "ring/adaptive_watch.h"
#include "server/engine/batch_forecast.h"
#include "server/engine/batch_former.h"
#include "server/engine/batch_runner.h"
#include "server/engine/fair_share.h"

namespace santa {

struct Engine::State {
  using Clock = std::chrono::steady_clock;

  State(Backend* engine_backend, SequenceStore* store, PagePool* pool, const EngineOptions& engine_options,
        std::function<void(const BatchReport&)> report)
      : backend(engine_backend),
        options(engine_options),
        on_batch(std::move(report)),
        max_in_flight(backend->max_decodes_in_flight()),
        former(std::max(engine_options.max_batch_items, 1)),
        runner(backend, store, pool) {}

  Backend* const backend;
  const EngineOptions options;
  const std::function<void(const BatchReport&)> on_batch;
  const int max_in_flight;

  mutable std::mutex mutex;
  std::condition_variable work_arrived;                       // or room for another batch, or the end
  std::condition_variable batch_began;                        // or no other will
  std::vector<std::unique_ptr<BatchRunner::Run>> in_flight;   // begun; the first is being finished
  std::vector<std::unique_ptr<BatchRunner::Run>> spare_runs;  // kept for their memory
  Clock::time_point idle_since = Clock::now();                // in_flight became empty
  BatchForecast forecast;
  Clock::time_point next_batch_at;  // not before, while one is in flight
  bool no_more_batches = false;
  bool device_thread_sleeps = false;
  int handing_back = 0;        // batches whose steps are being told
  bool device_taken = false;   // somebody forms or runs a batch: the device thread, or one in RunHere
  std::vector<Step*> arrived;  // in order; whoever takes the device takes all of it at once
  std::deque<Step*> background;
  int64_t queued_items = 0;                                   // of `arrived` and `waiting`
  absl::flat_hash_map<std::string, int64_t> queued_items_of;  // by tenant
  absl::Duration time_per_item = absl::Milliseconds(1);       // that the queue takes to drain, of late
  int64_t running_items = 0;
  bool stopping = false;
  bool device_failed = false;
  std::string device_error;  // a string, and not a Status, which threads would share

  // Counts what may give the device thread something to do, so that it can watch for it without the mutex.
  std::atomic<uint64_t> arrivals{0};
  std::atomic<int> batches_in_flight{0};   // as in_flight.size()
  std::atomic<uint64_t> batches_begun{0};  // what the finisher watches for

  std::mutex join_mutex;
  std::thread thread;
  std::thread finisher;          // where several batches may be in flight
  AdaptiveWatch finisher_watch;  // its own

  std::mutex hand_back_mutex;  // one report or `done` at a time

  // Of whoever has taken the device, but for runner.Finish; `watch` is the device thread's.
  BatchFormer former;
  BatchRunner runner;
  AdaptiveWatch watch;
  FairShare share;
  std::vector<Step*> waiting;                         // in order of their turns
  absl::Time backlog_since = absl::InfiniteFuture();  // the last batch's forming, if it left some
  std::vector<Step*> batch;
  std::vector<Step*> dropped;

  void Loop();
  bool AwaitsRunHere(const Step& step) const;
  absl::Status QueueFull(const char* what, int64_t waiting_items, int64_t more, int64_t most) const;
  void WakeDeviceThread();
  bool WorkWaits() const { return !arrived.empty() || !waiting.empty() || !background.empty(); }
  bool Ready() const;
  bool TakeWork();
  void TakeArrived(std::unique_lock<std::mutex>* lock);
  void GiveDeviceBack();
  void RunTaken();
  bool TakeBackground();
  void FormBatch();
  void RunBatch();
  std::unique_ptr<BatchRunner::Run> TakeRun();
  void DeviceBegins(const BatchRunner::Run& run);
  void FinishInOrder();
  void FinishBatch(BatchRunner::Run* run);
  void HandBack(std::vector<Step*>* steps);
};

Engine::Engine(Backend* backend, SequenceStore* store, PagePool* pool, const EngineOptions& options,
               std::function<void(const BatchReport&)> on_batch)
    : state_(std::make_unique<State>(backend, store, pool, options, std::move(on_batch))) {
  State* const state = state_.get();
  if (state->max_in_flight > 1) state->finisher = std::thread([state] { state->FinishInOrder(); });
  state->thread = std::thread([state] { state->Loop(); });
}

Engine::~Engine() { Shutdown(); }

absl::Status Engine::Submit(Step* step, Wake wake) {
  const int64_t weight = Weight(*step);
  step->enqueued = absl::Now();
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->device_failed) return absl::UnavailableError(state_->device_error);
  if (state_->stopping) return absl::UnavailableError("the server is shutting down");
  if (weight > state_->options.max_queued_items - state_->queued_items) {
    return state_->QueueFull("the queue is full: ", state_->queued_items, weight, state_->options.max_queued_items);
  }
  int64_t& of_tenant = state_->queued_items_of[step->tenant];
  if (weight > state_->options.max_queued_items_per_tenant - of_tenant) {
    return state_->QueueFull("the tenant's part of the queue is full: ", of_tenant, weight,
                             state_->options.max_queued_items_per_tenant);
  }
  state_->arrived.push_back(step);
  state_->queued_items += weight;
  of_tenant += weight;
  if (wake == Wake::kNow || !state_->AwaitsRunHere(*step)) state_->WakeDeviceThread();
  return absl::OkStatus();
}

// With the mutex held, and the step the last that arrived. Whoever comes next before it runs wakes the device thread.
bool Engine::State::AwaitsRunHere(const Step& step) const {
  if (device_taken || arrived.size() > 1 || !waiting.empty() || !background.empty()) return false;
  if (max_in_flight > 1) return in_flight.empty();
  return forecast.IsWithin(absl::ToChronoNanoseconds(options.longest_here), BatchForecast::TokensOf(std::array{&step}));
}

void Engine::RunHere() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  if (state_->arrived.empty()) return;
  if (!state_->AwaitsRunHere(*state_->arrived.front())) return state_->WakeDeviceThread();
  state_->device_taken = true;
  state_->TakeArrived(&lock);
  lock.unlock();
  state_->RunTaken();
}

// With the mutex held.
absl::Status Engine::State::QueueFull(const char* what, int64_t waiting_items, int64_t more, int64_t most) const {
  const absl::Duration drained = static_cast<double>(queued_items) * time_per_item;
  const absl::Duration retry = std::clamp(drained, absl::Milliseconds(1), absl::Seconds(10));
  return absl::ResourceExhaustedError(absl::StrCat(what, waiting_items, " items wait, and ", more,
                                                   " more would pass the ", most, " that may; retry in ",
                                                   absl::ToInt64Milliseconds(retry), " ms"));
}

absl::Status Engine::SubmitBackground(Step* step) {
  step->enqueued = absl::Now();
  step->background = true;
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->device_failed) return absl::UnavailableError(state_->device_error);
  if (state_->stopping) return absl::UnavailableError("the server is shutting down");
  state_->background.push_back(step);
  state_->WakeDeviceThread();
  return absl::OkStatus();
}

std::unique_ptr<MappedMemory> Engine::MapMemory(std::span<char> memory) { return state_->backend->MapMemory(memory); }

void Engine::Shutdown() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stopping = true;
    state_->WakeDeviceThread();
  }
  std::lock_guard<std::mutex> lock(state_->join_mutex);  // a second caller waits here too until the thread has ended
  if (state_->thread.joinable()) state_->thread.join();
  if (state_->finisher.joinable()) state_->finisher.join();
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
  while (TakeWork()) RunTaken();
  std::lock_guard<std::mutex> lock(mutex);
  no_more_batches = true;
  batch_began.notify_one();
}

void Engine::State::RunTaken() {
  if (!TakeBackground()) FormBatch();
  HandBack(&dropped);
  if (!batch.empty()) return RunBatch();
  std::lock_guard<std::mutex> lock(mutex);
  GiveDeviceBack();
}

// With the mutex held.
void Engine::State::GiveDeviceBack() {
  device_taken = false;
  if (WorkWaits() || stopping) WakeDeviceThread();
}

// With the mutex held, after anything that TakeWork waits for.
void Engine::State::WakeDeviceThread() {
  arrivals.fetch_add(1, std::memory_order_release);
  if (device_thread_sleeps) work_arrived.notify_one();
}

// With the mutex held: what TakeWork waits for.
bool Engine::State::Ready() const {
  if (device_taken) return false;
  if (!WorkWaits()) return stopping && handing_back == 0;
  if (static_cast<int>(in_flight.size()) >= max_in_flight) return false;
  const bool full = queued_items >= options.max_batch_items;
  return in_flight.empty() || full || stopping || Clock::now() >= next_batch_at;
}

// With the mutex held: it works on this batch from now on.
void Engine::State::DeviceBegins(const BatchRunner::Run& run) {
  next_batch_at = Clock::now() + forecast.Patience(BatchForecast::TokensOf(run.steps));
}

// Waits until there is work, and room for it on the device, and takes that; false when there is none left and none will
// come.
bool Engine::State::TakeWork() {
  std::unique_lock<std::mutex> lock(mutex);
  const auto entered = Clock::now();
  bool waited = false;
  while (!Ready()) {
    waited = true;
    const uint64_t seen = arrivals.load(std::memory_order_acquire);
    const Clock::time_point later = next_batch_at;
    const bool waits = later > Clock::now();
    lock.unlock();
    const auto something_changed = [&] {
      return arrivals.load(std::memory_order_acquire) != seen || (waits && Clock::now() >= later);
    };
    const bool came =
        watch.For(something_changed, [this] { return batches_in_flight.load(std::memory_order_relaxed) > 0; });
    lock.lock();
    if (came || Ready()) continue;
    device_thread_sleeps = true;
    work_arrived.wait(lock, [this] { return Ready(); });
    device_thread_sleeps = false;
  }
  // A gap is time in which the device had nothing to do.
  if (waited) {
    const bool busy = !in_flight.empty();
    watch.Learn(busy ? Clock::duration::zero() : Clock::now() - std::max(entered, idle_since));
  }
  device_taken = true;
  TakeArrived(&lock);
  return !waiting.empty() || !background.empty();
}

// With the device taken, and the mutex, which is let go meanwhile.
void Engine::State::TakeArrived(std::unique_lock<std::mutex>* lock) {
  const size_t count = arrived.size();
  waiting.insert(waiting.end(), arrived.begin(), arrived.end());
  arrived.clear();
  lock->unlock();
  share.Order(count, &waiting);
  lock->lock();
}

// Whether a background step is to be the next batch, or to be dropped.
bool Engine::State::TakeBackground() {
  std::lock_guard<std::mutex> lock(mutex);
  if (background.empty()) return false;
  const absl::Time now = absl::Now();
  if (!waiting.empty() && now - background.front()->enqueued < options.background_patience) return false;
  Step* const step = background.front();
  background.pop_front();
  step->queue_time = now - step->enqueued;
  if (stopping || device_failed) {
    FailStep(absl::UnavailableError(device_failed ? device_error : "the server is shutting down"), step);
    dropped.push_back(step);
  } else {
    batch.push_back(step);
  }
  return true;
}

void Engine::State::FormBatch() {
  batch.clear();
  dropped.clear();
  const absl::Time now = absl::Now();
  std::string error;
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (device_failed) error = device_error;
  }
  if (!error.empty()) {
    for (Step* step : waiting) FailStep(absl::UnavailableError(error), step);
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
      share.Left(*step);
      if (steps == &batch) running += static_cast<int64_t>(step->items.size());
    }
  }
  std::lock_guard<std::mutex> lock(mutex);
  queued_items -= taken;
  for (const std::vector<Step*>* steps : {&batch, &dropped}) {
    for (const Step* step : *steps) queued_items_of[step->tenant] -= Weight(*step);
  }
  if (taken > 0 && backlog_since < now) time_per_item += ((now - backlog_since) / taken - time_per_item) / 8;
  backlog_since = waiting.empty() ? absl::InfiniteFuture() : now;
  running_items += running;
}

void Engine::State::RunBatch() {
  std::unique_ptr<BatchRunner::Run> run = TakeRun();
  run->steps.swap(batch);
  const auto began = Clock::now();
  runner.Begin(absl::Now(), run.get());
  const auto forming = Clock::now() - began;
  if (max_in_flight == 1) FinishBatch(run.get());
  std::lock_guard<std::mutex> lock(mutex);
  if (max_in_flight == 1) return spare_runs.push_back(std::move(run));
  forecast.LearnForming(forming);
  if (in_flight.empty()) DeviceBegins(*run);
  in_flight.push_back(std::move(run));
  GiveDeviceBack();
  batches_in_flight.store(static_cast<int>(in_flight.size()), std::memory_order_relaxed);
  batches_begun.fetch_add(1, std::memory_order_release);
  batch_began.notify_one();
}

std::unique_ptr<BatchRunner::Run> Engine::State::TakeRun() {
  std::lock_guard<std::mutex> lock(mutex);
  if (spare_runs.empty()) return std::make_unique<BatchRunner::Run>();
  std::unique_ptr<BatchRunner::Run> run = std::move(spare_runs.back());
  spare_runs.pop_back();
  return run;
}

// The finisher thread.
void Engine::State::FinishInOrder() {
  std::unique_lock<std::mutex> lock(mutex);
  while (true) {
    if (in_flight.empty() && !no_more_batches) {
      const auto entered = Clock::now();
      const uint64_t seen = batches_begun.load(std::memory_order_acquire);
      lock.unlock();
      finisher_watch.For([&] { return batches_begun.load(std::memory_order_acquire) != seen; }, [] { return false; });
      lock.lock();
      batch_began.wait(lock, [this] { return !in_flight.empty() || no_more_batches; });
      finisher_watch.Learn(Clock::now() - entered);
    }
    if (in_flight.empty()) return;
    BatchRunner::Run* const run = in_flight.front().get();
    lock.unlock();
    FinishBatch(run);
    lock.lock();
  }
}

void Engine::State::FinishBatch(BatchRunner::Run* run) {
  const absl::Status status = runner.Finish(run);
  const bool background_step = run->steps.front()->background;
  std::unique_ptr<BatchRunner::Run> finished;
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (!background_step) {
      for (const Step* step : run->steps) running_items -= static_cast<int64_t>(step->items.size());
    }
    forecast.Learn(BatchForecast::TokensOf(run->steps), absl::ToChronoNanoseconds(run->device_time));
    if (!status.ok() && !device_failed) {
      device_error = std::string(status.message());
      device_failed = true;
    }
    ++handing_back;
    if (max_in_flight == 1) {
      GiveDeviceBack();  // before its steps are told: what they bring next finds it idle
    } else {
      finished = std::move(in_flight.front());
      in_flight.erase(in_flight.begin());
      batches_in_flight.store(static_cast<int>(in_flight.size()), std::memory_order_relaxed);
      if (in_flight.empty()) {
        idle_since = Clock::now();
      } else {
        DeviceBegins(*in_flight.front());
      }
      // Not for nothing: waking a thread that sleeps takes longer than all else here. Whoever has taken the device
      // looks again when he gives it back.
      if (!device_taken && WorkWaits()) WakeDeviceThread();
    }
  }
  if (on_batch) {
    std::lock_guard<std::mutex> lock(hand_back_mutex);
    on_batch({.background = background_step, .device_time = run->device_time, .steps = run->steps});
  }
  HandBack(&run->steps);
  std::lock_guard<std::mutex> lock(mutex);
  if (finished != nullptr) spare_runs.push_back(std::move(finished));
  --handing_back;
  if (stopping) WakeDeviceThread();
}

// From its `done` on, a step may be gone.
void Engine::State::HandBack(std::vector<Step*>* steps) {
  if (steps->empty()) return;
  std::lock_guard<std::mutex> lock(hand_back_mutex);
  for (Step* step : *steps) {
    // Moved out, as the step may delete itself while it is called.
    const std::function<void()> done = std::move(step->done);
    if (done) done();
  }
  steps->clear();
}

}  // namespace santa
