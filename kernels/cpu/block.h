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
  const uint8_t* keys;    // of the first token; of feature-major keys its feature 0
  const uint8_t* values;  // of the first token
  int num_rows;           // [1, kMaxRun]
};

// The rows of a block in order.
struct RunList {
  Run runs[kMaxRunsInBlock];
  int count = 0;
  int num_rows = 0;
};

// Tokens [begin, end) of one head, at most kBlockRows.
RunList ListRuns(const DecodeContext& context, const DecodeItem& item, int kv_head, int64_t begin, int64_t end);

// Where run `index` of neighbouring heads' rows lies, or null where there is no such run: runs come in the order of
// memory, all heads of a page one after the other. `values`: of V, else of K.
struct RunOrder {
  const DecodeContext& context;
  const RunList& list;  // of the first head
  int num_heads;
  bool values;

  int count() const { return list.count * num_heads; }
  const uint8_t* rows(int index) const {
    if (index >= count()) return nullptr;
    const Run& run = list.runs[index / num_heads];
    return (values ? run.values : run.keys) +
           static_cast<int64_t>(context.cache.layout().head_page_bytes()) * (index % num_heads);
  }
  // Feature-major keys are not in one piece: nothing.
  Ahead run(int index) const {
    if (index >= count()) return {};
    if (!values && context.cache.layout().key_order == KeyOrder::kFeatureMajor) return {};
    return {rows(index),
            static_cast<int64_t>(context.cache.layout().row_bytes()) * list.runs[index / num_heads].num_rows};
  }
};

// What to fetch while run `index` of `current` is worked on: a run some way ahead, in `current` or in `after` it.
inline Ahead RowsAhead(const RunOrder& current, const RunOrder& after, int index) {
  constexpr int kRunsAhead = 2;
  const int ahead = index + kRunsAhead;
  return ahead < current.count() ? current.run(ahead) : after.run(ahead - current.count());
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

// The sum of a block's masses of one head, in [0, G).
uint64_t MassOfBlock(const DecodeShape& shape, const BlockArrays& arrays, int num_rows, int head);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_BLOCK_H_
