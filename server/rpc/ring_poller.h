// The thread that looks for requests in shared memory, for all calls that have some.
//
// It watches without sleeping while work is in flight on a device that leaves the CPU to others, and otherwise for as
// long as work usually comes soon (adaptive_watch.h). Then it sleeps until a caller rings.
#ifndef SANTA_SERVER_RPC_RING_POLLER_H_
#define SANTA_SERVER_RPC_RING_POLLER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "ring/doorbell.h"

namespace santa {

// A call that has a ring. Called on the poller's thread, one call after another.
class PolledCall {
 public:
  virtual ~PolledCall() = default;
  // Takes one request, if there is any; whether there was.
  virtual bool Poll() = 0;
  virtual void BeginSleep() = 0;  // the poller's; those of the ring
  virtual void EndSleep() = 0;
};

// Thread safe.
class RingPoller {
 public:
  // watch_in_flight: the device is not the CPU. max_bytes: of memory, in all rings together; 0: there are none. After
  // each round in which calls took requests, the poller's thread calls `taken`, with no lock held.
  RingPoller(bool watch_in_flight, int64_t max_bytes, std::function<void()> taken)
      : watch_in_flight_(watch_in_flight), max_bytes_(max_bytes), taken_(std::move(taken)) {}
  ~RingPoller();  // no call is left
  RingPoller(const RingPoller&) = delete;
  RingPoller& operator=(const RingPoller&) = delete;

  bool watch_in_flight() const { return watch_in_flight_; }

  // From now on the call is polled. Starts the thread, the first time. The doorbell's name; RESOURCE_EXHAUSTED: the
  // memory is given away.
  absl::StatusOr<std::string> Add(PolledCall* call, int64_t bytes);
  // When it returns, the call is not being polled and will not be. Not with a lock held that Poll takes.
  void Remove(PolledCall* call, int64_t bytes);

  // Steps of all rings that are not answered yet.
  void StepBegins() { in_flight_.fetch_add(1, std::memory_order_relaxed); }
  void StepEnds() { in_flight_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  void Run();
  bool PollAll();
  void Sleep();
  absl::Status StartThread();

  const bool watch_in_flight_;
  const int64_t max_bytes_;
  const std::function<void()> taken_;
  std::atomic<int> in_flight_ = 0;
  std::atomic<int> waiting_ = 0;  // for the mutex, which a poller that never sleeps would hardly leave to anybody
  std::atomic<bool> stopping_ = false;

  std::mutex mutex_;  // held while calls are polled
  std::vector<PolledCall*> calls_;
  bool asleep_ = false;
  int64_t bytes_ = 0;

  std::optional<Doorbell> doorbell_;
  std::optional<Doorbell> bell_of_our_own_;
  std::thread thread_;
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_RING_POLLER_H_
