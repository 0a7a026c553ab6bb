// Waiting without sleeping, where that pays.
#ifndef SANTA_RING_ADAPTIVE_WATCH_H_
#define SANTA_RING_ADAPTIVE_WATCH_H_

#include <algorithm>
#include <chrono>
#include <thread>

namespace santa {

// A thread that sleeps takes tens of microseconds to wake, more than a small step's whole way through the server. One
// that watches for work instead takes none, but its core. So it watches for as long as work is likely to come soon: for
// twice the usual gap between two pieces of work, as long as that is short, and not at all once gaps are long. Steps
// that come one after another find the thread awake; on a server that has nothing to do, or little, it sleeps.
//
// Not thread safe.
class AdaptiveWatch {
 public:
  using Duration = std::chrono::steady_clock::duration;

  // Gaps longer than this are slept through.
  static constexpr Duration kLongest = std::chrono::microseconds(500);

  // Watches until `came()`, for at most limit() after the last moment at which it was `busy()`. Whether it came.
  template <typename Came, typename Busy>
  bool For(const Came& came, const Busy& busy) const {
    auto idle_since = std::chrono::steady_clock::now();
    while (!came()) {
      const auto now = std::chrono::steady_clock::now();
      if (busy()) {
        idle_since = now;
      } else if (now - idle_since >= limit()) {
        return false;
      }
      std::this_thread::yield();  // whoever brings the work may need this core
    }
    return true;
  }

  // How long it would watch: twice the usual gap, or 0 where that is above kLongest.
  Duration limit() const { return 2 * usual_gap_ <= kLongest ? 2 * usual_gap_ : Duration::zero(); }

  // The last gap was this long, whether it was watched or slept through. The usual gap follows within a few of them.
  void Learn(Duration gap) { usual_gap_ += (std::min(gap, 2 * kLongest) - usual_gap_) / 4; }

 private:
  Duration usual_gap_ = 2 * kLongest;
};

// A thread's whole wait for its next piece of work: it watches, then sleeps, and learns from how long it took. Not
// thread safe.
class AdaptiveWait {
 public:
  // Until `came()`, or `sleep()` returned, which is to wait for the same. A wait counts from the last moment at which
  // it was `busy()`, and before that from the end of the last wait.
  template <typename Came, typename Busy, typename Sleep>
  void Until(const Came& came, const Busy& busy, const Sleep& sleep) {
    using Clock = std::chrono::steady_clock;
    const auto still_busy = [&] {
      if (!busy()) return false;
      since_ = Clock::now();
      return true;
    };
    if (!watch_.For(came, still_busy)) sleep();
    const auto now = Clock::now();
    watch_.Learn(now - since_);
    since_ = now;
  }

 private:
  AdaptiveWatch watch_;
  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
};

}  // namespace santa

#endif  // SANTA_RING_ADAPTIVE_WATCH_H_
