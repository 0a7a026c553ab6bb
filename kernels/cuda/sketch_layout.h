// How the sketch of one head of one page lies in device memory: that of its keys, and behind it, where values are
// sketched, that of its values. Either has its codes, of 4 or 8 bits, in the order in which the lanes of a warp hold
// them in an mma.m16n8k16, so that a lane's part of several products is one load, and then its columns:
//
//     [slab of 16 tokens][words of a lane in loads of WordsOfLoad, one after the other for the 32 lanes]
//
// Keys: 16 features are a step of the product, with bits / 4 words for each lane. Lane (r, c) = (lane / 4, lane % 4)
// has tokens r and r + 8 at features f = 2c and f + 8 of the step, as pairs with the feature after. Of 4 bits: bits 0-3
// and 16-19 are token r, features f and f + 1; 4-7 and 20-23 token r at f + 8, f + 9; the two upper nibbles of each
// half likewise for token r + 8. Of 8 bits: a word for f and one for f + 8, each with token r's two bytes, then token r
// + 8's.
//     [D / 32][c] steps of f, f + 1, f + 8, f + 9, then of those 16 features on
//     [D / 32][c] smallest numbers of f, f + 1, then of those 16 features on, of f + 8, f + 9, then of those 16 on
//
// Values, for a product of bytes (mma.m16n8k32), whose 32 tokens are those of two slabs: 16 features are a tile, with
// bits / 4 words for each lane, who has features r and r + 8 at tokens 2c, 2c + 8, 2c + 1 and 2c + 9: a byte each, in
// this order. Of 4 bits: r in the lower half of the byte, r + 8 in the upper one. Of 8 bits: a word for r, one for r
// + 8.
//     [D / 16][r] step of r, of r + 8, smallest number of r, of r + 8
#ifndef SANTA_KERNELS_CUDA_SKETCH_LAYOUT_H_
#define SANTA_KERNELS_CUDA_SKETCH_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::cuda {

// Words that lie side by side for a lane: of several steps or tiles, each of which has WordsOfStep.
SANTA_HOST_DEVICE constexpr int WordsOfLoad(int head_dim, int bits) { return bits == 4 && head_dim % 64 != 0 ? 2 : 4; }
SANTA_HOST_DEVICE constexpr int WordsOfStep(int bits) { return bits / 4; }
SANTA_HOST_DEVICE constexpr int StepsOfLoad(int head_dim, int bits) {
  return WordsOfLoad(head_dim, bits) / WordsOfStep(bits);
}

// Bytes of a slab's codes, and of the columns; of the keys (or values) of a head of a page, and of both.
SANTA_HOST_DEVICE constexpr int SketchSlabBytes(int head_dim, int bits) { return 2 * head_dim * bits; }
SANTA_HOST_DEVICE constexpr int SketchColumnBytes(int head_dim) { return 4 * head_dim; }
SANTA_HOST_DEVICE constexpr size_t SketchPartBytes(int head_dim, int page_size, int bits) {
  return bits == 0
             ? 0
             : static_cast<size_t>(page_size / 16) * SketchSlabBytes(head_dim, bits) + SketchColumnBytes(head_dim);
}
SANTA_HOST_DEVICE constexpr size_t SketchHeadBytes(int head_dim, int page_size, int key_bits, int value_bits) {
  return SketchPartBytes(head_dim, page_size, key_bits) + SketchPartBytes(head_dim, page_size, value_bits);
}

// Index among a slab's words of a lane's `word`-th of a step (or tile).
SANTA_HOST_DEVICE int SketchWord(int head_dim, int bits, int step, int lane, int word) {
  const int of_load = WordsOfLoad(head_dim, bits), index = step * WordsOfStep(bits) + word;
  return (index / of_load * 32 + lane) * of_load + index % of_load;
}

// Where the i-th code of a lane's `word`-th of a step (or tile) belongs: token of the slab, feature of the 16; and by
// how many bits it is rotated left in the word.
struct SketchPlace {
  int token, feature, bit;
};
SANTA_HOST_DEVICE SketchPlace KeyPlace(int bits, int lane, int word, int i) {
  const int r = lane / 4, f = 2 * (lane % 4);
  return bits == 4 ? SketchPlace{r + (i & 2) * 4, f + (i & 1) * 8 + i / 4, 4 * i}
                   : SketchPlace{r + (i & 2) * 4, f + word * 8 + (i & 1), 8 * i};
}
SANTA_HOST_DEVICE SketchPlace ValuePlace(int bits, int lane, int word, int i) {
  const int byte = bits == 4 ? i / 2 : i, upper = bits == 4 ? i & 1 : word;
  return {2 * (lane % 4) + (byte & 1) * 8 + byte / 2, lane / 4 + upper * 8, bits * i};
}

// Places of a feature's step and of its smallest number among the halves of the columns.
SANTA_HOST_DEVICE int KeyStepAt(int feature) {
  return feature / 32 * 32 + feature % 8 / 2 * 8 + feature % 32 / 8 * 2 + feature % 2;
}
SANTA_HOST_DEVICE int KeyLowAt(int head_dim, int feature) {
  return head_dim + feature / 32 * 32 + feature % 8 / 2 * 8 + feature % 16 / 8 * 4 + feature % 32 / 16 * 2 +
         feature % 2;
}
SANTA_HOST_DEVICE int ValueStepAt(int feature) { return feature / 16 * 32 + feature % 8 * 4 + feature % 16 / 8; }
SANTA_HOST_DEVICE int ValueLowAt(int feature) { return ValueStepAt(feature) + 2; }

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SKETCH_LAYOUT_H_
