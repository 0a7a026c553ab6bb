// SKETCHED with a value sketch in one pass: what the sketches say of all tokens, and what the rows correct of that;
// then, as in kernels/cuda/warp_pass.cu, the heads whose sketch is no help by their rows alone.
#include "kernels/cuda/warp_pass.cuh"

namespace santa::cuda {
namespace {

__device__ __forceinline__ int NumFours(const GroupLaunch& group) { return group.decode.num_work / kUnitsOfBlock; }

// Whether the group of a four has a head whose sketch is no help.
__device__ __forceinline__ bool IsAlone(const GroupLaunch& group, int four) {
  return *group.arrays[group.decode.work[kUnitsOfBlock * four].item].alone(blockIdx.x) != 0;
}
// The block's first such four from `four` on, or the number of all. There is hardly ever one, and all are looked at at
// once. All threads call it.
__device__ __forceinline__ int NextAlone(const GroupLaunch& group, int four) {
  bool any = false;
  for (int i = four + threadIdx.x * gridDim.y; i < NumFours(group); i += kGatherThreads * gridDim.y) {
    any |= IsAlone(group, i);
  }
  if (!__syncthreads_or(any)) return NumFours(group);
  while (!IsAlone(group, four)) four += gridDim.y;
  return four;
}

// Grid: (key/value head, as many blocks as run at once), each of which takes the fours that are left.
template <typename Kv, int D, int kBits>
__global__ void __launch_bounds__(kGatherThreads, kBlocksAtOnce<kBits>)
    AlonePassKernel(const __grid_constant__ GroupLaunch group) {
  WaitForEarlierKernel();
#pragma unroll 1
  for (int four = NextAlone(group, blockIdx.y); four < NumFours(group); four = NextAlone(group, four + gridDim.y)) {
    PassFour<Kv, D, kBits, false>(group, four);
    __syncthreads();
  }
}

template <int kBits>
struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D>
  cudaError_t Run() const {
    if constexpr (sizeof(Kv) == 2) {
      const cudaError_t error = WarpPassLauncher<kBits, true>{launch, stream}.template Run<Kv, D>();
      return error == cudaSuccess ? RunAlone<Kv, D>() : error;
    } else {
      return cudaErrorNotSupported;  // as without a pilot
    }
  }

 private:
  template <typename Kv, int D>
  cudaError_t RunAlone() const {
    static const DeviceLimits limits = DeviceLimits::Read();
    const int heads = launch.decode.num_kv_heads, at_once = kBlocksAtOnce<kBits> * limits.multiprocessors;
    GroupLaunch alone = launch;
    alone.splits_of_block = kUnitsOfBlock;
    alone.alone = true;
    const dim3 grid(heads, std::clamp(at_once / heads, 1, launch.decode.num_work / kUnitsOfBlock));
    return LaunchOverlapping(AlonePassKernel<Kv, D, kBits>, alone, grid, kGatherThreads,
                             RingsBytes<Kv, D, kBits, false>(), stream);
  }
};

}  // namespace

cudaError_t LaunchValuePass(const GroupLaunch& launch, cudaStream_t stream) {
  if (!FitsWarps(launch)) return cudaErrorNotSupported;
  return launch.sketch == Sketch::kK8V8 ? DispatchPilot(launch.decode, Launcher<8>{launch, stream})
                                        : DispatchPilot(launch.decode, Launcher<kKeyBits>{launch, stream});
}

}  // namespace santa::cuda
