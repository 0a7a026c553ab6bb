// What the two score kernels of kernels/cuda/group_draw.h share: a warp's scores of a block of 64 tokens become codes,
// and a split's softmax sums.
#ifndef SANTA_KERNELS_CUDA_GROUP_SCORES_CUH_
#define SANTA_KERNELS_CUDA_GROUP_SCORES_CUH_

#include "kernels/cuda/group_splits.cuh"
#include "kernels/cuda/split_merge.cuh"

namespace santa::cuda {

// A lane's scores of a block, as the products leave them: [slab][.][2 i + h] is token 16 slab + RowOf(i), head
// 8 block + HeadOf() + h; -inf where invisible.
template <int kBlocks>
using BlockScores = float[kBlockSlabs][kBlocks][4];
__device__ __forceinline__ int RowOf(int i, int lane) { return lane / 4 + 8 * i; }
__device__ __forceinline__ int HeadOf(int lane) { return 2 * (lane % 4); }

// A warp's running sums for heads 8 block + HeadOf(), + 1; every lane of a head has them.
template <int kBlocks>
struct WarpSums {
  float max[kBlocks][2];
  float sum[kBlocks][2];

  __device__ WarpSums() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      max[block][0] = max[block][1] = kNegativeInfinity;
      sum[block][0] = sum[block][1] = 0;
    }
  }
};

// The codes of two heads, as sampling::EncodeScore has them, without a conversion: 2^23 + x has x in its last bits.
template <typename Code>
__device__ __forceinline__ uint32_t EncodePair(float max0, float score0, float max1, float score1) {
  constexpr float kMost = sampling::kNoWeight<Code>, kSteps = sampling::kStepsPerOctave<Code>;
  const uint32_t low = __float_as_uint(fminf((max0 - score0) * kSteps, kMost) + 0x1p23f);
  const uint32_t high = __float_as_uint(fminf((max1 - score1) * kSteps, kMost) + 0x1p23f);
  return __byte_perm(low, high, sizeof(Code) == 2 ? 0x5410 : 0x3340);
}

// Writes a block's codes and largest scores, and adds it to the sums.
template <typename Code, int kBlocks>
__device__ __forceinline__ void WriteBlock(const BlockScores<kBlocks>& s, Code* codes, float* block_max,
                                           WarpSums<kBlocks>& sums, int group_size, int lane) {
  using Two = std::conditional_t<sizeof(Code) == 2, uint32_t, uint16_t>;
  const int stride = CodesOfToken(group_size);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int head = 8 * block + HeadOf(lane);
    float max[2], sum[2] = {0, 0};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      max[h] = -sampling::kMaxScore;  // which no score is below, unless it does not count
#pragma unroll
      for (int slab = 0; slab < kBlockSlabs; ++slab) {
#pragma unroll
        for (int i = 0; i < 2; ++i) max[h] = fmaxf(max[h], s[slab][block][2 * i + h]);
      }
#pragma unroll
      for (int step = 4; step < 32; step *= 2) max[h] = fmaxf(max[h], __shfl_xor_sync(~0u, max[h], step));
    }
    Code* to = codes + RowOf(0, lane) * stride + head;
#pragma unroll
    for (int slab = 0; slab < kBlockSlabs; ++slab) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* pair = &s[slab][block][2 * i];
        sum[0] += Exp2(pair[0] - max[0]);
        sum[1] += Exp2(pair[1] - max[1]);
        if (head < stride) {
          *reinterpret_cast<Two*>(to + (slab * kSlabRows + 8 * i) * stride) =
              static_cast<Two>(EncodePair<Code>(max[0], pair[0], max[1], pair[1]));
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], step);
      const float raised = fmaxf(sums.max[block][h], max[h]);
      sums.sum[block][h] = Rescale(sums.max[block][h], raised) * sums.sum[block][h] + Rescale(max[h], raised) * sum[h];
      sums.max[block][h] = raised;
      if (lane < 4 && head + h < group_size) block_max[head + h] = max[h];
    }
  }
}

// Brings dot products to scores in log2 units: kernels/sampling/score.h, scale in these units. A block that is not
// `whole` has tokens outside [begin, end).
template <int kBlocks>
__device__ __forceinline__ void ScaleBlock(BlockScores<kBlocks>& s, float scale, float soft_cap, int first_token,
                                           int begin, int end, int lane) {
  float* all = &s[0][0][0];
  constexpr int kCount = kBlockSlabs * kBlocks * 4;
#pragma unroll
  for (int i = 0; i < kCount; ++i) all[i] *= scale;
  if (soft_cap > 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) all[i] = soft_cap * tanhf(all[i] / soft_cap);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (all[i] > sampling::kMaxScore) all[i] = sampling::kMaxScore;  // NaN stays
    if (all[i] < -sampling::kMaxScore) all[i] = -sampling::kMaxScore;
  }
  if (first_token >= begin && first_token + sampling::kCodeBlock <= end) return;
#pragma unroll
  for (int slab = 0; slab < kBlockSlabs; ++slab) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = first_token + slab * kSlabRows + RowOf(i, lane);
      if (token >= begin && token < end) continue;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        s[slab][block][2 * i] = s[slab][block][2 * i + 1] = kNegativeInfinity;
    }
  }
}

// The sums of each split that a block takes, by warp.
template <int kWarps, int kHeads>
struct SplitSums {
  float2 of[kMaxBlockSplits][kWarps][kHeads];
};

// Keeps the warp's sums as those of a split, and begins anew.
template <int kWarps, int kBlocks>
__device__ __forceinline__ void KeepSums(SplitSums<kWarps, 8 * kBlocks>& shared, WarpSums<kBlocks>& sums, int split,
                                         int warp, int lane) {
  if (lane < 4) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        shared.of[split][warp][8 * block + HeadOf(lane) + h] = make_float2(sums.max[block][h], sums.sum[block][h]);
      }
    }
  }
  sums = WarpSums<kBlocks>();
}

// Clears what later kernels count in. All threads call it.
__device__ __forceinline__ void ClearCounts(const GroupArrays& arrays, int kv_head, int first_split, int count) {
  if (threadIdx.x < count) arrays.totals(kv_head)[first_split + threadIdx.x] = 0;
  if (first_split == 0) {
    for (int i = threadIdx.x; i < sampling::kInclusionBins; i += blockDim.x) arrays.histogram(kv_head)[i] = 0;
  }
}

// Merges the warps' sums into the splits', and clears what later kernels count in. All threads call it.
template <int kWarps, int kHeads>
__device__ void FinishSplits(const SplitSums<kWarps, kHeads>& shared, const GroupArrays& arrays, int kv_head,
                             int first_split, int count, int group_size) {
  __syncthreads();
  for (int i = threadIdx.x; i < count * group_size; i += 32 * kWarps) {
    const int split = i / group_size, head = i % group_size;
    float max = kNegativeInfinity, sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, shared.of[split][w][head].x);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += Rescale(shared.of[split][w][head].x, max) * shared.of[split][w][head].y;
    arrays.split_sums(kv_head)[(first_split + split) * group_size + head] = make_float2(max, sum);
  }
  ClearCounts(arrays, kv_head, first_split, count);
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_SCORES_CUH_
