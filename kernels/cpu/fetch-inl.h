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

// Bytes to fetch in each of `steps` steps, so that memory is busy in all of them; without steps, none.
HWY_INLINE int64_t FetchStep(const Ahead& ahead, int steps) {
  return steps == 0 ? 0 : (ahead.bytes + steps - 1) / steps;
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_FETCH_INL_H_
