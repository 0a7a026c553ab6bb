// One unit of work (kernels/cpu/decode_plan.h): a split of a key/value head, for every query head of its group.
#ifndef SANTA_KERNELS_CPU_UNIT_H_
#define SANTA_KERNELS_CPU_UNIT_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/cpu/block.h"
#include "kernels/cpu/decode_plan.h"
#include "kernels/cpu/feature_queries.h"
#include "kernels/cpu/gather.h"
#include "kernels/cpu/grow_buffer.h"
#include "kernels/cpu/key_fetcher.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/sampling/standard_error.h"
#include "kernels/sampling/uniform.h"

namespace santa::cpu {

// What a unit leaves for the merge: for each head of the group the largest score, the sum of exp(score - max), and a
// weighted sum of value rows.
struct Partial {
  float* max;     // [G]
  float* sum;     // [G]
  float* output;  // packed, [G][padded_dim]
  int32_t* rows;  // distinct value rows read; or null
  // [G], or null: what the standard error is made of, of methods that draw for each head: sums over the rows drawn, z
  // the value row times what one draw of it adds to `output`. (S2ANTA_FLASH: steps is the squared error of `output`.)
  sampling::StepSums* errors = nullptr;

  // Of the unit that many further in memory.
  Partial Next(const DecodeShape& shape, int64_t units) const {
    return {max + units * shape.group, sum + units * shape.group, output + units * shape.group * shape.padded_dim,
            rows == nullptr ? nullptr : rows + units, errors == nullptr ? nullptr : errors + units * shape.group};
  }
};

// Scratch of one worker thread.
struct WorkerScratch {
  GrowBuffer<float> scores;
  GrowBuffer<uint64_t> group_masses;
  GrowBuffer<BlockArrays> arrays;              // [unit]
  GrowBuffer<BlockArrays> first;               // [unit]
  GrowBuffer<HeadVector> max;                  // [unit][chunk]
  GrowBuffer<HeadVector> sums;                 // [unit][chunk]
  GrowBuffer<HeadVector> factors;              // [chunk]
  GrowBuffer<SystematicDraws> draws;           // [head of the group]
  GrowBuffer<double> draws_per_mass;           // [head of the group]
  GrowBuffer<sampling::StepSums> tile_errors;  // [unit][head of the group]
  GrowBuffer<float> tile_factors;              // likewise
  GrowBuffer<float> sketch_sums;               // [head of the group][D]
  Gatherer gatherer;
  KeyFetcher fetcher;
};

struct Unit {
  const DecodeContext& context;
  const PlannedItem& plan;
  int kv_head;
  int64_t split;
  const float* queries;          // packed, [G][padded_dim]; of feature-major keys as from PackFeatures
  const uint16_t* bf16_queries;  // the same from pack_bf16, or null
  FeatureList features;          // that are read of feature-major keys
  Partial partial;
  WorkerScratch& scratch;

  int64_t begin() const { return plan.split_begin(split); }
  int64_t end() const { return plan.split_end(split); }
  int first_head() const { return kv_head * context.shape.group; }
  float* output(int head) const { return partial.output + static_cast<int64_t>(head) * context.shape.padded_dim; }
  RunList Runs(int64_t begin, int64_t end) const { return ListRuns(context, *plan.item, kv_head, begin, end); }
};

// Units of neighbouring heads, of the same item and split, that one thread takes together: their rows are neighbours in
// memory, where long reads are faster than many short ones. Grouping changes no answer.
using UnitGroup = std::span<const Unit>;

// The end of the block that `token` lies in, at most `end`.
inline int64_t BlockEnd(int64_t token, int64_t end) { return std::min((token / kBlockRows + 1) * kBlockRows, end); }

inline constexpr HeadVector kNoScore = {
    {-std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
     -std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}};

// Clears a partial: no score, no sum.
void ClearPartial(const Unit& unit);

// The partial's maximum of a chunk's heads, as the kernels want it.
HeadVector MaxOf(const Unit& unit, int chunk);

// Raises the partial's maximum of a chunk's heads: sum and output are scaled by exp(max - new_max).
void RaiseMax(const Unit& unit, int chunk, const HeadVector& new_max);

// Scores of a block's rows for every query head of the group. Unit u writes arrays[u], and raises max[u][chunk] to its
// largest scores. runs: of the first unit's head. Fetched meanwhile: what the fetcher says; without one the runs
// themselves, and then those of `after`.
void ScoreBlock(UnitGroup units, const RunList& runs, const RunOrder& after, const BlockArrays* arrays, HeadVector* max,
                KeyFetcher* fetcher = nullptr);

// Turns a block's scores into masses against `max`, and adds the weights to `sums`; both one a chunk.
void WeighBlock(const DecodeContext& context, const BlockArrays& arrays, int num_rows, const HeadVector* max,
                HeadVector* sums, KeyFetcher* fetcher = nullptr);

// The scores of tokens [begin, end), a tile, turned into masses against its own largest, in the arrays of one block
// after the other from first[u] on; max[u][chunk] and the weights' sums[u][chunk] are written.
// The scratch's fetcher has begun with the first tile.
void WeighTile(UnitGroup units, int64_t begin, int64_t end, const BlockArrays* first, HeadVector* max,
               HeadVector* sums);

// The sum of a tile's masses of one head, in [0, G).
uint64_t MassOfTile(const DecodeShape& shape, const BlockArrays& first, int64_t begin, int64_t end, int head);

// The random numbers of a query head, in [0, H).
sampling::RandomStream StreamOf(const PlannedItem& plan, int head);

// EXACT.
void ExactUnits(UnitGroup units);

// S2ANTA_FLASH, all in one pass.
void FlashUnits(UnitGroup units);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_UNIT_H_
