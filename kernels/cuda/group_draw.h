// The methods that draw once for a whole group (kernels/sampling/inclusion.h): COORDINATED, SKETCHED. Three kernels,
// one after another:
//
//     ScoreKeys, ScoreSketch   scores of all visible tokens, from K or from its sketch, to scratch as codes; each
//                              split's softmax sums
//     FindThreshold            each group's histogram of a_i, and from it kappa
//     GatherGroup              which rows are read, the weighted sum of those rows, and the answer
//
// Where keys are feature-major, ScoreFeatureCodes takes the place of ScoreKeys.
//
// Two, where a pilot stands for all visible tokens (kernels/sampling/pilot.h): then nothing goes through scratch but
// the splits' partial results.
//
//     PilotThreshold           scores of the pilot's tokens, and from them kappa
//     OnePass                  a split's scores, which of its rows are read, their weighted sum, and the answer; where
//     WarpPass                 there are many, by a warp each
//
// SKETCHED with a value sketch has in their place
//
//     ScoreSketchValues        that, and the sum over all tokens of what the sketches say of their values
//     GatherCorrections        which rows are read, by how much they differ from what the sketches say, and the answer
//     GatherCorrections        once more for the heads whose sketch is no help: their rows stand alone
//
// and by a pilot
//
//     ValuePass                a split's scores, what the sketches say of its values, which of its rows are read, by
//                              how much these differ from that, and the answer; then, as WarpPass, the other heads
//
// An item with a target error (kernels/sampling/target_error.h) has had its pilot draw then, and goes on:
//
//     AimAtTarget              kappa for the target, from what the pilot said of its error
//     GatherGroup              likewise, or GatherCorrections
#ifndef SANTA_KERNELS_CUDA_GROUP_DRAW_H_
#define SANTA_KERNELS_CUDA_GROUP_DRAW_H_

#include <cstdint>

#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/group_layout.h"
#include "kernels/types.h"

namespace santa::cuda {

// Pointers name memory that the host has filled before the launch.
struct GroupLaunch {
  DecodeLaunch decode;  // of which `work` names items of one method only, a whole split a unit; of a pilot's in fours
  // [as many as decode.items]: at the same place as the item, over GroupArrays::bytes() of device memory, aligned to
  // 256 bytes; others are not read. What that holds beforehand does not matter; nothing else may use it until the
  // launch has ended.
  const GroupArrays* arrays = nullptr;
  Method method = Method::kCoordinated;
  Sketch sketch = Sketch::kNone;  // the cache's
  int32_t longest_split = 0;      // tokens, a multiple of 256, at most 4096
  int32_t most_rows = 0;          // that a group may read of an item: sample_count, and a page beside it
  bool has_targets = false;       // any item
  // [num_pilots]: the items, where the threshold of all of them is a pilot's; else null.
  const int32_t* pilots = nullptr;
  int32_t num_pilots = 0;
  // How many splits, one after the other, a block takes. Changes no answer. Set by LaunchGroupDraw.
  int32_t splits_of_block = 1;
  bool second_draw = false;  // after AimAtTarget. Likewise.
  bool alone = false;        // For heads whose sketch is no help. Likewise.
  // Of OnePass: two a multiprocessor at most, so that each may have a long ring. Of WarpPass: they all run at once.
  // Likewise.
  bool few_blocks = false;
  // Of OnePass: a split's dot products stay in shared memory. Likewise.
  bool keeps_dots = false;

  SANTA_HOST_DEVICE bool corrects() const { return Corrects(method, sketch); }
};

// Answers every item of the launch: visible tokens more than sample_count >= 1. cudaErrorNotSupported for a shape that
// the exact kernel has not got either, for a value sketch of an fp8 cache, and for a pilot of what has none
// (kernels/cuda/decode_plan.h). Asynchronous; nothing is allocated.
cudaError_t LaunchGroupDraw(const GroupLaunch& launch, cudaStream_t stream);

// Its steps.
cudaError_t LaunchScoreKeys(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchScoreFeatureCodes(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchScoreSketch(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchFindThreshold(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchAimAtTarget(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchGatherGroup(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchScoreSketchValues(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchGatherCorrections(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchPilotThreshold(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchOnePass(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchWarpPass(const GroupLaunch& launch, cudaStream_t stream);
cudaError_t LaunchValuePass(const GroupLaunch& launch, cudaStream_t stream);

// Whether there is a WarpPass for the launch's shape: its answers are those of OnePass bit for bit.
bool SupportsWarpPass(const GroupLaunch& launch);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_DRAW_H_
