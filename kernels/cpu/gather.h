// Draws inside a block of tokens, and the sum of the value rows they fell on.
#ifndef SANTA_KERNELS_CPU_GATHER_H_
#define SANTA_KERNELS_CPU_GATHER_H_

#include <bit>
#include <cstdint>

#include "kernels/cpu/block.h"
#include "kernels/cpu/grow_buffer.h"
#include "kernels/cpu/row_kernels.h"

namespace santa::cpu {

// Collects the draws of every head of the group in one block, so that a value row is read once for all of them, and
// adds rows up one block late: their memory is fetched while the next block is scored.
// Use: Begin; for each block StartBlock, Draw for each head, Queue; at last Flush.
class Gatherer {
 public:
  void Begin(const DecodeShape& shape);

  // The block's rows and their masses.
  void StartBlock(const DecodeContext& context, const RunList& runs, const BlockArrays& arrays);

  // Draws of one head. Rows are laid end to end by mass from *cumulative on, which moves past the block. The cursor has
  // position(), ascending and at least *cumulative, and Advance(), as sampling::SystematicCursor.
  template <typename Cursor>
  void Draw(const DecodeShape& shape, int head, uint64_t* cumulative, Cursor& cursor) {
    switch (shape.pitch(head / kChunkHeads)) {
      case 1:
        return DrawOf<1>(head, cumulative, cursor);
      case 2:
        return DrawOf<2>(head, cumulative, cursor);
      default:
        return DrawOf<kChunkHeads>(head, cumulative, cursor);
    }
  }

  // Takes over the block's draws, with weight = count * factors[chunk]; what the block before left is added up first.
  // Returns how many rows were drawn. sums: packed, [G][padded_dim], where Flush, or the next Queue, will add the rows.
  int Queue(const DecodeContext& context, const HeadVector* factors, float* sums);

  // Adds up what is queued.
  void Flush(const DecodeContext& context);

 private:
  template <int kPitch, typename Cursor>
  void DrawOf(int head, uint64_t* cumulative, Cursor& cursor) {
    const int64_t first =
        static_cast<int64_t>(DecodeShape::first_lane(head / kChunkHeads)) * kBlockRows + head % kChunkHeads;
    const uint64_t* sums = mass_sums_.data() + first;
    float* counts = counts_.data() + first;
    const uint64_t begin = *cumulative;
    const uint64_t end = begin + sums[(kBlockRows - 1) * kPitch];
    for (; cursor.position() < end; cursor.Advance()) {
      // The first row whose sum exceeds the position. Where draws fall is random, so no branch is asked to guess it.
      const uint64_t position = cursor.position() - begin;
      uint32_t row = 0;
#pragma GCC unroll 8
      for (int bit = std::countr_zero(static_cast<uint32_t>(kBlockRows)) - 1; bit >= 0; --bit) {
        row += static_cast<uint32_t>(sums[(row + (1u << bit) - 1) * kPitch] <= position) << bit;
      }
      counts[row * kPitch] += 1;
      // Here, not in Queue: memory works while the next draw is looked for.
      for (int64_t i = 0; i < row_bytes_; i += 64) __builtin_prefetch(values_[row] + i, 0, 2);
      drawn_[row / kRowGroup] |= static_cast<uint16_t>(1u << row % kRowGroup);
    }
    *cumulative = end;
  }

  GrowBuffer<uint64_t> mass_sums_;  // [chunk][row][pitch], inclusive sums of the block's masses
  int64_t row_bytes_ = 0;
  int num_block_rows_ = 0;
  const uint8_t* values_[kBlockRows] = {};  // the block's value rows
  GrowBuffer<float> counts_;                // [chunk][row][pitch], all 0 between two blocks
  uint16_t drawn_[kBlockGroups] = {};       // bits of rows
  // The block before.
  GrowBuffer<float> weights_;  // [chunk][drawn row][pitch]
  const uint8_t* rows_[kBlockRows] = {};
  int num_rows_ = 0;
  float* sums_ = nullptr;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_GATHER_H_
