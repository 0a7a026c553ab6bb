#include "client/attend_stream.h"

#include <algorithm>
#include <chrono>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "ring/step_ring.h"

namespace santa {
namespace {

// How long a stream that nobody waits for may take to end by itself before it is cancelled.
constexpr std::chrono::seconds kGracefulEnd(1);

// Of shared memory.
constexpr size_t kLeastSlotBytes = 64 << 10;
constexpr size_t kMostSlots = 32;

// Callbacks run on the carrier's threads and must not wait there for answers that those threads bring.
thread_local bool running_callbacks = false;

}  // namespace

AttendStream::Impl::Impl(std::shared_ptr<const client_internal::Connection> connection,
                         const AttendStreamOptions& options)
    : connection_(std::move(connection)),
      options_(options),
      shares_memory_(options.share_memory),
      backoff_(connection_->retry) {}

void AttendStream::Impl::Start() {
  timer_ = std::thread([this] { RunTimer(); });
}

void AttendStream::Impl::Close() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  std::vector<Completion> completions = RemoveAll(absl::CancelledError("the stream was closed"));
  if (carrier_ != nullptr) {
    if (!completions.empty()) {
      carrier_->Cancel();
    } else if (writable_ && !writing_) {
      carrier_->EndWrites();
    }  // While a write is in flight or the stream is being opened, GoOn does it.
  }
  room_.notify_all();
  timer_wakeup_.notify_all();
  lock.unlock();
  Run(std::move(completions));
  timer_.join();

  lock.lock();
  const auto ended = [this] { return carrier_ == nullptr && ends_running_ == 0; };
  if (!stream_ended_.wait_until(lock, std::chrono::system_clock::now() + kGracefulEnd, ended)) {
    if (carrier_ != nullptr) carrier_->Cancel();
    stream_ended_.wait(lock, ended);
  }
}

template <typename Make>
void AttendStream::Impl::Submit(size_t bytes, absl::Time deadline, Done done, Make make) {
  std::unique_lock lock(mutex_);
  if (absl::Status status = Admit(lock, bytes, deadline); !status.ok()) {
    ++statistics_.failed;
    lock.unlock();
    std::vector<Completion> completions;
    completions.push_back({std::move(done), std::move(status)});
    return Run(std::move(completions));
  }
  const uint64_t id = next_id_++;
  Pending pending = make(id);
  pending.deadline = deadline;
  pending.done = std::move(done);
  pending_.emplace(id, std::move(pending));
  if (deadline != absl::InfiniteFuture()) {
    deadlines_.emplace(deadline, id);
    WakeTimerBy(deadline);
  }
  if (carrier_ != nullptr) {
    WriteNext();
  } else if (!reconnect_at_) {
    OpenStream();
  }
}

void AttendStream::Impl::Submit(v1::AttendRequest request, absl::Time deadline, Callback done) {
  request.set_request_id(UINT64_MAX);  // as long as an id can get
  const size_t bytes = request.ByteSizeLong();
  Done with_answer = [done = std::move(done)](absl::StatusOr<AttendAnswer> answer) {
    done(answer.ok() ? Result(answer->TakeResponse()) : Result(answer.status()));
  };
  Submit(bytes, deadline, std::move(with_answer), [&request](uint64_t id) {
    request.set_request_id(id);
    const int items = request.items_size();
    return Pending{.request = std::make_shared<const v1::AttendRequest>(std::move(request)),
                   .placed = nullptr,
                   .items = items,
                   .deadline = {},
                   .done = nullptr};
  });
}

absl::StatusOr<PlacedStep> AttendStream::Impl::Place(const v1::AttendRequest& request) {
  size_t bytes = 0;
  for (int i = 0; i < request.items_size(); ++i) {
    const v1::AttendItem& item = request.items(i);
    for (const auto& [name, present, tensor] :
         {std::tuple("q", item.has_q(), &item.q()), std::tuple("k", item.has_k(), &item.k()),
          std::tuple("v", item.has_v(), &item.v())}) {
      if (!present) continue;
      const absl::StatusOr<size_t> data = DataBytes(*tensor);
      if (!data.ok() || !tensor->data().empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("items[", i, "].", name, ": ",
                         data.ok() ? "it has data; what is placed has dtype and shape" : data.status().message()));
      }
      if (__builtin_add_overflow(bytes, *data, &bytes)) bytes = SIZE_MAX;
    }
  }
  const std::lock_guard lock(mutex_);
  if (absl::Status status = CheckSize(bytes); !status.ok()) return status;
  client_internal::ClientRing* const ring = writable_ ? carrier_->ring() : nullptr;
  std::unique_ptr<PlacedRequest> placed = ring != nullptr ? ring->Place(request) : nullptr;
  return PlacedStep(placed != nullptr ? std::move(placed) : std::make_unique<PlacedRequest>(request));
}

void AttendStream::Impl::Submit(std::unique_ptr<PlacedRequest> request, absl::Time deadline, PlacedCallback done) {
  Submit(request->bytes(), deadline, std::move(done), [&request](uint64_t id) {
    Pending pending;
    pending.items = static_cast<int>(request->rooms().size());
    if (request->ring() != nullptr) {
      pending.placed = std::move(request);
    } else {
      pending.request = request->ToMessage(id);
    }
    return pending;
  });
}

absl::Status AttendStream::Impl::CheckSize(size_t bytes) const {
  const int64_t limit = connection_->info.limits().max_message_bytes();
  if (limit <= 0 || bytes <= static_cast<size_t>(limit)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the request has ", bytes, " bytes; the server takes up to ", limit, " (max_message_bytes)"));
}

// Waits for room; an error means that the request is not accepted.
absl::Status AttendStream::Impl::Admit(std::unique_lock<std::mutex>& lock, size_t bytes, absl::Time deadline) {
  ++statistics_.submitted;
  if (absl::Status status = CheckSize(bytes); !status.ok()) return status;
  largest_request_ = std::max(largest_request_, bytes);
  const auto has_room = [this] { return closed_ || running_callbacks || pending_.size() < options_.max_in_flight; };
  if (deadline == absl::InfiniteFuture()) {
    room_.wait(lock, has_room);
  } else if (absl::Now() >= deadline || !room_.wait_until(lock, absl::ToChronoTime(deadline), has_room)) {
    return absl::DeadlineExceededError("the deadline passed before the request was sent");
  }
  return closed_ ? absl::CancelledError("the stream was closed") : absl::OkStatus();
}

AttendStreamStatistics AttendStream::Impl::statistics() const {
  const std::lock_guard lock(mutex_);
  return statistics_;
}

void AttendStream::Impl::OpenStream() {
  reconnect_at_.reset();
  next_to_write_ = 1;
  std::unique_ptr<AttendCarrier> carrier;
  if (shares_memory_) {
    const size_t slot_bytes = std::max(kLeastSlotBytes, 2 * largest_request_);  // requests may grow
    carrier = client_internal::MakeRingCarrier(*connection_, *this, std::min(slot_bytes, MostSlotBytes()),
                                               std::min(options_.max_in_flight, kMostSlots));
  } else {
    carrier = client_internal::MakeStreamCarrier(*connection_, *this);
    ++statistics_.streams_opened;
  }
  carrier_ = carrier.release();
  writable_ = !shares_memory_;
  writing_ = false;
  // A carrier runs nothing of ours inside these calls, so holding the mutex is safe.
  carrier_->Start();
  WriteNext();
}

void AttendStream::Impl::WriteNext() {
  while (writable_ && !writing_) {
    const auto next = pending_.lower_bound(next_to_write_);
    if (next == pending_.end()) return;
    next_to_write_ = next->first + 1;
    if (next->first < never_written_) {
      ++statistics_.requests_resent;
    } else {
      never_written_ = next_to_write_;
    }
    writing_ = !Write(next->first, next->second);
  }
}

bool AttendStream::Impl::Write(uint64_t id, Pending& pending) {
  if (pending.placed == nullptr) return carrier_->Write(pending.request);
  if (client_internal::ClientRing* const ring = carrier_->ring(); ring == pending.placed->ring()) {
    ring->Send(*pending.placed, id);
    return true;
  }
  // It lies in the memory of a stream that has ended.
  pending.request = pending.placed->ToMessage(id);
  pending.placed.reset();
  return carrier_->Write(pending.request);
}

void AttendStream::Impl::OnOpened() {
  const std::lock_guard lock(mutex_);
  ++statistics_.streams_opened;
  statistics_.shares_memory = true;
  writable_ = true;
  GoOn();
}

void AttendStream::Impl::OnWritten() {
  const std::lock_guard lock(mutex_);
  writing_ = false;
  GoOn();
}

void AttendStream::Impl::GoOn() {
  WriteNext();
  if (closed_ && writable_ && !writing_) carrier_->EndWrites();
}

void AttendStream::Impl::OnAnswer(AttendAnswer answer) {
  std::vector<Completion> completions;
  {
    const std::lock_guard lock(mutex_);
    backoff_.Reset();
    const auto pending = pending_.find(answer.request_id());
    if (pending == pending_.end()) {
      ++statistics_.unknown_responses;
      return;
    }
    const int items = pending->second.items;
    if (answer.num_items() == items) {
      ++statistics_.answered;
      completions.push_back(Remove(pending, std::move(answer)));
    } else {
      ++statistics_.failed;
      completions.push_back(
          Remove(pending, absl::InternalError(absl::StrCat("the server answered ", items, " items with ",
                                                           answer.num_items(), " results"))));
    }
  }
  Run(std::move(completions));
}

void AttendStream::Impl::OnReadsEnd() {
  const std::lock_guard lock(mutex_);
  writable_ = false;
}

// Whether the next stream is to be of another kind, or memory, than the one that ended so; that breaks nothing, and no
// attempt has failed.
bool AttendStream::Impl::ChooseAnother(const AttendCarrier& carrier, const grpc::Status& status) {
  if (!shares_memory_) return false;
  if (carrier.outgrown_by() > 0 && carrier.outgrown_by() <= MostSlotBytes()) {
    largest_request_ = carrier.outgrown_by();
    return true;
  }
  if (status.ok() || (client_internal::IsRetryable(status.error_code()) && carrier.outgrown_by() == 0)) return false;
  shares_memory_ = false;
  return true;
}

size_t AttendStream::Impl::MostSlotBytes() const {
  const int64_t limit = connection_->info.limits().max_message_bytes();
  return static_cast<size_t>(limit > 0 ? std::min(limit, kMaxRingSlotBytes) : kMaxRingSlotBytes);
}

void AttendStream::Impl::OnEnd(std::unique_ptr<AttendCarrier> carrier, const grpc::Status& status) {
  std::vector<Completion> completions;
  {
    const std::lock_guard lock(mutex_);
    const bool other_carrier = ChooseAnother(*carrier, status);
    carrier.reset();
    carrier_ = nullptr;
    statistics_.shares_memory = false;
    ++ends_running_;
    if (closed_ || pending_.empty()) {
      // Nobody waits for another stream.
    } else if (other_carrier) {
      OpenStream();
    } else {
      absl::Status error = status.ok() ? absl::UnavailableError("the server ended the stream before it answered")
                                       : client_internal::ToAbseil(status);
      const bool retryable = status.ok() || client_internal::IsRetryable(status.error_code());
      if (retryable && backoff_.MayRetry()) {
        reconnect_at_ = absl::Now() + backoff_.Delay();
        WakeTimerBy(*reconnect_at_);
      } else {
        if (retryable) {
          error = absl::UnavailableError(
              absl::StrCat("no answer in ", backoff_.failures(), " attempts; the last: ", error.message()));
        }
        completions = RemoveAll(error);
        backoff_.Reset();
      }
    }
  }
  Run(std::move(completions));
  const std::lock_guard lock(mutex_);
  --ends_running_;
  stream_ended_.notify_all();  // with the mutex held: Close may destroy this object as soon as it is free
}

AttendStream::Impl::Completion AttendStream::Impl::Remove(std::map<uint64_t, Pending>::iterator pending,
                                                          absl::StatusOr<AttendAnswer> result) {
  Completion completion{std::move(pending->second.done), std::move(result), std::move(pending->second.request)};
  deadlines_.erase({pending->second.deadline, pending->first});
  pending_.erase(pending);
  room_.notify_one();
  return completion;
}

std::vector<AttendStream::Impl::Completion> AttendStream::Impl::RemoveAll(const absl::Status& status) {
  std::vector<Completion> completions;
  statistics_.failed += static_cast<int64_t>(pending_.size());
  while (!pending_.empty()) completions.push_back(Remove(pending_.begin(), status));
  return completions;
}

std::vector<AttendStream::Impl::Completion> AttendStream::Impl::RemoveExpired(absl::Time now) {
  std::vector<Completion> completions;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    ++statistics_.failed;
    completions.push_back(
        Remove(pending_.find(deadlines_.begin()->second),
               absl::DeadlineExceededError("the deadline passed; the server may or may not have taken the step")));
  }
  return completions;
}

void AttendStream::Impl::WakeTimerBy(absl::Time time) {
  if (time < timer_wakes_at_) timer_wakeup_.notify_one();
}

void AttendStream::Impl::RunTimer() {
  std::unique_lock lock(mutex_);
  while (!closed_) {
    const absl::Time now = absl::Now();
    std::vector<Completion> expired = RemoveExpired(now);
    if (!expired.empty()) {
      lock.unlock();
      Run(std::move(expired));
      lock.lock();
      continue;
    }
    if (reconnect_at_ && *reconnect_at_ <= now) {
      // Requests may have run out of time meanwhile; then the next Submit connects.
      reconnect_at_.reset();
      if (!pending_.empty()) OpenStream();
    }
    if (reconnect_at_ && !connection_->connected()) {
      constexpr absl::Duration kTurn = absl::Milliseconds(10);  // so soon are the times looked at again
      lock.unlock();
      connection_->WaitForChannel(std::min(*reconnect_at_, now + kTurn));
      lock.lock();
      continue;
    }
    timer_wakes_at_ = reconnect_at_.value_or(absl::InfiniteFuture());
    if (!deadlines_.empty()) timer_wakes_at_ = std::min(timer_wakes_at_, deadlines_.begin()->first);
    if (timer_wakes_at_ == absl::InfiniteFuture()) {
      timer_wakeup_.wait(lock);
    } else {
      timer_wakeup_.wait_until(lock, absl::ToChronoTime(timer_wakes_at_));
    }
    timer_wakes_at_ = absl::InfinitePast();  // awake: it looks at the new times anyway
  }
}

void AttendStream::Impl::Run(std::vector<Completion> completions) {
  const bool nested = running_callbacks;
  running_callbacks = true;
  for (Completion& completion : completions) completion.done(std::move(completion.result));
  running_callbacks = nested;
}

AttendStream::AttendStream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) { impl_->Start(); }

AttendStream::~AttendStream() { impl_->Close(); }

std::future<AttendStream::Result> AttendStream::Submit(v1::AttendRequest request, absl::Time deadline) {
  auto promise = std::make_shared<std::promise<Result>>();
  std::future<Result> future = promise->get_future();
  impl_->Submit(std::move(request), deadline, [promise](Result result) { promise->set_value(std::move(result)); });
  return future;
}

void AttendStream::Submit(v1::AttendRequest request, absl::Time deadline, Callback done) {
  impl_->Submit(std::move(request), deadline, std::move(done));
}

AttendStream::Result AttendStream::Attend(v1::AttendRequest request, absl::Time deadline) {
  return Submit(std::move(request), deadline).get();
}

absl::StatusOr<PlacedStep> AttendStream::Place(const v1::AttendRequest& request) { return impl_->Place(request); }

void AttendStream::Submit(PlacedStep step, absl::Time deadline, PlacedCallback done) {
  impl_->Submit(std::move(step.request_), deadline, std::move(done));
}

AttendStreamStatistics AttendStream::statistics() const { return impl_->statistics(); }

}  // namespace santa
