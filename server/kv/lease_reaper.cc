#include "server/kv/lease_reaper.h"

#include <utility>

#include "absl/time/clock.h"

namespace santa {

LeaseReaper::LeaseReaper(SequenceStore* store, absl::Duration interval, std::function<void(int64_t)> on_expired)
    : store_(store), interval_(interval), on_expired_(std::move(on_expired)), thread_([this] { Loop(); }) {}

LeaseReaper::~LeaseReaper() { Stop(); }

void LeaseReaper::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void LeaseReaper::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_.wait_for(lock, absl::ToChronoMilliseconds(interval_), [this] { return stopping_; })) {
    lock.unlock();
    const int64_t expired = store_->Expire(absl::Now());
    if (expired > 0 && on_expired_) on_expired_(expired);
    lock.lock();
  }
}

}  // namespace santa
