// S2ANTA_PROP (arXiv 2605.01910) with systematic budgets on tiles of 256 tokens, in one launch.
#ifndef SANTA_KERNELS_CUDA_S2ANTA_PROP_H_
#define SANTA_KERNELS_CUDA_S2ANTA_PROP_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/stored_scores.h"

namespace santa::cuda {

struct PropLaunch {
  DecodeLaunch decode;                 // of which `work` names these items only, each item's splits one after another
  const StoredItem* stored = nullptr;  // [as many as decode.items]: at the same place as the item; others are not read
  int32_t most_splits = 0;             // of one item
};

// Answers every item of the launch: visible tokens more than sample_count, and no more tiles than that.
// cudaErrorNotSupported for a shape that the exact kernel has not got either. Asynchronous; nothing is allocated.
cudaError_t LaunchS2antaProp(const PropLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_S2ANTA_PROP_H_
