#include "client/bench/load_client.h"

#include <sys/prctl.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "client/wire.h"

namespace santa::bench {
namespace {

constexpr std::chrono::seconds kDrain(10);
constexpr std::chrono::milliseconds kPauseAfterFailure(10);
constexpr std::chrono::milliseconds kPoll(50);  // for an end that was brought forward
constexpr absl::Duration kUploadTimeout = absl::Minutes(30);
// Beyond the load: other clients' uploads, which renew no lease of ours.
constexpr double kSpareLeaseSeconds = 1800;
// Open loop: unanswered steps of a client; past it arrivals wait (their latency counts from the arrival all the same).
constexpr size_t kMaxInFlight = 16384;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

bool AllOk(const AttendStream::Result& result) {
  return result.ok() &&
         std::all_of(result->results().begin(), result->results().end(),
                     [](const v1::AttendResult& item) { return item.status().code() == 0 && item.has_o(); });
}

}  // namespace

LoadClient::LoadClient(const LoadOptions& options, int64_t index, std::unique_ptr<AttentionClient> client)
    : options_(options), index_(index), client_(std::move(client)) {}

LoadClient::~LoadClient() = default;

absl::StatusOr<std::unique_ptr<LoadClient>> LoadClient::Connect(const LoadOptions& options, int64_t index) {
  absl::StatusOr<std::unique_ptr<AttentionClient>> client = AttentionClient::Connect(options.server);
  if (!client.ok()) return client.status();
  return std::unique_ptr<LoadClient>(new LoadClient(options, index, *std::move(client)));
}

absl::Status LoadClient::Prepare(const TensorView& k, const TensorView& v, const std::atomic<bool>& stop) {
  v1::CreateSequenceRequest create;
  create.set_lease_seconds(
      std::min(info().limits().max_lease_seconds(), options_.warmup_seconds + options_.seconds + kSpareLeaseSeconds));
  const int64_t repeat = k.shape[0];
  std::vector<KvChunk> chunks;
  for (int64_t layer = 0; layer < options_.layers; ++layer) {
    for (int64_t position = 0; position < options_.tokens; position += repeat) {
      const int64_t tokens = std::min(repeat, options_.tokens - position);
      chunks.push_back({static_cast<uint32_t>(layer), position, Rows(k, 0, tokens), Rows(v, 0, tokens)});
    }
  }
  std::vector<v1::SequenceHandle> handles;
  for (int64_t i = 0; i < options_.sequences; ++i) {
    if (stop) return absl::CancelledError("stopped while sequences were uploaded");
    create.set_sampling_key(1 + index_ * options_.sequences + i);
    absl::StatusOr<OwnedSequence> sequence = OwnedSequence::Create(*client_, create);
    if (!sequence.ok()) return sequence.status();
    handles.push_back(sequence->handle());
    sequences_.push_back(*std::move(sequence));
    const absl::StatusOr<v1::Sequence> stored = client_->AppendKv(handles.back(), chunks, absl::Now() + kUploadTimeout);
    if (!stored.ok()) return stored.status();
  }
  source_ = std::make_unique<StepSource>(options_, info().layout(), handles, options_.seed + index_);
  stream_ = client_->OpenAttendStream({.max_in_flight = kMaxInFlight});
  return absl::OkStatus();
}

void LoadClient::Run(const LoadWindow& window) {
  options_.rate > 0 ? RunOpenLoop(window) : RunClosedLoop(window);
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kDrain, [this] { return in_flight_ == 0; });
    const AttendStreamStatistics statistics = stream_->statistics();
    counts_.streams_opened = statistics.streams_opened;
    counts_.requests_resent = statistics.requests_resent;
  }
  stream_.reset();  // what is unanswered fails with CANCELLED
}

void LoadClient::RunClosedLoop(const LoadWindow& window) {
  std::unique_lock lock(mutex_);
  idle_slots_ = options_.in_flight;
  while (Clock::now() < window.end.load()) {
    int64_t slots = std::exchange(idle_slots_, 0);
    lock.unlock();
    for (; slots > 0; --slots) SubmitNext(window);
    lock.lock();
    changed_.wait_for(lock, kPoll, [this] { return idle_slots_ > 0; });
    if (idle_slots_ > 0) {  // a step failed
      lock.unlock();
      std::this_thread::sleep_for(kPauseAfterFailure);
      lock.lock();
    }
  }
}

void LoadClient::SubmitNext(const LoadWindow& window) {
  const std::lock_guard lock(submit_mutex_);
  LoadStep step = source_->Next();
  Submit(std::move(step), Clock::now(), window);
}

void LoadClient::RunOpenLoop(const LoadWindow& window) {
  prctl(PR_SET_TIMERSLACK, 1);  // nanosecond; a thread wakes up to 50 us late otherwise
  std::mt19937_64 random(options_.seed * 7919 + index_);
  // The sum of independent Poisson processes is one of the summed rate.
  std::exponential_distribution<double> gap(options_.rate / static_cast<double>(options_.clients));
  const auto next_gap = [&] {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(random)));
  };
  int64_t unsent = 0;
  for (Clock::time_point arrival = Clock::now() + next_gap(); arrival < window.end.load(); arrival += next_gap()) {
    if (Clock::now() >= window.end.load() + kDrain) {
      if (window.Contains(arrival)) ++unsent;
      continue;
    }
    LoadStep step = source_->Next();
    while (Clock::now() < arrival && Clock::now() < window.end.load()) {
      std::this_thread::sleep_until(std::min(arrival, Clock::now() + kPoll));
    }
    if (arrival >= window.end.load()) break;  // brought forward
    Submit(std::move(step), arrival, window);
  }
  const std::lock_guard lock(mutex_);
  counts_.unsent_steps += unsent;
}

void LoadClient::Submit(LoadStep step, Clock::time_point intended, const LoadWindow& window) {
  {
    const std::lock_guard lock(mutex_);
    ++in_flight_;
  }
  const Flight flight = {.intended = intended, .sent = Clock::now(), .layer = step.layer, .position = step.position};
  stream_->Submit(std::move(step.request), absl::InfiniteFuture(),
                  [this, flight, &window](const AttendStream::Result& result) { OnAnswer(flight, result, window); });
}

void LoadClient::OnAnswer(const Flight& flight, const AttendStream::Result& result, const LoadWindow& window) {
  const Clock::time_point now = Clock::now();
  const bool ok = AllOk(result);
  if (!ok) source_->Refused(flight.layer, flight.position);
  const bool goes_on = options_.rate == 0 && now < window.end.load();
  {
    const std::lock_guard lock(mutex_);
    if (ok) {
      CountAnswered(flight, now, *result, window);
    } else if (window.Contains(flight.intended)) {
      CountFailed(result);
    }
    if (goes_on && !ok) ++idle_slots_;
    --in_flight_;
    if (in_flight_ == 0 || idle_slots_ > 0) changed_.notify_all();
  }
  // Never after a failure: Submit may have called us, and would again.
  if (goes_on && ok) SubmitNext(window);
}

void LoadClient::CountAnswered(const Flight& flight, Clock::time_point now, const v1::AttendResponse& response,
                               const LoadWindow& window) {
  const v1::AttendStatistics& statistics = response.results(0).statistics();
  ++counts_.steps_ever;
  if (window.Contains(now)) {
    ++counts_.steps;
    counts_.items += response.results_size();
    counts_.device_seconds_share +=
        statistics.device_seconds() * response.results_size() / std::max(1, statistics.batch_items());
  }
  if (!window.Contains(flight.intended)) return;
  counts_.latency.Record(std::chrono::nanoseconds(now - flight.intended).count());
  counts_.late_seconds += Seconds(flight.sent - flight.intended);
  counts_.queue_seconds += statistics.queue_seconds();
  counts_.device_seconds += statistics.device_seconds();
  counts_.batch_items += statistics.batch_items();
}

void LoadClient::CountFailed(const AttendStream::Result& result) {
  ++counts_.failed_steps;
  if (!result.ok()) {
    counts_.failed_items[result.status().code()] += options_.sequences;
    return;
  }
  for (const v1::AttendResult& item : result->results()) {
    if (item.status().code() != 0) ++counts_.failed_items[ToStatus(item.status()).code()];
  }
}

LoadCounts LoadClient::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace santa::bench
