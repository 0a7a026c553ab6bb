// The end of a wave: word to the host that all its kernels are done, for a thread that watches for it. An event tells
// the same later, and takes calls to record, to wait for and to read.
#ifndef SANTA_KERNELS_CUDA_WAVE_END_H_
#define SANTA_KERNELS_CUDA_WAVE_END_H_

#include <cuda_runtime.h>

#include <cstdint>

namespace santa::cuda {

// In pinned memory.
struct WaveWord {
  uint64_t ended = 0;        // the wave's number, once everything that it writes is there
  uint64_t nanoseconds = 0;  // for which it had the device
};

struct WaveEnd {
  WaveWord* word = nullptr;
  uint64_t number = 0;
  // Device memory, by kernels/cuda/device_clock.cuh: when the wave's upload began, and when the wave ahead on the same
  // stream ended, which becomes this one's end.
  const uint64_t* began = nullptr;
  uint64_t* last_end = nullptr;
  // What kernels counted goes from device memory into pinned memory.
  const uint4* counts = nullptr;
  uint4* counts_to = nullptr;
  int32_t num_counts = 0;
};

// Behind the wave's kernels.
cudaError_t LaunchWaveEnd(const WaveEnd& end, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_WAVE_END_H_
