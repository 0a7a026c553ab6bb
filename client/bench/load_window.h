// The measured time of a load.
#ifndef SANTA_CLIENT_BENCH_LOAD_WINDOW_H_
#define SANTA_CLIENT_BENCH_LOAD_WINDOW_H_

#include <atomic>
#include <chrono>

namespace santa::bench {

using Clock = std::chrono::steady_clock;

// Before `begin` is the warm-up. The load ends with `end`, which may be brought forward meanwhile.
struct LoadWindow {
  Clock::time_point begin;
  std::atomic<Clock::time_point> end;

  bool Contains(Clock::time_point time) const { return time >= begin && time < end.load(); }
};

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_LOAD_WINDOW_H_
