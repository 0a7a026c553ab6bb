// How the sketch of one head of one page of keys lies in device memory: codes of 4 bits in the order in which the lanes
// of a warp hold them in an mma.m16n8k16, so that a lane's part of several products is one load; then the columns.
//
//     [slab of 16 tokens][D / 16 / StepsOfLoad][lane][StepsOfLoad] words, then columns in half precision:
//     [D / 32][c] steps of f, f + 1, f + 8, f + 9, then of those 16 features on
//     [D / 32][c] smallest numbers of f, f + 1, then of those 16 features on, of f + 8, f + 9, then of those 16 on
//
// Lane (r, c) = (lane / 4, lane % 4) has in its word of step j tokens r and r + 8 at features f = 16 j + 2c and f + 8,
// as pairs with the feature after, and of the columns [i][c] those of f of step j = 2i: bits 0-3 and 16-19 are token r,
// features f and f + 1; 4-7 and 20-23 token r at f + 8, f + 9; the two upper nibbles of each half likewise for token r
// + 8.
#ifndef SANTA_KERNELS_CUDA_SKETCH_LAYOUT_H_
#define SANTA_KERNELS_CUDA_SKETCH_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::cuda {

inline constexpr int kSketchBits = 4;

// Products whose words lie side by side for a lane.
SANTA_HOST_DEVICE constexpr int StepsOfLoad(int head_dim) { return head_dim % 64 == 0 ? 4 : 2; }

// Bytes of a slab's codes, and of the columns.
SANTA_HOST_DEVICE constexpr int SketchSlabBytes(int head_dim) { return 16 * head_dim / 2; }
SANTA_HOST_DEVICE constexpr int SketchColumnBytes(int head_dim) { return 4 * head_dim; }
SANTA_HOST_DEVICE constexpr size_t SketchHeadBytes(int head_dim, int page_size) {
  return static_cast<size_t>(page_size / 16) * SketchSlabBytes(head_dim) + SketchColumnBytes(head_dim);
}

// Index of a word of a slab.
SANTA_HOST_DEVICE int SketchWord(int head_dim, int step, int lane) {
  const int of_load = StepsOfLoad(head_dim);
  return (step / of_load * 32 + lane) * of_load + step % of_load;
}

// Places of a feature's step and of its smallest number among the halves of the columns.
SANTA_HOST_DEVICE int SketchStepAt(int feature) {
  return feature / 32 * 32 + feature % 8 / 2 * 8 + feature % 32 / 8 * 2 + feature % 2;
}
SANTA_HOST_DEVICE int SketchLowAt(int head_dim, int feature) {
  return head_dim + feature / 32 * 32 + feature % 8 / 2 * 8 + feature % 16 / 8 * 4 + feature % 32 / 16 * 2 +
         feature % 2;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SKETCH_LAYOUT_H_
