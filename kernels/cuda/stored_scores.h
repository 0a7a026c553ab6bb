// The methods that need every score before the first draw: SANTA, STRATIFIED, SYSTEMATIC; S2ANTA_FLASH and S2ANTA_PROP
// where a tile is larger than 256 tokens, S2ANTA_PROP with budgets by the largest remainder (arXiv 2605.01910). Five
// kernels, one after another:
//
//     StoreScores   scores of all visible tokens to scratch; for every block of 256 tokens its largest score and the
//                   sum of its masses against that
//     WeighLines    where a block's masses are taken against another score, its line's: their sum
//     PlaceDraws    for each query head: the softmax's sum, the lines' budgets, and where each block lies on its line
//     DrawRows      the draws of each block that has any: a list of rows, and each head's weights
//     GatherRows    the weighted sum of those rows, and the answer
//
// Where keys are feature-major, all items of per-head methods come here, and ScoreFeatures takes the place of
// StoreScores. Those whose value rows are all read (EXACT, BERNOULLI_QK, as many samples as tokens) need no draws:
//
//     ScoreFeatures, WeighRows (each row's softmax weight in the place of draws), GatherRows
//
// A line is what masses are laid end to end on (kernels/sampling/draws.h): all of a head's rows, or those of a tile.
#ifndef SANTA_KERNELS_CUDA_STORED_SCORES_H_
#define SANTA_KERNELS_CUDA_STORED_SCORES_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/decode_launch.h"
#include "kernels/types.h"

namespace santa::cuda {

// What DeviceItem leaves out for such an item.
struct StoredItem {
  Method method = Method::kSanta;
  BudgetRounding budget_rounding = BudgetRounding::kSystematic;
  // StoredScratchBytes of device memory, aligned to 256 bytes. What it holds beforehand does not matter. Nothing else
  // may use it until the launch has ended.
  uint8_t* scratch = nullptr;
};

// Scratch of an item of H = num_query_heads over the visible tokens [begin, end); a multiple of 256. It grows with
// end - begin and with sample_count, and is at most that of begin = 255 for as many visible tokens.
int64_t StoredScratchBytes(Method method, int32_t num_query_heads, int64_t begin, int64_t end, uint32_t sample_count);

// Whether some line of an item is longer than 256 tokens.
bool NeedsLongLines(Method method, int64_t begin, int64_t end, uint32_t sample_count);

// Pointers but scratch name memory that the host has filled before the launch.
struct StoredLaunch {
  DecodeLaunch decode;                 // of which `work` names these items only, a whole split a unit
  const StoredItem* stored = nullptr;  // [as many as decode.items]: at the same place as the item; others are not read
  const int32_t* numbers = nullptr;    // [num_items]: the places of the items in `work`
  int32_t num_items = 0;
  bool long_lines = true;  // false: no item NeedsLongLines
};

// Answers every item of the launch: visible tokens more than sample_count >= 1. cudaErrorNotSupported for a shape that
// the exact kernel has not got either. Asynchronous; nothing is allocated.
cudaError_t LaunchStoredScores(const StoredLaunch& launch, cudaStream_t stream);

// Likewise from all visible value rows, of items with sample_count 0 whose StoredItem::method is EXACT. Keys must be
// feature-major; num_items is not looked at.
cudaError_t LaunchAllRows(const StoredLaunch& launch, cudaStream_t stream);

// Their steps. num_items must be positive.
cudaError_t LaunchStoreScores(const StoredLaunch& launch, cudaStream_t stream);
cudaError_t LaunchScoreFeatures(const StoredLaunch& launch, cudaStream_t stream);
cudaError_t LaunchWeighRows(const StoredLaunch& launch, cudaStream_t stream);
cudaError_t LaunchWeighLines(const StoredLaunch& launch, cudaStream_t stream);
cudaError_t LaunchPlaceDraws(const StoredLaunch& launch, cudaStream_t stream);
cudaError_t LaunchDrawRows(const StoredLaunch& launch, cudaStream_t stream);
cudaError_t LaunchGatherRows(const StoredLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_STORED_SCORES_H_
