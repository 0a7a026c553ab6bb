// Starting the kernels of kernels/cuda/group_draw.h.
#ifndef SANTA_KERNELS_CUDA_GROUP_LAUNCH_CUH_
#define SANTA_KERNELS_CUDA_GROUP_LAUNCH_CUH_

#include "kernels/cuda/group_draw.h"
#include "kernels/cuda/launch.cuh"

namespace santa::cuda {

// Starts kernel(launch) on a grid of (key/value heads, work), allowed to overlap the end of the kernel before it. So
// that a kernel may rely on all those before it, every block calls WaitForEarlierKernel() before it ends.
inline cudaError_t LaunchGroup(void (*kernel)(GroupLaunch), const GroupLaunch& launch, int threads, int shared_bytes,
                               cudaStream_t stream) {
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) {
    return error;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(launch.decode.num_kv_heads, launch.decode.num_work);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, launch);
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_LAUNCH_CUH_
