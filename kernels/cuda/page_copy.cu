// Copies whole pages in every layer.
//
// Grid: (layer, copy). A block copies one layer's part of one page, each thread 16 bytes at a time, four on their way.
#include "kernels/cuda/page_copy.h"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) PageCopyKernel(const __grid_constant__ PageCopyLaunch launch) {
  const PageCopy copy = launch.copies[blockIdx.y];
  const size_t words = launch.layer_page_bytes / sizeof(uint4);
  uint4* layer = static_cast<uint4*>(launch.pool) + static_cast<size_t>(blockIdx.x) * launch.num_pages * words;
  const uint4* from = layer + copy.from * words;
  uint4* to = layer + copy.to * words;
#pragma unroll 4
  for (size_t i = threadIdx.x; i < words; i += kThreads) to[i] = __ldcs(from + i);
}

}  // namespace

cudaError_t LaunchPageCopy(const PageCopyLaunch& launch, cudaStream_t stream) {
  if (launch.num_copies == 0) return cudaSuccess;
  PageCopyKernel<<<dim3(launch.num_layers, launch.num_copies), kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace santa::cuda
