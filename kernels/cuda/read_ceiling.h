#ifndef SANTA_KERNELS_CUDA_READ_CEILING_H_
#define SANTA_KERNELS_CUDA_READ_CEILING_H_

#include <cuda_runtime.h>

#include <cstddef>

namespace santa::cuda {

// How a kernel that only reads goes through memory; which is fastest depends on the card and the size: a benchmark
// takes the best.
inline constexpr int kReadVariants = 6;  // [0, kReadVariants)

// Reads `bytes` (a multiple of 16) bytes of device memory once, and does nothing else with them: the time that no
// kernel that needs these bytes can beat by much. sink: 4 bytes of device memory, never written in practice.
// Asynchronous.
cudaError_t LaunchRead(const void* data, size_t bytes, unsigned* sink, int variant, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_READ_CEILING_H_
