// The clock of a wave's time on the device.
#ifndef SANTA_KERNELS_CUDA_DEVICE_CLOCK_CUH_
#define SANTA_KERNELS_CUDA_DEVICE_CLOCK_CUH_

#include <cstdint>

namespace santa::cuda {

// Nanoseconds, of one clock for the whole device. It ticks every 32 ns on Hopper, every microsecond on older ones.
__device__ __forceinline__ uint64_t DeviceClock() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds)::"memory");
  return nanoseconds;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_DEVICE_CLOCK_CUH_
