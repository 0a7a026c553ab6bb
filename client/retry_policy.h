#ifndef SANTA_CLIENT_RETRY_POLICY_H_
#define SANTA_CLIENT_RETRY_POLICY_H_

#include "absl/time/time.h"

namespace santa {

// How calls that failed with UNAVAILABLE are tried again.
struct RetryPolicy {
  int max_attempts = 8;  // in a row without progress, the first one included; 1: no retries
  absl::Duration initial_backoff = absl::Milliseconds(50);
  absl::Duration max_backoff = absl::Seconds(5);
  double multiplier = 2.0;  // of the back-off from one attempt to the next; >= 1
  double jitter = 0.25;     // each back-off is multiplied by a uniform draw from [1 - jitter, 1 + jitter]; [0, 1]
};

}  // namespace santa

#endif  // SANTA_CLIENT_RETRY_POLICY_H_
