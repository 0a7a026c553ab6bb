// How the items of a Decode call are cut into work for threads.
//
// A unit is one key/value head of one split of one item. Splits begin at absolute multiples of a length that depends on
// the item alone, so that an item's answer does not depend on the batch or the number of threads; every unit writes its
// own Partial, and an item's partials are merged in order.
//
// Inside a split, tokens are taken in blocks at absolute multiples of kBlockRows. A tile of S2ANTA_FLASH or S2ANTA_PROP
// is a whole number of blocks, and a split a whole number of tiles.
#ifndef SANTA_KERNELS_CPU_DECODE_PLAN_H_
#define SANTA_KERNELS_CPU_DECODE_PLAN_H_

#include <algorithm>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/sampling/tiles.h"

namespace santa::cpu {

static_assert(sampling::kMinTileSize == kBlockRows);

inline constexpr int64_t kSplitTokens = 2048;

// Dimensions that all items of a backend share.
struct DecodeShape {
  int32_t num_kv_heads;
  int32_t group;       // G
  int32_t head_dim;    // D
  int32_t padded_dim;  // of packed vectors
  int32_t num_chunks;  // of the group's query heads
  int32_t pitch_sum;   // over the chunks

  static DecodeShape Of(const KvLayout& layout, const RowKernels& kernels);

  int heads(int chunk) const { return std::min(kChunkHeads, group - chunk * kChunkHeads); }
  int pitch(int chunk) const { return Pitch(heads(chunk)); }
  // Chunk c's array of `rows` rows begins at element first_lane(c) * rows of the block's arrays.
  static constexpr int first_lane(int chunk) { return chunk * kChunkHeads; }
};

struct PlannedItem {
  const DecodeItem* item;
  Method method;  // of the value stage: kExact where all values are read
  int64_t begin;  // visible tokens [begin, end)
  int64_t end;
  int64_t full;  // of draws for groups: tokens before it take part in the draw, those from it on are always read
  float scale;
  bool bf16_queries;        // every query is packed as bf16 too
  bool tells_errors;        // standard errors are asked for, and can be told
  sampling::Tiling tiling;  // of S2ANTA_FLASH and S2ANTA_PROP
  int64_t split_tokens;
  int64_t first_split;  // absolute number
  int64_t num_splits;
  // Places in the call's arrays.
  int64_t first_unit;   // unit (kv_head, split) is first_unit + kv_head * num_splits + split
  int64_t first_block;  // of stored scores, methods of two passes; blocks_per_split() for every unit
  int64_t first_tile;   // of tile records, S2ANTA_PROP: [query head][tile]
  int64_t first_draw;   // of sorted draws, SANTA: [query head][S]

  int64_t visible() const { return end - begin; }
  int64_t num_units(const DecodeShape& shape) const { return num_splits * shape.num_kv_heads; }
  int64_t split_begin(int64_t split) const { return std::max(begin, (first_split + split) * split_tokens); }
  int64_t split_end(int64_t split) const { return std::min(end, (first_split + split + 1) * split_tokens); }
  int64_t blocks_per_split() const { return std::min(split_tokens, end - begin + 2 * kBlockRows) / kBlockRows; }
  bool stores_scores() const {
    return method == Method::kSanta || method == Method::kStratified || method == Method::kSystematic ||
           method == Method::kS2antaProp;
  }
  bool draws_for_groups() const { return method == Method::kCoordinated || method == Method::kSketched; }
  bool has_target() const { return draws_for_groups() && item->options.target_relative_error > 0; }
  bool keeps_blocks() const { return stores_scores() || draws_for_groups(); }
  // Draws fall on the head's whole line of masses, not on tiles.
  bool draws_globally() const { return stores_scores() && method != Method::kS2antaProp; }
};

// Everything but the places.
PlannedItem PlanItem(const DecodeItem& item, const DecodeShape& shape, int32_t page_size);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_DECODE_PLAN_H_
