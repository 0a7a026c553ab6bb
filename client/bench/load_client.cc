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

bool AllOk(const absl::StatusOr<AttendAnswer>& answer) {
  if (!answer.ok()) return false;
  for (int i = 0; i < answer->num_items(); ++i) {
    if (answer->result(i).status().code() != 0 || answer->outputs(i).o.empty()) return false;
  }
  return true;
}

// Looks at each line of the outputs, as whoever wants them does.
void Read(const AttendAnswer& answer) {
  constexpr size_t kLine = 64;
  for (int i = 0; i < answer.num_items(); ++i) {
    const std::string_view o = answer.outputs(i).o;
    for (size_t at = 0; at < o.size(); at += kLine) static_cast<void>(*const_cast<const volatile char*>(&o[at]));
  }
}

}  // namespace

LoadClient::LoadClient(const LoadOptions& options, int64_t index, std::unique_ptr<AttentionClient> client)
    : options_(options), index_(index), client_(std::move(client)), arrivals_(options.seed * 7919 + index) {}

LoadClient::~LoadClient() = default;

absl::StatusOr<std::unique_ptr<LoadClient>> LoadClient::Connect(const LoadOptions& options, int64_t index) {
  absl::StatusOr<std::unique_ptr<AttentionClient>> client = AttentionClient::Connect(options.server);
  if (!client.ok()) return client.status();
  return std::unique_ptr<LoadClient>(new LoadClient(options, index, *std::move(client)));
}

std::unique_ptr<AttendStream> LoadClient::OpenStream() {
  return client_->OpenAttendStream({.max_in_flight = kMaxInFlight, .share_memory = options_.share_memory});
}

v1::CreateSequenceRequest LoadClient::NewSequence(int64_t sequence) const {
  v1::CreateSequenceRequest create;
  create.set_lease_seconds(
      std::min(info().limits().max_lease_seconds(), options_.warmup_seconds + options_.seconds + kSpareLeaseSeconds));
  create.set_sampling_key(1 + static_cast<uint64_t>(sequence));
  return create;
}

std::vector<KvChunk> LoadClient::Chunks(int64_t sequence, int64_t tokens, int64_t most) const {
  std::mt19937_64 random(static_cast<uint64_t>(options_.seed) ^ static_cast<uint64_t>(sequence) << 32);
  std::vector<KvChunk> chunks;
  for (int64_t layer = 0; layer < options_.layers; ++layer) {
    for (int64_t position = 0; position < tokens; position += most) {
      const int64_t count = std::min(most, tokens - position);
      const auto first = static_cast<int64_t>(random() % static_cast<uint64_t>(k_.shape[0] - count + 1));
      chunks.push_back(
          {static_cast<uint32_t>(layer), position, Rows(k_, first, first + count), Rows(v_, first, first + count)});
    }
  }
  return chunks;
}

absl::Status LoadClient::Prepare(const TensorView& k, const TensorView& v, const std::atomic<bool>& stop) {
  k_ = k;
  v_ = v;
  if (uploads()) return absl::OkStatus();
  std::vector<v1::SequenceHandle> handles;
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < options_.sequences; ++i) {
    if (stop) return absl::CancelledError("stopped while sequences were uploaded");
    const int64_t number = index_ * options_.sequences + i;
    absl::StatusOr<OwnedSequence> sequence = OwnedSequence::Create(*client_, NewSequence(number));
    if (!sequence.ok()) return sequence.status();
    handles.push_back(sequence->handle());
    tokens.push_back(options_.TokensOf(number));
    sequences_.push_back(*std::move(sequence));
    const absl::StatusOr<v1::Sequence> stored =
        client_->AppendKv(handles.back(), Chunks(number, tokens.back(), MostTokens()), absl::Now() + kUploadTimeout);
    if (!stored.ok()) return stored.status();
  }
  source_ = std::make_unique<StepSource>(options_, info().layout(), handles, tokens, options_.seed + index_);
  stream_ = OpenStream();
  return absl::OkStatus();
}

absl::StatusOr<LoadClient::Exchange> LoadClient::SendOne() {
  const LoadStep step = source_->Next();
  AttendStream::Result result = stream_->Attend(step.request, absl::Now() + kUploadTimeout);
  if (!result.ok()) return result.status();
  for (const v1::AttendResult& item : result->results()) {
    if (item.status().code() != 0) return ToStatus(item.status());
  }
  return Exchange{step.request, *std::move(result)};
}

void LoadClient::RunUploads(const LoadWindow& window) {
  for (Clock::time_point begun = Clock::now(); begun < window.end.load(); begun = Clock::now()) {
    // Lengths of their own, after those of the sequences that were there before.
    const int64_t number = options_.decode_clients() * options_.sequences + index_ + prompts_++ * options_.clients;
    const int64_t tokens = options_.TokensOf(number);
    absl::StatusOr<OwnedSequence> sequence = OwnedSequence::Create(*client_, NewSequence(number));
    absl::Status status = sequence.status();
    if (status.ok()) {
      const int64_t most = std::min(options_.prefill_chunk, MostTokens());
      status =
          client_->AppendKv(sequence->handle(), Chunks(number, tokens, most), absl::Now() + kUploadTimeout).status();
    }
    const Clock::time_point now = Clock::now();
    {
      const std::lock_guard lock(mutex_);
      if (status.ok() && window.Contains(now)) counts_.prompt_tokens += tokens;
      if (window.Contains(begun)) {
        if (status.ok()) counts_.prompts.Record(std::chrono::nanoseconds(now - begun).count());
        if (!status.ok()) ++counts_.failed_items[status.code()];
        if (!status.ok()) ++counts_.failed_prompts;
      }
    }
    if (!status.ok()) std::this_thread::sleep_for(kPauseAfterFailure);
  }
}

void LoadClient::Run(const LoadWindow& window) {
  if (uploads()) return RunUploads(window);
  options_.rate > 0 ? RunOpenLoop(window) : RunClosedLoop(window);
  bool drained = false;
  {
    std::unique_lock lock(mutex_);
    drained = changed_.wait_for(lock, kDrain, [this] { return in_flight_ == 0; });
    const AttendStreamStatistics statistics = stream_->statistics();
    counts_.streams_opened = statistics.streams_opened;
    counts_.requests_resent = statistics.requests_resent;
    counts_.shared_streams = statistics.shares_memory ? 1 : 0;
  }
  if (drained) return;
  stream_.reset();  // what is unanswered fails with CANCELLED
  stream_ = OpenStream();
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

LoadClient::Ready LoadClient::MakeReady() {
  if (!options_.in_place) return {.step = source_->Next(), .placed = std::nullopt};
  Ready ready = {.step = source_->NextForm(), .placed = std::nullopt};
  const Clock::time_point began = Clock::now();
  ready.placed = stream_->Place(ready.step.request);
  ready.making_room = Clock::now() - began;
  if (ready.placed->ok()) source_->Write((*ready.placed)->rooms());
  return ready;
}

void LoadClient::SubmitNext(const LoadWindow& window) {
  const std::lock_guard lock(submit_mutex_);
  Ready ready = MakeReady();
  const Clock::time_point began = Clock::now() - ready.making_room;
  Submit(std::move(ready), began, window);
}

void LoadClient::RunOpenLoop(const LoadWindow& window) {
  prctl(PR_SET_TIMERSLACK, 1);  // nanosecond; a thread wakes up to 50 us late otherwise
  // The sum of independent Poisson processes is one of the summed rate.
  std::exponential_distribution<double> gap(options_.rate / static_cast<double>(options_.decode_clients()));
  const auto next_gap = [&] {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(arrivals_)));
  };
  int64_t unsent = 0;
  for (Clock::time_point arrival = Clock::now() + next_gap(); arrival < window.end.load(); arrival += next_gap()) {
    if (Clock::now() >= window.end.load() + kDrain) {
      if (window.Contains(arrival)) ++unsent;
      continue;
    }
    Ready ready = MakeReady();
    while (Clock::now() < arrival && Clock::now() < window.end.load()) {
      std::this_thread::sleep_until(std::min(arrival, Clock::now() + kPoll));
    }
    if (arrival >= window.end.load()) break;  // brought forward
    Submit(std::move(ready), arrival, window);
  }
  const std::lock_guard lock(mutex_);
  counts_.unsent_steps += unsent;
}

void LoadClient::Submit(Ready ready, Clock::time_point intended, const LoadWindow& window) {
  {
    const std::lock_guard lock(mutex_);
    ++in_flight_;
  }
  const Flight flight = {
      .intended = intended, .sent = Clock::now(), .layer = ready.step.layer, .appended = ready.step.appended};
  const auto on_answer = [this, flight, &window](const absl::StatusOr<AttendAnswer>& answer) {
    OnAnswer(flight, answer, window);
  };
  if (ready.placed) {
    if (!ready.placed->ok()) return on_answer(ready.placed->status());
    return stream_->Submit(**std::move(ready.placed), absl::InfiniteFuture(), on_answer);
  }
  stream_->Submit(std::move(ready.step.request), absl::InfiniteFuture(), [on_answer](AttendStream::Result result) {
    if (!result.ok()) return on_answer(result.status());
    on_answer(AttendAnswer(*std::move(result)));
  });
}

void LoadClient::OnAnswer(const Flight& flight, const absl::StatusOr<AttendAnswer>& answer, const LoadWindow& window) {
  const Clock::time_point now = Clock::now();
  const bool ok = AllOk(answer);
  if (!ok) source_->Refused(flight.layer, flight.appended);
  if (ok && options_.in_place) Read(*answer);
  const bool goes_on = options_.rate == 0 && now < window.end.load();
  {
    const std::lock_guard lock(mutex_);
    if (ok) {
      CountAnswered(flight, now, *answer, window);
    } else if (window.Contains(flight.intended)) {
      CountFailed(answer);
    }
    if (goes_on && !ok) ++idle_slots_;
    --in_flight_;
    // Not after every step: whoever waits for the end would wake once a step, beside the step.
    if (idle_slots_ > 0 || (in_flight_ == 0 && !goes_on)) changed_.notify_all();
  }
  // Never after a failure: Submit may have called us, and would again.
  if (goes_on && ok) SubmitNext(window);
}

void LoadClient::CountAnswered(const Flight& flight, Clock::time_point now, const AttendAnswer& answer,
                               const LoadWindow& window) {
  const v1::AttendStatistics& statistics = answer.result(0).statistics();
  ++counts_.steps_ever;
  if (window.Contains(now)) {
    ++counts_.steps;
    counts_.items += answer.num_items();
    counts_.device_seconds_share +=
        statistics.device_seconds() * answer.num_items() / std::max(1, statistics.batch_items());
  }
  if (!window.Contains(flight.intended)) return;
  counts_.latency.Record(std::chrono::nanoseconds(now - flight.intended).count());
  counts_.without_device.Record(std::chrono::nanoseconds(now - flight.intended).count() -
                                static_cast<int64_t>(1e9 * statistics.device_seconds()));
  counts_.late_seconds += Seconds(flight.sent - flight.intended);
  counts_.queue_seconds += statistics.queue_seconds();
  counts_.device_seconds += statistics.device_seconds();
  counts_.batch_items += statistics.batch_items();
}

void LoadClient::CountFailed(const absl::StatusOr<AttendAnswer>& answer) {
  ++counts_.failed_steps;
  if (!answer.ok()) {
    counts_.failed_items[answer.status().code()] += options_.sequences;
    return;
  }
  for (int i = 0; i < answer->num_items(); ++i) {
    const v1::ItemStatus& status = answer->result(i).status();
    if (status.code() != 0) ++counts_.failed_items[ToStatus(status).code()];
  }
}

LoadCounts LoadClient::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace santa::bench
