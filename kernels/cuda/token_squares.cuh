// a^2 of the tokens of a block (kernels/sampling/inclusion.h) straight from a warp's scores, for the kernels that take
// them against a pilot's log-sum-exps.
#ifndef SANTA_KERNELS_CUDA_TOKEN_SQUARES_CUH_
#define SANTA_KERNELS_CUDA_TOKEN_SQUARES_CUH_

#include "kernels/cuda/score_streams.cuh"

namespace santa::cuda {

// A lane's: token 8 i + r of the block, the head that it has of every quad, later all heads.
using TokenSquares = float[2 * kBlockSlabs];

// Adds p~^2 of a quad's head. s: as ScaleQuad leaves it, with the factor that it returned; twice_lse: of the head's
// log-sum-exp, in log2 units. What is not a number has no say.
__device__ __forceinline__ void AddSquares(TokenSquares& squares, const QuadScores& s, float scale, float twice_lse) {
  constexpr float kLeast = -200;  // 2^-200 is 0
#pragma unroll
  for (int i = 0; i < 2 * kBlockSlabs; ++i) {
    squares[i] += Exp2(fmaxf(fmaf(s[i / 2][i % 2], 2 * scale, -twice_lse), kLeast));
  }
}

// The sums over the four lanes of r: lane c gets those of tokens 8 c + r and 8 (c + 4) + r, finite.
struct LaneSquares {
  float of[2];
};
__device__ __forceinline__ LaneSquares SumOverHeads(const TokenSquares& squares, int lane) {
  float half[kBlockSlabs];
#pragma unroll
  for (int i = 0; i < kBlockSlabs; ++i) {
    const float even = squares[2 * i], odd = squares[2 * i + 1];
    half[i] = (lane & 1 ? odd : even) + __shfl_xor_sync(~0u, lane & 1 ? even : odd, 1);
  }
  LaneSquares sums;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float even = half[2 * i], odd = half[2 * i + 1];
    const float sum = (lane & 2 ? odd : even) + __shfl_xor_sync(~0u, lane & 2 ? even : odd, 2);
    sums.of[i] = fminf(sum, 0x1p120f);
  }
  return sums;
}
__device__ __forceinline__ int TokenOfSquare(int i, int lane) { return 8 * (lane % 4 + 4 * i) + lane / 4; }

// Adds a block's scores to a lane's share of its head's sum; times(slab): how often those of a slab count.
template <typename Times>
__device__ __forceinline__ void AddScores(LaneSum& sums, const QuadScores& s, float scale, const Times& times) {
  const float largest = LargestOf(s);
  const float max = fmaxf(largest * scale, -sampling::kMaxScore);
  float sum = 0;
#pragma unroll
  for (int slab = 0; slab < kBlockSlabs; ++slab) {
    sum += times(slab) * (Exp2((s[slab][0] - largest) * scale) + Exp2((s[slab][1] - largest) * scale));
  }
  const float raised = fmaxf(sums.max, max);
  sums.sum = Exp2(sums.max - raised) * sums.sum + Exp2(max - raised) * sum;
  sums.max = raised;
}

// Leaves the warp's sums of a quad: (largest score, sum of 2^(score - largest)), of each head's sums_of_head[warp].
template <int kWarps>
__device__ __forceinline__ void LeaveSums(float2 (*sums_of_head)[kWarps], const LaneSum& sums, int warp, int lane) {
  float sum = sums.sum;
#pragma unroll
  for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane < kQuad) sums_of_head[lane][warp] = make_float2(sums.max, sum);
}

// Of up to 32 such, by a warp: lane i has the i-th, others nothing.
__device__ __forceinline__ float2 MergeSums(float2 mine) {
  float max = mine.x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
  return make_float2(max, WarpSum(Rescale(mine.x, max) * mine.y));
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_TOKEN_SQUARES_CUH_
