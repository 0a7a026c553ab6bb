// Draws inside a block of tokens, and the sum of the value rows they fell on.
#ifndef SANTA_KERNELS_CPU_GATHER_H_
#define SANTA_KERNELS_CPU_GATHER_H_

#include <bit>
#include <cstdint>

#include "kernels/cpu/block.h"
#include "kernels/cpu/error_chain.h"
#include "kernels/cpu/grow_buffer.h"
#include "kernels/cpu/key_fetcher.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/sampling/standard_error.h"

namespace santa::cpu {

// The systematic draws of one query head on the line of masses that its rows lie on (kernels/sampling/draws.h).
struct SystematicDraws {
  uint64_t total;   // of the masses, >= 1
  uint64_t offset;  // of the draws, in [0, total)
  uint64_t below;   // masses of the rows before this block
  uint32_t draws;   // 0: none
};

// How a block's draws fluctuate, for the standard errors of the heads.
struct DrawErrors {
  enum class Design : uint8_t { kSystematic, kStratified, kIndependent };
  Design design = Design::kSystematic;
  const double* draws_per_mass = nullptr;  // [G], expected; not of independent draws
  sampling::StepSums* sums = nullptr;      // [G], of value rows, added to until Flush
};

// Collects the draws of every head of the group in one block, so that a value row is read once for all of them, and
// adds rows up one block late, when their memory has been fetched.
// Use: Begin; for each block StartBlock, draws for each chunk, Queue; at last Flush.
class Gatherer {
 public:
  // Independent draws have standard errors of their own kind.
  void Begin(const DecodeContext& context, bool independent = false);

  // Rows drawn from here on have no neighbours before it.
  void StartRun() { chain_.StartRun(); }

  void StartBlock(const DecodeContext& context, const RunList& runs);

  // Draws of a chunk's heads, of_heads[lane]; their `below` moves past the block. `ahead` is fetched meanwhile.
  void DrawSystematically(const DecodeContext& context, const BlockArrays& arrays, int chunk, SystematicDraws* of_heads,
                          const Ahead& ahead = {});

  // Draws one by one: ClearChunk, and Draw for each of its heads.
  void ClearChunk(const DecodeContext& context, const BlockArrays& arrays, int chunk);

  // Rows are laid end to end by mass from *below on, which moves past the block. The cursor has position(), ascending
  // and at least *below, and Advance(), as sampling::SystematicCursor.
  template <typename Cursor>
  void Draw(const DecodeShape& shape, int head, uint64_t* below, Cursor& cursor) {
    block_below_.data()[head] = *below;
    switch (shape.pitch(head / kChunkHeads)) {
      case 1:
        return DrawOf<1>(head, below, cursor);
      case 2:
        return DrawOf<2>(head, below, cursor);
      default:
        return DrawOf<kChunkHeads>(head, below, cursor);
    }
  }

  // Takes over the block's draws, with weight = count * factors[chunk], and starts to fetch their rows; what the block
  // before left is added up first. Returns how many rows were drawn.
  // sums: packed, [G][padded_dim], where Flush, or the next Queue, will add the rows.
  // arrays: the block's masses. errors: null where they are not asked for.
  int Queue(const DecodeContext& context, const HeadVector* factors, float* sums, const BlockArrays& arrays,
            const DrawErrors* errors);

  // Adds up what is queued. `fetcher`, where there is one, fetches meanwhile.
  void Flush(const DecodeContext& context, KeyFetcher* fetcher = nullptr);

 private:
  static int64_t FirstOf(int chunk) { return static_cast<int64_t>(DecodeShape::first_lane(chunk)) * kBlockRows; }

  void AddErrors(const DecodeShape& shape, const BlockArrays& arrays, const DrawErrors& errors, int row);

  template <int kPitch, typename Cursor>
  void DrawOf(int head, uint64_t* below, Cursor& cursor) {
    const int64_t first = FirstOf(head / kChunkHeads) + head % kChunkHeads;
    const uint64_t* sums = mass_sums_.data() + first;
    float* counts = counts_.data() + first;
    const uint64_t begin = *below;
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
      drawn_[row / kRowGroup] |= static_cast<uint16_t>(1u << row % kRowGroup);
    }
    *below = end;
  }

  // The block.
  GrowBuffer<uint64_t> mass_sums_;     // [chunk][row][pitch], inclusive sums; of chunks whose draws are made one by one
  GrowBuffer<uint64_t> block_below_;   // [head], masses of the rows before the block; likewise
  GrowBuffer<float> counts_;           // [chunk][row][pitch]
  uint16_t drawn_[kBlockGroups] = {};  // bits of rows
  int num_block_rows_ = 0;
  const uint8_t* values_[kBlockRows] = {};  // value rows
  // The block before.
  GrowBuffer<float> weights_;  // [chunk][drawn row][pitch]
  const uint8_t* rows_[kBlockRows] = {};
  int num_rows_ = 0;
  float* sums_ = nullptr;
  ErrorChain chain_;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_GATHER_H_
