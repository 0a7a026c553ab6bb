// SKETCHED by its rows alone: answers are those of kernels/cuda/one_pass.cu bit for bit.
#include "kernels/cuda/warp_pass.cuh"

namespace santa::cuda {

bool SupportsWarpPass(const GroupLaunch& launch) { return FitsWarps(launch) && !launch.corrects(); }

cudaError_t LaunchWarpPass(const GroupLaunch& launch, cudaStream_t stream) {
  return DispatchPilot(launch.decode, WarpPassLauncher<kKeyBits, false>{launch, stream});
}

}  // namespace santa::cuda
