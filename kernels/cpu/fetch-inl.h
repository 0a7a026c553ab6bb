// Fetching ahead.
#if defined(SANTA_KERNELS_CPU_FETCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_FETCH_INL_H_
#undef SANTA_KERNELS_CPU_FETCH_INL_H_
#else
#define SANTA_KERNELS_CPU_FETCH_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/row_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

// The L2 cache: what is fetched ahead is up to a block away, more than L1 holds.
HWY_INLINE void PrefetchBytes(const uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

// What is fetched beside a loop, spread evenly over it: a core has few misses in flight, and stands still where more
// are asked for at once.
class SpreadFetch {
 public:
  SpreadFetch(const Ahead& ahead, int steps)
      : next_(ahead.begin),
        end_(ahead.begin + ahead.bytes),
        lines_(steps == 0 ? 0 : (ahead.bytes + 64 * int64_t{steps} - 1) / (64 * int64_t{steps})) {}

  HWY_INLINE void Step() {
    for (int64_t line = 0; line < lines_ && next_ < end_; ++line, next_ += 64) __builtin_prefetch(next_, 0, 2);
  }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
  int64_t lines_;  // in a step
};

// Bytes to fetch in each of `steps` steps, so that memory is busy in all of them; without steps, none.
HWY_INLINE int64_t FetchStep(const Ahead& ahead, int steps) {
  return steps == 0 ? 0 : (ahead.bytes + steps - 1) / steps;
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_FETCH_INL_H_
