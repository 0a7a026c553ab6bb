// Draws inside a block of tokens, and the sum of the value rows they fell on.
#ifndef SANTA_KERNELS_CPU_GATHER_H_
#define SANTA_KERNELS_CPU_GATHER_H_

#include <cstdint>

#include "kernels/cpu/block.h"
#include "kernels/cpu/grow_buffer.h"
#include "kernels/cpu/row_kernels.h"

namespace santa::cpu {

// Collects the draws of every head of the group in one block, so that a value row is read once for all of them, and
// adds rows up one block late: their memory is fetched while the next block is scored.
// Use: Begin; for each block Draw for each head, then Queue; at last Flush.
class Gatherer {
 public:
  void Begin(const DecodeShape& shape);

  // Draws of one head. Rows are laid end to end by mass from *cumulative on, which moves past the block. The cursor has
  // position(), ascending and at least *cumulative, and Advance(), as sampling::SystematicCursor.
  // masses: of the head's chunk and at its lane, [row][pitch]; group_masses likewise.
  template <typename Cursor>
  void Draw(const DecodeShape& shape, int head, const BlockArrays& arrays, int num_rows, uint64_t* cumulative,
            Cursor& cursor) {
    const int chunk = head / kChunkHeads;
    const int lane = head % kChunkHeads;
    const int pitch = shape.pitch(chunk);
    const uint32_t* masses = arrays.chunk_masses(chunk) + lane;
    const uint64_t* groups = arrays.chunk_groups(chunk) + lane;
    float* counts = counts_.data() + static_cast<int64_t>(DecodeShape::first_lane(chunk)) * kBlockRows + lane;
    uint64_t below = *cumulative;
    for (int group = 0; group * kRowGroup < num_rows; ++group) {
      const uint64_t group_end = below + groups[group * pitch];
      if (cursor.position() < group_end) {
        uint32_t drawn = 0;
        for (int row = group * kRowGroup; cursor.position() < group_end; ++row) {
          below += masses[row * pitch];
          while (cursor.position() < below) {
            counts[row * pitch] += 1;
            drawn |= 1u << row % kRowGroup;
            cursor.Advance();
          }
        }
        drawn_[group] |= static_cast<uint16_t>(drawn);
      }
      below = group_end;
    }
    *cumulative = below;
  }

  // Takes over the block's draws, with weight = count * factors[chunk], and starts to fetch their rows; what the block
  // before left is added up first. Returns how many rows were drawn.
  // sums: packed, [G][padded_dim], where Flush, or the next Queue, will add the rows.
  int Queue(const DecodeContext& context, const RunList& runs, const HeadVector* factors, float* sums);

  // Adds up what is queued.
  void Flush(const DecodeContext& context);

 private:
  GrowBuffer<float> counts_;           // [chunk][row][pitch], all 0 between two blocks
  uint16_t drawn_[kBlockGroups] = {};  // bits of rows
  // The block before.
  GrowBuffer<float> weights_;  // [chunk][drawn row][pitch]
  const uint8_t* rows_[kBlockRows] = {};
  int num_rows_ = 0;
  float* sums_ = nullptr;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_GATHER_H_
