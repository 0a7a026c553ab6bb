// Thread-block clusters: blocks that run at once and reach one another's shared memory. Hopper has them; elsewhere, and
// on the emulated GPU, every cluster is one block.
#ifndef SANTA_KERNELS_CUDA_CLUSTER_CUH_
#define SANTA_KERNELS_CUDA_CLUSTER_CUH_

#include <cuda_runtime.h>

namespace santa::cuda {

#if __CUDA_ARCH__ >= 900 && !defined(SANTA_EMULATED_ARCH)
#define SANTA_CLUSTERS 1
#else
#define SANTA_CLUSTERS 0
#endif

// Of the code being compiled for a device; the host asks the device that it is for (DeviceLimits::has_clusters).
inline constexpr bool kHasClusters = SANTA_CLUSTERS;

// What the blocks of a cluster do together, or a block does alone.
template <bool kClusters>
struct Cluster {
  // Arrives at the first barrier, when nothing has been written yet.
  static __device__ __forceinline__ void Begin() {
#if SANTA_CLUSTERS
    if constexpr (kClusters) __cluster_barrier_arrive_relaxed();
#endif
  }
  // A barrier of all threads: what was written to shared memory before the one is to be seen after the other.
  static __device__ __forceinline__ void Arrive() {
#if SANTA_CLUSTERS
    if constexpr (kClusters) __cluster_barrier_arrive();
#endif
  }
  static __device__ __forceinline__ void Wait() {
#if SANTA_CLUSTERS
    if constexpr (kClusters) return __cluster_barrier_wait();
#endif
    __syncthreads();
  }
  // The same place in the shared memory of the block of that rank: after the first barrier, and before that block's
  // end.
  template <typename T>
  static __device__ __forceinline__ T* SharedOf([[maybe_unused]] int rank, T* mine) {
#if SANTA_CLUSTERS
    if constexpr (kClusters) return static_cast<T*>(__cluster_map_shared_rank(mine, rank));
#endif
    return mine;
  }
};

#undef SANTA_CLUSTERS

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_CLUSTER_CUH_
