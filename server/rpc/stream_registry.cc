#include "server/rpc/stream_registry.h"

#include "absl/strings/str_cat.h"

namespace santa {

absl::Status StreamRegistry::Add(DrainableStream* stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Status status = CheckServingLocked(); !status.ok()) return status;
  if (streams_.size() >= static_cast<size_t>(max_streams_)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the server has ", streams_.size(), " streams open, as many as it may; retry when one has ended"));
  }
  streams_.insert(stream);
  return absl::OkStatus();
}

void StreamRegistry::Remove(DrainableStream* stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  streams_.erase(stream);
  if (streams_.empty()) empty_.notify_all();
}

absl::Status StreamRegistry::CheckServing() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return CheckServingLocked();
}

absl::Status StreamRegistry::CheckServingLocked() const {
  return draining_ ? absl::UnavailableError("the server is draining; retry on another one") : absl::OkStatus();
}

void StreamRegistry::BeginDrain() {
  std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
  for (DrainableStream* stream : streams_) stream->BeginDrain();
}

bool StreamRegistry::WaitUntilEmpty(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  return empty_.wait_for(lock, absl::ToChronoNanoseconds(timeout), [this] { return streams_.empty(); });
}

}  // namespace santa
