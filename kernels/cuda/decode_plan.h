// How the items of one launch are cut into splits, and in which order the splits are taken up. Pure host arithmetic.
#ifndef SANTA_KERNELS_CUDA_DECODE_PLAN_H_
#define SANTA_KERNELS_CUDA_DECODE_PLAN_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cuda/work_unit.h"

namespace santa::cuda {

// Which kernel answers an item.
enum class Kernel : uint8_t {
  kExact,
  kS2antaFlash,   // tiles of 256 tokens
  kS2antaProp,    // likewise, with systematic budgets
  kStoredScores,  // everything whose draws need more than one tile's scores
  kCoordinated,
  kSketched,
  kAllRows,             // of feature-major keys: all value rows, weighed by scores that were stored before
  kCoordinatedOnePass,  // by the threshold of a pilot (kernels/sampling/pilot.h)
  kSketchedOnePass,
};
inline constexpr int kNumKernels = 9;

// Whether a kernel keeps scores in scratch (kernels/cuda/stored_scores.h).
constexpr bool StoresScores(Kernel kernel) {
  return kernel == Kernel::kS2antaProp || kernel == Kernel::kStoredScores || kernel == Kernel::kAllRows;
}

// Whether its threshold is a pilot's.
constexpr bool HasPilot(Kernel kernel) {
  return kernel == Kernel::kCoordinatedOnePass || kernel == Kernel::kSketchedOnePass;
}

// Those that draw once for a group (kernels/cuda/group_draw.h); they keep parts of that in scratch.
inline constexpr Kernel kGroupKernels[] = {Kernel::kCoordinated, Kernel::kSketched, Kernel::kCoordinatedOnePass,
                                           Kernel::kSketchedOnePass};
constexpr bool DrawsByGroup(Kernel kernel) {
  return kernel == Kernel::kCoordinated || kernel == Kernel::kSketched || HasPilot(kernel);
}
constexpr Method GroupMethod(Kernel kernel) {
  return kernel == Kernel::kCoordinated || kernel == Kernel::kCoordinatedOnePass ? Method::kCoordinated
                                                                                 : Method::kSketched;
}

// Whether it reads the value rows of all visible tokens.
constexpr bool ReadsAllRows(Kernel kernel) { return kernel == Kernel::kExact || kernel == Kernel::kAllRows; }

// Where an item's visible tokens are cut: at absolute multiples of a length.
struct Splits {
  int32_t begin = 0, end = 0;  // visible tokens
  int32_t tokens = 0;          // of a whole split
  int32_t count = 0;

  // Where split i in [0, count) ends, and the next one begins.
  int32_t EndOf(int32_t i) const;
};

// Splits depend on the cache's layout, the kernel and the visible tokens [begin, end) alone, so that an item's
// answer is the same bit for bit in every batch. A short item is cut finely, or one head of one item would keep one
// multiprocessor busy while the others wait; a long one coarsely, as each split is a partial result to write and merge.
Splits CutSplits(Kernel kernel, const KvLayout& layout, int32_t begin, int32_t end);

// One item, cut.
struct ItemPlan {
  Kernel kernel = Kernel::kExact;
  int32_t begin = 0, end = 0;  // visible tokens
  Splits splits;
  uint32_t sample_count = 0;  // 0: all rows; with a target that of the pilot draw (kernels/sampling/target_error.h)
  uint32_t score_draws = 0;
  float target_relative_error = 0;

  bool has_target() const { return target_relative_error > 0; }
  int32_t num_units() const;  // of work: its splits, and empty ones
  int32_t visible() const { return end - begin; }
};

// Visible tokens from which on COORDINATED or SKETCHED takes one pass, which then takes less time than three, but for
// COORDINATED at some batch sizes (docs/benchmarks.md).
constexpr int64_t LeastOnePassTokens(Method method) { return method == Method::kSketched ? 16384 : 32768; }

// The plan of a valid item of a cache of this layout. least_one_pass: in place of LeastOnePassTokens for a test, more
// than sampling::kMostWithoutPilot.
ItemPlan PlanItem(const DecodeItem& item, const KvLayout& layout, std::optional<int64_t> least_one_pass = {});

// The kernel's (item, split) pairs are work[first, first + count).
struct WorkRange {
  int32_t first = 0;
  int32_t count = 0;
};

// Writes every unit of every item to `work`, which has room for them: the kernels one after another, and for each the
// longest splits, then the longest items, first, so that no long split starts when the others have ended. Reuses
// `order`. ranges: [kNumKernels].
void OrderWork(std::span<const ItemPlan> plans, std::vector<int32_t>& order, WorkUnit* work,
               std::span<WorkRange, kNumKernels> ranges);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_DECODE_PLAN_H_
