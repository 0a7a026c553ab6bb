#include "kernels/cuda/stored_scores.h"

#include "kernels/cuda/stored_layout.h"

namespace santa::cuda {

int64_t StoredScratchBytes(Method method, int32_t num_query_heads, int64_t begin, int64_t end, uint32_t sample_count) {
  const StoredLines lines = LinesOf(method, begin, end, sample_count);
  return StoredArrays(nullptr, method, num_query_heads, lines, sample_count).bytes();
}

bool NeedsLongLines(Method method, int64_t begin, int64_t end, uint32_t sample_count) {
  return LinesOf(method, begin, end, sample_count).line_blocks > 1;
}

cudaError_t LaunchStoredScores(const StoredLaunch& launch, cudaStream_t stream) {
  if (launch.num_items == 0) return cudaSuccess;
  cudaError_t error = launch.decode.feature_queries == nullptr ? LaunchStoreScores(launch, stream)
                                                               : LaunchScoreFeatures(launch, stream);
  if (error == cudaSuccess && launch.long_lines) error = LaunchWeighLines(launch, stream);
  if (error == cudaSuccess) error = LaunchPlaceDraws(launch, stream);
  if (error == cudaSuccess) error = LaunchDrawRows(launch, stream);
  if (error == cudaSuccess) error = LaunchGatherRows(launch, stream);
  return error;
}

cudaError_t LaunchAllRows(const StoredLaunch& launch, cudaStream_t stream) {
  cudaError_t error = LaunchScoreFeatures(launch, stream);
  if (error == cudaSuccess) error = LaunchWeighRows(launch, stream);
  if (error == cudaSuccess) error = LaunchGatherRows(launch, stream);
  return error;
}

}  // namespace santa::cuda
