#include "server/rpc/ring_poller.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ring/adaptive_watch.h"

namespace santa {

RingPoller::~RingPoller() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  bell_of_our_own_->Ring();
  thread_.join();
}

absl::StatusOr<std::string> RingPoller::Add(PolledCall* call, int64_t bytes) {
  ++waiting_;
  const std::lock_guard<std::mutex> lock(mutex_);
  --waiting_;
  if (bytes > max_bytes_ - bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat("a ring of ", bytes, " bytes is asked for; ", bytes_, " of the ",
                                                     max_bytes_, " bytes for rings (max_shared_bytes) are given away"));
  }
  if (!thread_.joinable()) {
    if (absl::Status status = StartThread(); !status.ok()) return status;
  }
  calls_.push_back(call);
  bytes_ += bytes;
  if (asleep_) call->BeginSleep();  // as the others are
  return doorbell_->name();
}

absl::Status RingPoller::StartThread() {
  absl::StatusOr<Doorbell> doorbell = Doorbell::Open();
  if (!doorbell.ok()) return doorbell.status();
  absl::StatusOr<Doorbell> bell = Doorbell::Find(doorbell->name());
  if (!bell.ok()) return bell.status();
  doorbell_ = *std::move(doorbell);
  bell_of_our_own_ = *std::move(bell);
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

void RingPoller::Remove(PolledCall* call, int64_t bytes) {
  ++waiting_;
  const std::lock_guard<std::mutex> lock(mutex_);
  --waiting_;
  calls_.erase(std::remove(calls_.begin(), calls_.end(), call), calls_.end());
  bytes_ -= bytes;
}

void RingPoller::Run() {
  AdaptiveWait wait;
  while (!stopping_) {
    wait.Until([this] { return stopping_ || PollAll(); },
               [this] { return watch_in_flight_ && in_flight_.load(std::memory_order_relaxed) > 0; },
               [this] { Sleep(); });
  }
}

bool RingPoller::PollAll() {
  while (waiting_.load(std::memory_order_relaxed) > 0) std::this_thread::yield();
  bool any = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (PolledCall* const call : calls_) any |= call->Poll();
  }
  if (any) taken_();
  return any;
}

void RingPoller::Sleep() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    asleep_ = true;
    for (PolledCall* const call : calls_) call->BeginSleep();
  }
  if (!PollAll() && !stopping_) doorbell_->Wait();
  const std::lock_guard<std::mutex> lock(mutex_);
  asleep_ = false;
  for (PolledCall* const call : calls_) call->EndSleep();
}

}  // namespace santa
