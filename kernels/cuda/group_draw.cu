#include "kernels/cuda/group_draw.h"

#include <algorithm>

#include "kernels/cuda/launch.cuh"

namespace santa::cuda {
namespace {

// Splits of a multiprocessor up to which a block for each is faster than a warp.
constexpr int kSplitsOfOnePass = 4;

cudaError_t LaunchScores(const GroupLaunch& launch, cudaStream_t stream) {
  if (launch.decode.feature_queries != nullptr) return LaunchScoreFeatureCodes(launch, stream);
  if (launch.corrects()) return LaunchScoreSketchValues(launch, stream);
  return launch.method == Method::kSketched ? LaunchScoreSketch(launch, stream) : LaunchScoreKeys(launch, stream);
}

cudaError_t LaunchGather(GroupLaunch launch, cudaStream_t stream) {
  if (!launch.corrects()) return LaunchGatherGroup(launch, stream);
  if (const cudaError_t error = LaunchGatherCorrections(launch, stream)) return error;
  launch.alone = true;
  return LaunchGatherCorrections(launch, stream);
}

}  // namespace

cudaError_t LaunchGroupDraw(const GroupLaunch& whole, cudaStream_t stream) {
  static const DeviceLimits limits = DeviceLimits::Read();
  const int num_splits = whole.decode.num_kv_heads * whole.decode.num_work;
  if (whole.pilots != nullptr) {
    if (const cudaError_t error = LaunchPilotThreshold(whole, stream)) return error;
    if (whole.corrects()) return LaunchValuePass(whole, stream);
    const bool many = num_splits > kSplitsOfOnePass * limits.multiprocessors;
    return many && SupportsWarpPass(whole) ? LaunchWarpPass(whole, stream) : LaunchOnePass(whole, stream);
  }
  // A block's way from codes to rows is a long one: where there are more splits than the device works on at once, one
  // block goes it for several.
  constexpr int kBlocksAtOnce = 6;  // of a multiprocessor
  const int at_once = std::max(1, limits.multiprocessors * kBlocksAtOnce);
  GroupLaunch launch = whole;
  launch.splits_of_block =
      std::clamp(num_splits / at_once, 1, std::clamp(kMaxBlockTokens / launch.longest_split, 1, kMaxBlockSplits));
  cudaError_t error = LaunchScores(launch, stream);
  if (error == cudaSuccess) error = LaunchFindThreshold(launch, stream);
  if (error == cudaSuccess) error = LaunchGather(launch, stream);
  if (error != cudaSuccess || !launch.has_targets) return error;
  error = LaunchAimAtTarget(launch, stream);
  launch.second_draw = true;
  if (error == cudaSuccess) error = LaunchGather(launch, stream);
  return error;
}

}  // namespace santa::cuda
