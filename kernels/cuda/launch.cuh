// From a launch's run-time shape to a kernel compiled for it.
#ifndef SANTA_KERNELS_CUDA_LAUNCH_CUH_
#define SANTA_KERNELS_CUDA_LAUNCH_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/cuda/decode_launch.h"

namespace santa::cuda {

// What the device has of what blocks share.
struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;       // of a multiprocessor
  int reserved_bytes = 0;     // of these, for each block that it runs
  bool has_clusters = false;  // of blocks (kernels/cuda/cluster.cuh)

  static DeviceLimits Read() {
    DeviceLimits limits;
    int device = 0, clusters = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
    limits.has_clusters = clusters != 0;
    cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    cudaDeviceGetAttribute(&limits.reserved_bytes, cudaDevAttrReservedSharedMemoryPerBlock, device);
    return limits;
  }
};

// Shared memory for each of `blocks` blocks that need `shared_bytes`: more than that where all of them run at once, so
// that they spread evenly over the multiprocessors, even those that start while an earlier kernel ends.
inline int SpreadBlocks(int blocks, int shared_bytes) {
  static const DeviceLimits limits = DeviceLimits::Read();
  if (limits.multiprocessors == 0) return shared_bytes;
  const int each = (blocks + limits.multiprocessors - 1) / limits.multiprocessors;  // blocks of a multiprocessor
  const int most = limits.shared_bytes / each - limits.reserved_bytes;
  return std::max(shared_bytes, most / 1024 * 1024);
}

// Allows a kernel's launches on the current device that much dynamic shared memory. The driver is asked only for more
// than it was asked for before: that is a call less for each launch. Any thread may call it.
cudaError_t AllowSharedBytes(const void* kernel, int bytes);
template <typename... Arguments>
cudaError_t AllowSharedBytes(void (*kernel)(Arguments...), int bytes) {
  return AllowSharedBytes(reinterpret_cast<const void*>(kernel), bytes);
}

// Blocks of a kernel that the device runs at once.
template <typename... Arguments>
int ResidentBlocks(void (*kernel)(Arguments...), int threads, int shared_bytes) {
  int each = 0;
  AllowSharedBytes(kernel, shared_bytes);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes);
  return each * DeviceLimits::Read().multiprocessors;
}

// Starts kernel(launch), allowed to overlap the end of the kernel before it: a kernel that reads what earlier ones
// wrote calls WaitForEarlierKernel(), in every block before it ends so that those after it may rely on all.
// cluster: so many blocks of a row of the grid are one, where the device has clusters. Asynchronous.
template <typename Launch>
cudaError_t LaunchOverlapping(void (*kernel)(Launch), const Launch& launch, dim3 grid, int threads, int shared_bytes,
                              cudaStream_t stream, int cluster = 1) {
  if (const cudaError_t error = AllowSharedBytes(kernel, shared_bytes)) return error;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, launch);
}

// On a grid of (key/value heads, work), its blocks spread over the multiprocessors.
inline cudaError_t LaunchDecode(void (*kernel)(DecodeLaunch), const DecodeLaunch& launch, int threads, int shared_bytes,
                                cudaStream_t stream) {
  shared_bytes = SpreadBlocks(launch.num_kv_heads * launch.num_work, shared_bytes);
  return LaunchOverlapping(kernel, launch, dim3(launch.num_kv_heads, launch.num_work), threads, shared_bytes, stream);
}

// launcher.RunHeads<Kv, D, heads>(), for a kernel that pads a group to 4, 8 or 16 heads. Not to 4 for the head
// dimensions that few models have: each kernel takes nvcc seconds for each architecture.
template <typename Kv, int D, int kBlocks, typename Launcher>
cudaError_t DispatchHeads(int group_size, const Launcher& launcher) {
  constexpr bool kCommon = D == 64 || D == 128 || D == 256;
  if constexpr (kBlocks == 2) {
    return launcher.template RunHeads<Kv, D, 16>();
  } else {
    if constexpr (kCommon) {
      if (group_size <= 4) return launcher.template RunHeads<Kv, D, 4>();
    }
    return launcher.template RunHeads<Kv, D, 8>();
  }
}

template <typename Kv, int D, typename Launcher>
cudaError_t DispatchGroup(const DecodeLaunch& launch, const Launcher& launcher) {
  if (launch.group_size < 1 || launch.group_size > 16) return cudaErrorNotSupported;
  return launch.group_size <= 8 ? launcher.template Run<Kv, D, 1>() : launcher.template Run<Kv, D, 2>();
}

template <typename Kv, typename Launcher>
cudaError_t DispatchDim(const DecodeLaunch& launch, const Launcher& launcher) {
  switch (launch.head_dim) {
    case 64:
      return DispatchGroup<Kv, 64>(launch, launcher);
    case 96:
      return DispatchGroup<Kv, 96>(launch, launcher);
    case 128:
      return DispatchGroup<Kv, 128>(launch, launcher);
    case 192:
      return DispatchGroup<Kv, 192>(launch, launcher);
    case 256:
      return DispatchGroup<Kv, 256>(launch, launcher);
    default:
      return cudaErrorNotSupported;
  }
}

// launcher.Run<Kv, D, blocks of 8 heads>() for the launch's cache, or cudaErrorNotSupported.
template <typename Launcher>
cudaError_t Dispatch(const DecodeLaunch& launch, const Launcher& launcher) {
  switch (launch.dtype) {
    case DType::kBFloat16:
      return DispatchDim<__nv_bfloat16>(launch, launcher);
    case DType::kFloat16:
      return DispatchDim<__half>(launch, launcher);
    case DType::kFloat8E4M3:
      return DispatchDim<__nv_fp8_e4m3>(launch, launcher);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_LAUNCH_CUH_
