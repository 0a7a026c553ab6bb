// Exponential back-off with jitter.
#ifndef SANTA_CLIENT_BACKOFF_H_
#define SANTA_CLIENT_BACKOFF_H_

#include <algorithm>
#include <random>

#include "absl/time/time.h"
#include "client/retry_policy.h"

namespace santa::client_internal {

// Not thread safe.
class Backoff {
 public:
  explicit Backoff(const RetryPolicy& policy, uint64_t seed = std::random_device()())
      : policy_(policy), random_(seed), next_(policy.initial_backoff) {}

  // Counts an attempt that failed. True when another one may follow, after Delay().
  bool MayRetry() { return ++failures_ < policy_.max_attempts; }

  int failures() const { return failures_; }

  // How long to wait before the next attempt; each call lengthens the one after it.
  absl::Duration Delay() {
    const absl::Duration base = std::min(next_, policy_.max_backoff);
    next_ = base * policy_.multiplier;
    return base * std::uniform_real_distribution<double>(1 - policy_.jitter, 1 + policy_.jitter)(random_);
  }

  // After progress: start over.
  void Reset() {
    failures_ = 0;
    next_ = policy_.initial_backoff;
  }

 private:
  const RetryPolicy policy_;
  std::mt19937_64 random_;
  absl::Duration next_;
  int failures_ = 0;
};

}  // namespace santa::client_internal

#endif  // SANTA_CLIENT_BACKOFF_H_
