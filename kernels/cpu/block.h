// Blocks of up to kBlockRows tokens: where their rows lie, and their scores.
#ifndef SANTA_KERNELS_CPU_BLOCK_H_
#define SANTA_KERNELS_CPU_BLOCK_H_

#include <cstdint>

#include "kernels/cpu/decode_plan.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/row_kernels.h"

namespace santa::cpu {

inline constexpr int kScoreRows = kBlockRows + kRowGroup;           // room of a block's arrays
inline constexpr int kBlockGroups = kBlockRows / kRowGroup;         // groups of a block
inline constexpr int kMaxRunsInBlock = kBlockRows / kRowGroup + 1;  // pages have kRowGroup tokens at least

// What every unit of a Decode call works with.
struct DecodeContext {
  const KvCache& cache;
  const RowKernels& kernels;
  const DecodeShape& shape;
};

struct Run {
  const uint8_t* keys;  // the values lie KvCache::value_offset() further
  int num_rows;         // [1, kMaxRun]
};

// The rows of a block in order.
struct RunList {
  Run runs[kMaxRunsInBlock];
  int count = 0;
  int num_rows = 0;
};

// Tokens [begin, end) of one head, at most kBlockRows.
RunList ListRuns(const DecodeContext& context, const DecodeItem& item, int kv_head, int64_t begin, int64_t end);

// The first value row of run `index`, or null where there is no such run: an address to prefetch.
inline const uint8_t* ValuesOf(const DecodeContext& context, const RunList& list, int index) {
  return index < list.count ? list.runs[index].keys + context.cache.value_offset() : nullptr;
}
inline const uint8_t* KeysOf(const RunList& list, int index) {
  return index < list.count ? list.runs[index].keys : nullptr;
}

// Arrays of one block, chunk by chunk: chunk c's scores (or weights, or masses) at shape.first_lane(c) * kScoreRows,
// its group masses at first_lane(c) * kBlockGroups.
struct BlockArrays {
  float* scores;
  uint64_t* group_masses;  // or null

  static int64_t ScoresSize(const DecodeShape& shape) { return static_cast<int64_t>(shape.pitch_sum) * kScoreRows; }
  static int64_t GroupsSize(const DecodeShape& shape) { return static_cast<int64_t>(shape.pitch_sum) * kBlockGroups; }
  // Of the block that follows in memory.
  BlockArrays Next(const DecodeShape& shape) const {
    return {scores + ScoresSize(shape), group_masses == nullptr ? nullptr : group_masses + GroupsSize(shape)};
  }
  float* chunk_scores(int chunk) const { return scores + DecodeShape::first_lane(chunk) * kScoreRows; }
  uint64_t* chunk_groups(int chunk) const { return group_masses + DecodeShape::first_lane(chunk) * kBlockGroups; }
  const uint32_t* chunk_masses(int chunk) const { return reinterpret_cast<const uint32_t*>(chunk_scores(chunk)); }
};

// Scores of the block's rows for every query head of the group, and `max` (one a chunk) raised to their largest.
// queries: packed, [G][padded_dim]. While run i is scored, run i of `prefetch` is fetched: its keys, or its values.
enum class Fetch { kNothing, kKeys, kValues };
void ScoreBlock(const DecodeContext& context, const PlannedItem& plan, const float* queries, const RunList& runs,
                Fetch fetch, const RunList& prefetch, const BlockArrays& arrays, HeadVector* max);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_BLOCK_H_
