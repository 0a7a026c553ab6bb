// How the items of one launch are cut into splits, and in which order the splits are taken up. Pure host arithmetic.
#ifndef SANTA_KERNELS_CUDA_DECODE_PLAN_H_
#define SANTA_KERNELS_CUDA_DECODE_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"

namespace santa::cuda {

// Which kernel answers an item.
enum class Kernel : uint8_t {
  kExact,
  kS2antaFlash,   // tiles of 256 tokens
  kStoredScores,  // everything whose draws need more than one tile's scores
};
inline constexpr int kNumKernels = 3;

// One item, cut. Splits lie at absolute multiples of split_tokens.
struct ItemPlan {
  Kernel kernel = Kernel::kExact;
  int32_t begin = 0, end = 0;  // visible tokens
  int32_t split_tokens = 0;
  int32_t num_splits = 0;
  uint32_t sample_count = 0;  // 0: exact

  int32_t visible() const { return end - begin; }
};

// Tokens of a split: a multiple of 256 that depends on the item's visible tokens [begin, end) alone, so that its answer
// is the same bit for bit in every batch. A short item is cut finely, or one head of one item would keep one
// multiprocessor busy while the others wait; a long one coarsely, for fewer partial results to merge.
int32_t SplitTokens(int64_t visible);

// The plan of a valid item.
ItemPlan PlanItem(const DecodeItem& item);

// The kernel's (item, split) pairs are work[first, first + count).
struct WorkRange {
  int32_t first = 0;
  int32_t count = 0;
};

// One split of one item; laid out as int2.
struct WorkUnit {
  int32_t item = 0;
  int32_t split = 0;  // counted from the item's first
};

// Writes every split of every item to `work`, which has room for them: the kernels one after another, and for each the
// longest splits, then the longest items, first, so that no long split starts when the others have ended. Reuses
// `order`. ranges: [kNumKernels].
void OrderWork(std::span<const ItemPlan> plans, std::vector<int32_t>& order, WorkUnit* work,
               std::span<WorkRange, kNumKernels> ranges);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_DECODE_PLAN_H_
