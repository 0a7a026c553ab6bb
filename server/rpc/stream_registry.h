// The streams that are open, so that a drain can end them.
#ifndef SANTA_SERVER_RPC_STREAM_REGISTRY_H_
#define SANTA_SERVER_RPC_STREAM_REGISTRY_H_

#include <condition_variable>
#include <mutex>
#include <unordered_set>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace santa {

class DrainableStream {
 public:
  virtual ~DrainableStream() = default;
  // Take no more work; end with UNAVAILABLE once the work in flight is answered. Must not call the registry.
  virtual void BeginDrain() = 0;
};

// Thread safe.
class StreamRegistry {
 public:
  explicit StreamRegistry(int max_streams) : max_streams_(max_streams) {}

  // UNAVAILABLE once draining; RESOURCE_EXHAUSTED past max_streams. A stream may get BeginDrain from then on.
  absl::Status Add(DrainableStream* stream);
  void Remove(DrainableStream* stream);

  // UNAVAILABLE once draining.
  absl::Status CheckServing() const;

  // From now on nothing is added; every stream gets BeginDrain. Idempotent.
  void BeginDrain();
  // Waits until no stream is left; false when the time is over.
  bool WaitUntilEmpty(absl::Duration timeout);

 private:
  absl::Status CheckServingLocked() const;

  const int max_streams_;
  mutable std::mutex mutex_;
  std::condition_variable empty_;
  std::unordered_set<DrainableStream*> streams_;
  bool draining_ = false;
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_STREAM_REGISTRY_H_
