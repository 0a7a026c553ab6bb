// A token's a^2 from its codes, for the kernels that count it and that draw by it.
#ifndef SANTA_KERNELS_CUDA_GROUP_INCLUSION_CUH_
#define SANTA_KERNELS_CUDA_GROUP_INCLUSION_CUH_

#include "kernels/cuda/group_splits.cuh"
#include "kernels/cuda/split_merge.cuh"

namespace santa::cuda {

// Octaves to which the codes of each code block are added: its largest score less the head's log-sum-exp. In shared
// memory: [code block][CodesOfToken].
inline constexpr int kMostOctaves = kMaxBlockTokens / sampling::kCodeBlock * kMaxGroup;

// All threads call it, and __syncthreads() afterwards. lse: [G].
__device__ __forceinline__ void LoadOctaves(float* octaves, const GroupArrays& arrays, const BlockSplits& splits,
                                            int kv_head, int group_size, const float* lse) {
  const int heads = CodesOfToken(group_size), first = splits.origin / sampling::kCodeBlock;
  const int count = ((splits.end - 1) / sampling::kCodeBlock - first + 1) * heads;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int head = i % heads;
    octaves[i] = head < group_size ? arrays.block_max(kv_head, first + i / heads)[head] - lse[head] : kNegativeInfinity;
  }
}

// Codes of four heads of a token.
template <typename Code>
struct alignas(sizeof(Code) * kQuad) QuadCodes {
  Code code[kQuad];

  __device__ __forceinline__ float Weight(int i, float octaves) const {
    // The code as the last bits of 2^23 + code.
    const float number = __uint_as_float(0x4b000000u | code[i]) - 0x1p23f;
    const float weight = Exp2(fmaf(number, -1.0f / sampling::kStepsPerOctave<Code>, octaves));
    return code[i] == sampling::kNoWeight<Code> ? 0.0f : weight;
  }
};

// Tokens that a thread takes at a time, one after the other from a multiple of as many on.
inline constexpr int kRunTokens = 4;

// sum over the heads of p~^2 of a run's tokens. codes: of the run's first token, quads of a token after one another;
// octaves: of its code block.
template <typename Code>
__device__ __forceinline__ void SumSquares(float (&sums)[kRunTokens], const QuadCodes<Code>* codes,
                                           const float* octaves, int quads) {
#pragma unroll
  for (int token = 0; token < kRunTokens; ++token) sums[token] = 0;
  for (int quad = 0; quad < quads; ++quad) {
    const float4 of_quad = *reinterpret_cast<const float4*>(octaves + kQuad * quad);
    const float each[kQuad] = {of_quad.x, of_quad.y, of_quad.z, of_quad.w};
    QuadCodes<Code> mine[kRunTokens];
    if (quads == 1) {
      struct alignas(16) Run {
        QuadCodes<Code> token[16 / sizeof(QuadCodes<Code>)];
      };
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(mine) / sizeof(Run)); ++i) {
        const Run run = reinterpret_cast<const Run*>(codes)[i];
#pragma unroll
        for (int j = 0; j < static_cast<int>(sizeof(Run) / sizeof(QuadCodes<Code>)); ++j) {
          mine[i * static_cast<int>(sizeof(Run) / sizeof(QuadCodes<Code>)) + j] = run.token[j];
        }
      }
    } else {
#pragma unroll
      for (int token = 0; token < kRunTokens; ++token) mine[token] = codes[token * quads + quad];
    }
#pragma unroll
    for (int token = 0; token < kRunTokens; ++token) {
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const float p = mine[token].Weight(i, each[i]);
        sums[token] = fmaf(p, p, sums[token]);
      }
    }
  }
}

// The end of the item's full pages: SKETCHED reads the tokens of a page that is not full always.
__device__ __forceinline__ int FullPagesEnd(const DeviceItem& item, int page_shift) {
  return item.end >> page_shift << page_shift;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_INCLUSION_CUH_
