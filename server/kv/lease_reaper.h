// Releases sequences whose leases have run out, on a thread of its own.
#ifndef SANTA_SERVER_KV_LEASE_REAPER_H_
#define SANTA_SERVER_KV_LEASE_REAPER_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/time.h"
#include "server/kv/sequence_store.h"

namespace santa {

class LeaseReaper {
 public:
  // Calls store->Expire every `interval` (> 0) and passes `on_expired` (may be empty; called on the reaper's thread)
  // how many sequences went, when any did. The store outlives the reaper.
  LeaseReaper(SequenceStore* store, absl::Duration interval, std::function<void(int64_t)> on_expired);
  ~LeaseReaper();  // Stop()
  LeaseReaper(const LeaseReaper&) = delete;
  LeaseReaper& operator=(const LeaseReaper&) = delete;

  // Returns once the thread has ended; `on_expired` is not called after that. Idempotent; from one thread at a time.
  void Stop();

 private:
  void Loop();

  SequenceStore* const store_;
  const absl::Duration interval_;
  const std::function<void(int64_t)> on_expired_;
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace santa

#endif  // SANTA_SERVER_KV_LEASE_REAPER_H_
