// How an item's scratch (kernels/cuda/stored_scores.h) is laid out, and how its tokens are cut into blocks and lines.
// Pure functions of the item, on the host and on the device.
#ifndef SANTA_KERNELS_CUDA_STORED_LAYOUT_H_
#define SANTA_KERNELS_CUDA_STORED_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/sampling/host_device.h"
#include "kernels/sampling/tiles.h"
#include "kernels/types.h"

namespace santa::cuda {

inline constexpr int kBlockTokens = sampling::kMinTileSize;  // 256

// Blocks lie at absolute multiples of 256 tokens and are counted from the item's first; lines likewise.
struct StoredLines {
  int32_t first_block;  // absolute
  int32_t num_blocks;
  int32_t line_blocks;  // of a line that nothing cuts short
  int32_t first_line;   // absolute
  int32_t num_lines;

  SANTA_HOST_DEVICE int32_t LineOf(int32_t block) const { return (first_block + block) / line_blocks - first_line; }
  // Blocks [Begin, End) of a line.
  SANTA_HOST_DEVICE int32_t Begin(int32_t line) const {
    const int32_t begin = (first_line + line) * line_blocks - first_block;
    return begin > 0 ? begin : 0;
  }
  SANTA_HOST_DEVICE int32_t End(int32_t line) const {
    const int32_t end = (first_line + line + 1) * line_blocks - first_block;
    return end < num_blocks ? end : num_blocks;
  }
  // Tokens between two heads' scores.
  SANTA_HOST_DEVICE size_t pitch() const { return static_cast<size_t>(num_blocks) * kBlockTokens; }
};

SANTA_HOST_DEVICE bool DrawsOnTiles(Method method) {
  return method == Method::kS2antaProp || method == Method::kS2antaFlash;
}

SANTA_HOST_DEVICE StoredLines LinesOf(Method method, int64_t begin, int64_t end, uint32_t draws) {
  const auto first_block = static_cast<int32_t>(begin / kBlockTokens);
  const auto num_blocks = static_cast<int32_t>((end - 1) / kBlockTokens) - first_block + 1;
  if (!DrawsOnTiles(method)) return {first_block, num_blocks, 1 << 24, 0, 1};  // longer than any sequence
  const sampling::Tiling tiling = sampling::MakeTiling(begin, end, draws);
  return {first_block, num_blocks, static_cast<int32_t>(tiling.size / kBlockTokens), static_cast<int32_t>(tiling.first),
          static_cast<int32_t>(tiling.count)};
}

// What one head's draws in one block depend on.
struct alignas(16) BlockDraws {
  uint64_t before;  // masses of its line before it
  uint64_t total;   // of the line
  uint64_t offset;  // systematic: the line's, in [0, total). SANTA: the index of the block's first draw
  float max;        // the score that the line's masses are taken against, in log2 units
  uint32_t draws;   // of the line; SANTA: of the block. 0: none falls in this block
};

// One head's softmax.
struct HeadSum {
  float max;      // the largest score, in log2 units
  float sum;      // of 2^(score - max)
  float divisor;  // of the weighted sum of rows: their weights (draws), over the share of the softmax the sink leaves
};

// All arrays begin on 256 bytes; those with a block are [query head][block].
class StoredArrays {
 public:
  // num_heads: query heads, which are at least as many as key/value heads.
  SANTA_HOST_DEVICE StoredArrays(uint8_t* scratch, Method method, int32_t num_heads, const StoredLines& lines,
                                 uint32_t sample_count)
      : num_blocks_(lines.num_blocks), draws_per_head_(method == Method::kSanta ? sample_count : 0) {
    const int64_t cells = static_cast<int64_t>(num_heads) * num_blocks_;
    uint8_t* at = scratch;
    const auto take = [&at](int64_t bytes) {
      uint8_t* array = at;
      at += (bytes + 255) / 256 * 256;
      return array;
    };
    scores_ = reinterpret_cast<float*>(take(cells * kBlockTokens * 4));
    records_ = reinterpret_cast<BlockDraws*>(take(cells * static_cast<int64_t>(sizeof(BlockDraws))));
    own_mass_ = reinterpret_cast<uint64_t*>(take(cells * 8));
    line_mass_ = reinterpret_cast<uint64_t*>(take(cells * 8));
    before_ = reinterpret_cast<uint64_t*>(take((cells + num_heads) * 8));
    remainder_ = reinterpret_cast<uint64_t*>(take(cells * 8));
    own_max_ = reinterpret_cast<float*>(take(cells * 4));
    line_max_ = reinterpret_cast<float*>(take(cells * 4));
    count_ = reinterpret_cast<uint32_t*>(take(cells * 4));
    num_listed_ = reinterpret_cast<int32_t*>(take(cells * 4));
    list_ = take(cells * kBlockTokens);
    head_sum_ = reinterpret_cast<HeadSum*>(take(num_heads * static_cast<int64_t>(sizeof(HeadSum))));
    draws_ = reinterpret_cast<uint64_t*>(take(static_cast<int64_t>(num_heads) * draws_per_head_ * 8));
    bytes_ = at - scratch;
  }

  SANTA_HOST_DEVICE int64_t bytes() const { return bytes_; }
  // [256] of a head and block, in log2 units; -inf for tokens that are not visible. Once its draws are known: of the
  // listed tokens the weights (S2ANTA_FLASH; all rows), or bits that say how often they were drawn
  // (kernels/cuda/tile_errors.cuh).
  SANTA_HOST_DEVICE float* scores(int32_t head, int32_t block) const {
    return scores_ + (At(head) + block) * kBlockTokens;
  }
  // Arrays of a head: [blocks].
  SANTA_HOST_DEVICE BlockDraws* records(int32_t head) const { return records_ + At(head); }
  SANTA_HOST_DEVICE float* own_max(int32_t head) const { return own_max_ + At(head); }  // NaN where a score is
  SANTA_HOST_DEVICE uint64_t* own_mass(int32_t head) const { return own_mass_ + At(head); }
  // Against the line's largest score; where lines are blocks these are the block's own.
  SANTA_HOST_DEVICE float* line_max(int32_t head) const { return line_max_ + At(head); }
  SANTA_HOST_DEVICE uint64_t* line_mass(int32_t head) const { return line_mass_ + At(head); }
  // [blocks + 1]: the sum of all blocks' masses before.
  SANTA_HOST_DEVICE uint64_t* before(int32_t head) const { return before_ + At(head) + head; }
  SANTA_HOST_DEVICE uint64_t* remainder(int32_t head) const { return remainder_ + At(head); }  // of a line's share
  // Draws of a line; SANTA: the end of a block's draws among draws().
  SANTA_HOST_DEVICE uint32_t* count(int32_t head) const { return count_ + At(head); }
  SANTA_HOST_DEVICE HeadSum* head_sum(int32_t head) const { return head_sum_ + head; }
  // Of a key/value head: the tokens of a block, [256], that some head of its group drew, ascending; [blocks], how many.
  SANTA_HOST_DEVICE uint8_t* list(int32_t kv_head, int32_t block) const {
    return list_ + (At(kv_head) + block) * kBlockTokens;
  }
  SANTA_HOST_DEVICE int32_t* num_listed(int32_t kv_head) const { return num_listed_ + At(kv_head); }
  // SANTA: [S], the draws' positions on the line, block by block.
  SANTA_HOST_DEVICE uint64_t* draws(int32_t head) const {
    return draws_ + static_cast<int64_t>(head) * draws_per_head_;
  }

 private:
  SANTA_HOST_DEVICE int64_t At(int32_t head) const { return static_cast<int64_t>(head) * num_blocks_; }

  int32_t num_blocks_;
  uint32_t draws_per_head_;
  float* scores_;
  BlockDraws* records_;
  uint64_t* own_mass_;
  uint64_t* line_mass_;
  uint64_t* before_;
  uint64_t* remainder_;
  float* own_max_;
  float* line_max_;
  uint32_t* count_;
  int32_t* num_listed_;
  uint8_t* list_;
  HeadSum* head_sum_;
  uint64_t* draws_;
  int64_t bytes_;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_STORED_LAYOUT_H_
