// Starting the kernels of kernels/cuda/group_draw.h.
#ifndef SANTA_KERNELS_CUDA_GROUP_LAUNCH_CUH_
#define SANTA_KERNELS_CUDA_GROUP_LAUNCH_CUH_

#include "kernels/cuda/group_draw.h"
#include "kernels/cuda/launch.cuh"

namespace santa::cuda {

// On a grid of (key/value heads, work, parts of a group's heads).
inline cudaError_t LaunchGroup(void (*kernel)(GroupLaunch), const GroupLaunch& launch, int threads, int shared_bytes,
                               cudaStream_t stream, int head_parts = 1) {
  const dim3 grid(launch.decode.num_kv_heads, launch.decode.num_work, head_parts);
  return LaunchOverlapping(kernel, launch, grid, threads, shared_bytes, stream);
}

// launcher.Run<Kv, D>() for the launch's cache, of the shapes that may have a pilot (kernels/cuda/decode_plan.cc), or
// cudaErrorNotSupported.
template <typename Kv, typename Launcher>
cudaError_t DispatchPilotDim(const DecodeLaunch& launch, const Launcher& launcher) {
  switch (launch.head_dim) {
    case 64:
      return launcher.template Run<Kv, 64>();
    case 128:
      return launcher.template Run<Kv, 128>();
    default:
      return cudaErrorNotSupported;
  }
}
template <typename Launcher>
cudaError_t DispatchPilot(const DecodeLaunch& launch, const Launcher& launcher) {
  switch (launch.dtype) {
    case DType::kBFloat16:
      return DispatchPilotDim<__nv_bfloat16>(launch, launcher);
    case DType::kFloat16:
      return DispatchPilotDim<__half>(launch, launcher);
    case DType::kFloat8E4M3:
      return DispatchPilotDim<__nv_fp8_e4m3>(launch, launcher);
    default:
      return cudaErrorNotSupported;
  }
}

// Counts a block in; whether it is the last of `count` that work on the group. All threads call it, after a barrier
// behind what they wrote.
__device__ __forceinline__ bool IsLastOfGroup(const DecodeLaunch& launch, int item_index, int kv_head, int count,
                                              bool& shared_last) {
  if (threadIdx.x == 0) {
    unsigned* ticket = launch.tickets + 2 * (item_index * launch.num_kv_heads + kv_head);
    __threadfence();
    shared_last = atomicAdd(ticket, 1) + 1 == count;
    if (shared_last) *ticket = 0;
    __threadfence();
  }
  __syncthreads();
  return shared_last;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_LAUNCH_CUH_
