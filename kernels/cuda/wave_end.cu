// Grid: one block of one warp.
#include "kernels/cuda/wave_end.h"

#include "kernels/cuda/device_clock.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace santa::cuda {
namespace {

constexpr int kThreads = 32;

// What the thread wrote, or saw written, is there for a host that finds the value.
__device__ __forceinline__ void StoreReleaseToHost(uint64_t* to, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

__global__ void __launch_bounds__(kThreads) WaveEndKernel(const __grid_constant__ WaveEnd end) {
  LetLaterKernelStart();  // which can read its tokens meanwhile (kernels/cuda/kv_append.cu)
  WaitForEarlierKernel();
  for (int i = threadIdx.x; i < end.num_counts; i += kThreads) end.counts_to[i] = end.counts[i];
  __syncwarp();
  if (threadIdx.x != 0) return;
  const uint64_t now = DeviceClock(), began = *end.began, last_end = *end.last_end;
  *end.last_end = now;
  end.word->nanoseconds = now - (began > last_end ? began : last_end);
  StoreReleaseToHost(&end.word->ended, end.number);
}

}  // namespace

cudaError_t LaunchWaveEnd(const WaveEnd& end, cudaStream_t stream) {
  return LaunchOverlapping(WaveEndKernel, end, dim3(1), kThreads, 0, stream);
}

}  // namespace santa::cuda
