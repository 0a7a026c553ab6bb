// What the kernels of kernels/cuda/stored_scores.h share.
#ifndef SANTA_KERNELS_CUDA_STORED_LAUNCH_CUH_
#define SANTA_KERNELS_CUDA_STORED_LAUNCH_CUH_

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/stored_layout.h"
#include "kernels/cuda/stored_scores.h"

namespace santa::cuda {

// Starts the copy of 16 bytes of scratch into shared memory; zeros, and nothing is read, where not `valid`.
__device__ __forceinline__ void CopyScratch16(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// An item with its scratch.
struct StoredView {
  StoredLines lines;
  StoredArrays arrays;

  __device__ StoredView(const DecodeLaunch& launch, const DeviceItem& item, const StoredItem& stored)
      : lines(LinesOf(stored.method, item.begin, item.end, item.sample_count)),
        arrays(stored.scratch, stored.method, launch.num_kv_heads * launch.group_size, lines, item.sample_count) {}
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_STORED_LAUNCH_CUH_
