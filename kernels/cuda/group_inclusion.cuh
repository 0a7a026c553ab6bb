// A token's a^2 from its codes, for the kernels that count it and that draw by it.
#ifndef SANTA_KERNELS_CUDA_GROUP_INCLUSION_CUH_
#define SANTA_KERNELS_CUDA_GROUP_INCLUSION_CUH_

#include "kernels/cuda/group_splits.cuh"
#include "kernels/cuda/split_merge.cuh"

namespace santa::cuda {

// Octaves to which the codes of each code block are added: its largest score less the head's log-sum-exp. In shared
// memory: [code block][CodesOfToken].
inline constexpr int kMostOctaves = kMaxBlockTokens / sampling::kCodeBlock * kMaxGroup;

// All threads call it, and __syncthreads() afterwards. lse: [G]; null: the largest scores as they are.
__device__ __forceinline__ void LoadOctaves(float* octaves, const GroupArrays& arrays, const BlockSplits& splits,
                                            int kv_head, int group_size, const float* lse) {
  const int heads = CodesOfToken(group_size), first = splits.origin / sampling::kCodeBlock;
  const int count = ((splits.end - 1) / sampling::kCodeBlock - first + 1) * heads;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int head = i % heads;
    const float* max = arrays.block_max(kv_head, first + i / heads);
    octaves[i] = head >= group_size ? kNegativeInfinity : lse == nullptr ? max[head] : max[head] - lse[head];
  }
}

// What a code stands for where values are sketched: a whole number of 2^-kWeightOctaves, as it enters the product with
// them, in the last bits of the result; and of `code`, which comes as 2^23 + code. The last code stands for 0.
inline constexpr int kWeightOctaves = 15;
__device__ __forceinline__ float SketchWeight(float code, float steps_of_octave) {
  return Exp2(fmaf(code, -1.0f / steps_of_octave, 0x1p23f / steps_of_octave + kWeightOctaves)) + 0x1p23f;
}

// Codes of four heads of a token.
template <typename Code>
struct alignas(sizeof(Code) * kQuad) QuadCodes {
  static constexpr int kWords = sizeof(Code);
  uint32_t word[kWords];

  __device__ __forceinline__ float Weight(int i, float octaves) const {
    const float weight = Exp2(fmaf(Number(i), -1.0f / sampling::kStepsPerOctave<Code>, octaves));
    return IsNoWeight(i) ? 0.0f : weight;
  }

  // Of the weights' squares; octaves: twice those of Weight.
  __device__ __forceinline__ float SumSquares(const float (&octaves)[kQuad]) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) sum += Square(i, octaves[i]);
    if (HasNoWeight()) {  // few have
      sum = 0;
#pragma unroll
      for (int i = 0; i < kQuad; ++i) sum += IsNoWeight(i) ? 0.0f : Square(i, octaves[i]);
    }
    return sum;
  }

 private:
  __device__ __forceinline__ float Square(int i, float octaves) const {
    return Exp2(fmaf(Number(i), -2.0f / sampling::kStepsPerOctave<Code>, octaves));
  }
  // The code as the last bits of 2^23 + code, put there by one instruction.
  __device__ __forceinline__ float Number(int i) const {
    return __uint_as_float(sizeof(Code) == 1 ? __byte_perm(word[0], 0x4b000000, 0x7640 | i)
                                             : __byte_perm(word[i / 2], 0x4b000000, i % 2 == 0 ? 0x7410 : 0x7432)) -
           0x1p23f;
  }
  __device__ __forceinline__ bool IsNoWeight(int i) const { return Number(i) == sampling::kNoWeight<Code>; }
  // Whether any code has all its bits set: then one more in its last place, without the first, comes to the first.
  __device__ __forceinline__ bool HasNoWeight() const {
    constexpr uint32_t kFirst = sizeof(Code) == 1 ? 0x80808080 : 0x80008000;
    constexpr uint32_t kLast = kFirst >> (8 * sizeof(Code) - 1);
    uint32_t all_set = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) all_set |= word[i] & ((word[i] & ~kFirst) + kLast);
    return (all_set & kFirst) != 0;
  }
};

// Tokens that a thread takes at a time, one after the other from a multiple of as many on.
inline constexpr int kRunTokens = 4;

// sum over the heads of p~^2 of a run's tokens. codes: of its first token, quads of a token after one another; octaves:
// of its code block.
template <typename Code>
__device__ __forceinline__ void SumSquares(float (&sums)[kRunTokens], const QuadCodes<Code>* codes,
                                           const float* octaves, int quads) {
  struct alignas(16) Run {
    QuadCodes<Code> token[kRunTokens];
  };
  const auto twice = [octaves](int quad, float(&of_quad)[kQuad]) {
    const float4 once = *reinterpret_cast<const float4*>(octaves + kQuad * quad);
    of_quad[0] = 2 * once.x, of_quad[1] = 2 * once.y, of_quad[2] = 2 * once.z, of_quad[3] = 2 * once.w;
  };
  float of_quad[kQuad];
  if (quads == 1) {
    const Run run = *reinterpret_cast<const Run*>(codes);
    twice(0, of_quad);
#pragma unroll
    for (int token = 0; token < kRunTokens; ++token) sums[token] = run.token[token].SumSquares(of_quad);
    return;
  }
#pragma unroll
  for (int token = 0; token < kRunTokens; ++token) sums[token] = 0;
  for (int quad = 0; quad < quads; ++quad) {
    twice(quad, of_quad);
#pragma unroll
    for (int token = 0; token < kRunTokens; ++token) {
      sums[token] += codes[token * quads + quad].SumSquares(of_quad);
    }
  }
}

// log2 of a head's sum of 2^score over all splits, by a warp.
__device__ inline float HeadLse(const GroupArrays& arrays, int kv_head, int head, int group_size, int lane) {
  const float2* sums = arrays.split_sums(kv_head) + head;
  float max = kNegativeInfinity, sum = 0;
  for (int split = lane; split < arrays.num_splits(); split += 32) {
    const float2 part = __ldcg(sums + split * group_size);
    const float raised = fmaxf(max, part.x);
    sum = Rescale(max, raised) * sum + Rescale(part.x, raised) * part.y;
    max = raised;
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float other_max = __shfl_xor_sync(~0u, max, step), other_sum = __shfl_xor_sync(~0u, sum, step);
    const float raised = fmaxf(max, other_max);
    sum = Rescale(max, raised) * sum + Rescale(other_max, raised) * other_sum;
    max = raised;
  }
  return max + log2f(sum);
}

// The end of the item's full pages: SKETCHED reads the tokens of a page that is not full always.
__device__ __forceinline__ int FullPagesEnd(const DeviceItem& item, int page_shift) {
  return item.end >> page_shift << page_shift;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_INCLUSION_CUH_
