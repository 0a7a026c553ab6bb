// From what splits leave in one pass (kernels/cuda/group_layout.h) to a group's answer. Sums w v of four splits become
// one, by the block whose warps have them or by the one that adds up all; then these are added up. Either way every sum
// is taken in the same order, and the bits are the same.
#ifndef SANTA_KERNELS_CUDA_FOUR_SUMS_CUH_
#define SANTA_KERNELS_CUDA_FOUR_SUMS_CUH_

#include "kernels/cuda/group_answer.cuh"
#include "kernels/cuda/row_signs.cuh"

namespace santa::cuda {

// Fused by name, and not as the compiler sees fit: two places take the same sum.
__device__ __forceinline__ void AddTo(float4& sum, float factor, float4 v) {
  sum = {fmaf(factor, v.x, sum.x), fmaf(factor, v.y, sum.y), fmaf(factor, v.z, sum.z), fmaf(factor, v.w, sum.w)};
}

// What brings four splits' sums to the largest of their references, -inf of one that there is not.
struct FourFactors {
  float reference, of[kSplitsOfFour];

  __device__ __forceinline__ explicit FourFactors(const float (&references)[kSplitsOfFour])
      : reference(fmaxf(fmaxf(references[0], references[1]), fmaxf(references[2], references[3]))) {
#pragma unroll
    for (int i = 0; i < kSplitsOfFour; ++i) of[i] = Rescale(references[i], reference);
  }
};

// Makes one sum w v of those of the block's `count` splits, and writes it and the splits' numbers. left: what the first
// split's warp has left, [G][D] and numbers; of each other one `stride` floats further; to be seen by all threads,
// which all call it.
template <int D>
__device__ __forceinline__ void MergeFour(const GroupArrays& arrays, int kv_head, int first_split, int count,
                                          int group_size, const float* left, int stride) {
  const int num_numbers = kPassNumbers * group_size;
  const auto numbers = [&](int i) { return left + i * stride + group_size * D; };
  for (int at = threadIdx.x; at < count * num_numbers; at += kGatherThreads) {
    const int i = at / num_numbers, number = at % num_numbers;
    arrays.pass_numbers(kv_head, first_split + i)[number] = numbers(i)[number];
  }
  auto* const output = reinterpret_cast<float4*>(arrays.pass_output(kv_head, first_split / kSplitsOfFour));
  for (int quad = threadIdx.x; quad < group_size * D / 4; quad += kGatherThreads) {
    float references[kSplitsOfFour];
#pragma unroll
    for (int i = 0; i < kSplitsOfFour; ++i) {
      references[i] = i < count ? numbers(i)[kPassOfAll * group_size + quad / (D / 4)] : kNegativeInfinity;
    }
    const FourFactors factors(references);
    float4 sum = {};
#pragma unroll
    for (int i = 0; i < kSplitsOfFour; ++i) {
      if (i < count) AddTo(sum, factors.of[i], reinterpret_cast<const float4*>(left + i * stride)[quad]);
    }
    output[quad] = sum;
  }
}

// Fours, and their splits, that are added up at once: each four has a thread for each head.
inline constexpr int kFoursAtOnce = 8, kSplitsAtOnce = kFoursAtOnce * kSplitsOfFour;

// What is left of a group's numbers: sum w, sum of Y^2, rounding, rows left to chance.
enum TotalNumber { kTotalW, kTotalSquares, kTotalRounding, kTotalRows, kTotals };
static_assert(int{kTotalW} == int{kSumW} && int{kTotals} <= int{kPartialSums});

struct FourShared {
  static constexpr int kHeads = AnswerShared<1>::kHeads;
  float reference[kReferences][kFoursAtOnce][kHeads];
  float factor[kFoursAtOnce][kHeads];          // of a four's sum w v
  float keep[kReferences][kHeads];             // of what has been added
  float total[kTotals][kFoursAtOnce][kHeads];  // a four's numbers, against the group's references
  float signed_factor[kSplitsAtOnce][kHeads];  // of a split's signed sums
  float signed_w[kSplitsAtOnce][kHeads];       // Y, times that
  float split_factor[kSplitsAtOnce][kHeads];   // of a split's sum w v, where fours have not been merged
  bool last[kSplitsAtOnce];                    // of the splits that are squared together
};

// Brings the numbers of the fours from `from` on, kFoursAtOnce of them, into shared memory, and the totals so far up to
// date. reference: of the thread's head, as far as it is known. All threads call it.
__device__ __forceinline__ void AddNumbers(const GroupArrays& arrays, int kv_head, int group_size, int from,
                                           AnswerShared<1>& shared, FourShared& fours,
                                           float (&reference)[kReferences]) {
  static_assert(kFoursAtOnce * FourShared::kHeads <= kGatherThreads);
  const int four = threadIdx.x / group_size, head = threadIdx.x % group_size;
  const bool has_four = four < kFoursAtOnce;
  float of[kPassNumbers][kSplitsOfFour];
  if (has_four) {
#pragma unroll
    for (int n = 0; n < kPassNumbers; ++n) {
#pragma unroll
      for (int i = 0; i < kSplitsOfFour; ++i) {
        const int split = (from + four) * kSplitsOfFour + i;
        of[n][i] = split < arrays.num_splits() ? __ldcg(arrays.pass_numbers(kv_head, split) + n * group_size + head)
                   : n == kPassOfAll || n == kPassOfChance ? kNegativeInfinity
                                                           : 0.0f;
      }
    }
    fours.reference[kOfAll][four][head] = FourFactors(of[kPassOfAll]).reference;
    fours.reference[kOfChance][four][head] = FourFactors(of[kPassOfChance]).reference;
  }
  __syncthreads();
  if (has_four) {
#pragma unroll
    for (int r = 0; r < kReferences; ++r) {
      const float before = reference[r];
#pragma unroll
      for (int i = 0; i < kFoursAtOnce; ++i) reference[r] = fmaxf(reference[r], fours.reference[r][i][head]);
      if (four == 0) fours.keep[r][head] = Rescale(before, reference[r]);
    }
    const FourFactors factors(of[kPassOfAll]);
    const float of_four = Rescale(factors.reference, reference[kOfAll]);
    const SplitSigns signs(of[kPassRows], (from + four) * kSplitsOfFour);
    float w = 0, squares = 0, rounding = 0, rows = 0, y = 0;
#pragma unroll
    for (int i = 0; i < kSplitsOfFour; ++i) {
      const int split = four * kSplitsOfFour + i;
      const float factor = Rescale(of[kPassOfChance][i], reference[kOfChance]);
      const float signed_factor = Signed(factor, signs.sign[i]), mine = signed_factor * of[kPassSigned][i];
      fours.split_factor[split][head] = factors.of[i];
      fours.signed_factor[split][head] = signed_factor;
      fours.signed_w[split][head] = mine;
      if (head == 0) fours.last[split] = signs.last[i];
      w = fmaf(factors.of[i], of[kPassW][i], w);
      y += mine;
      if (signs.last[i]) {
        squares = fmaf(y, y, squares);
        y = 0;
      }
      rounding = fmaf(factor * factor, of[kPassRounding][i], rounding);
      rows += of[kPassRows][i];
    }
    fours.factor[four][head] = of_four;
    fours.total[kTotalW][four][head] = of_four * w;
    fours.total[kTotalSquares][four][head] = squares;
    fours.total[kTotalRounding][four][head] = rounding;
    fours.total[kTotalRows][four][head] = rows;
  }
  __syncthreads();
  if (threadIdx.x < group_size) {
    const float keep = fours.keep[kOfAll][head], keep_chance = fours.keep[kOfChance][head];
    const float kept[kTotals] = {keep, keep_chance * keep_chance, keep_chance * keep_chance, 1};
#pragma unroll
    for (int n = 0; n < kTotals; ++n) {
      float sum = from == 0 ? 0.0f : kept[n] * shared.number[n][head];
#pragma unroll
      for (int i = 0; i < kFoursAtOnce; ++i) sum += fours.total[n][i][head];
      shared.number[n][head] = sum;
    }
    shared.reference[0][kOfAll][head] = reference[kOfAll];
    shared.reference[0][kOfChance][head] = reference[kOfChance];
  }
}

// Adds sums w v of those fours to `sums`, [G][D].
template <int D, bool kMerged>
__device__ __forceinline__ void AddOutputs(const GroupArrays& arrays, int kv_head, int group_size, int from,
                                           const FourShared& fours, float4* sums) {
  constexpr int kOfFour = kMerged ? 1 : kSplitsOfFour, kPart = kMerged ? kFoursAtOnce : kFoursAtOnce / 2;
  const int count = kMerged ? arrays.num_fours() : arrays.num_splits();
#pragma unroll 1
  for (int quad = threadIdx.x; quad < group_size * D / 4; quad += kGatherThreads) {
    const int head = quad / (D / 4);
    float4 sum = {};
    if (from > 0) AddTo(sum, fours.keep[kOfAll][head], sums[quad]);
#pragma unroll 1
    for (int first = 0; first < kFoursAtOnce; first += kPart) {
      float4 loads[kPart * kOfFour];  // all on their way at once
#pragma unroll
      for (int i = 0; i < kPart * kOfFour; ++i) {
        const int at = (from + first) * kOfFour + i;
        const auto* output = reinterpret_cast<const float4*>(arrays.pass_output(kv_head, at));
        loads[i] = at < count ? __ldcg(output + quad) : float4{};
      }
#pragma unroll
      for (int i = 0; i < kPart; ++i) {
        float4 of_four = {};
        if constexpr (kMerged) {
          of_four = loads[i];
        } else {
#pragma unroll
          for (int j = 0; j < kSplitsOfFour; ++j) {
            const int split = kSplitsOfFour * i + j;
            AddTo(of_four, fours.split_factor[kSplitsOfFour * first + split][head], loads[split]);
          }
        }
        AddTo(sum, fours.factor[first + i][head], of_four);
      }
    }
    sums[quad] = sum;
  }
}

// Adds sum X^2 and sum X Y of those fours to `squares` and `products`, [G][D]. A thread has two dimensions of two
// heads.
template <int D>
__device__ __forceinline__ void AddSigned(const GroupArrays& arrays, int kv_head, int group_size, int from,
                                          const FourShared& fours, float* squares, float* products) {
  constexpr int kHalf = kSplitsAtOnce / 2;
#pragma unroll 1
  for (int cell = threadIdx.x; cell < PassSplit::Words(group_size, D) / 2; cell += kGatherThreads) {
    const int pair = cell / (D / 2), d = 2 * (cell % (D / 2));
    float2 square[2] = {}, product[2] = {}, x[2] = {};
    float y[2] = {};
#pragma unroll 1
    for (int first = 0; first < kSplitsAtOnce; first += kHalf) {
      uint2 loads[kHalf];  // all on their way at once
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const int split = from * kSplitsOfFour + first + i;
        const auto* words = reinterpret_cast<const uint2*>(arrays.pass_signed(kv_head, split));
        loads[i] = split < arrays.num_splits() ? __ldcg(words + cell) : uint2{};
      }
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const float2 at_d = Unpack<__nv_bfloat16>(loads[i].x), after_d = Unpack<__nv_bfloat16>(loads[i].y);
        const float2 of_head[2] = {{at_d.x, after_d.x}, {at_d.y, after_d.y}};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float factor = fours.signed_factor[first + i][2 * pair + h];
          x[h] = {fmaf(factor, of_head[h].x, x[h].x), fmaf(factor, of_head[h].y, x[h].y)};
          y[h] += fours.signed_w[first + i][2 * pair + h];
        }
        if (!fours.last[first + i]) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          square[h] = {fmaf(x[h].x, x[h].x, square[h].x), fmaf(x[h].y, x[h].y, square[h].y)};
          product[h] = {fmaf(x[h].x, y[h], product[h].x), fmaf(x[h].y, y[h], product[h].y)};
          x[h] = {};
          y[h] = 0;
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = 2 * pair + h;
      if (head >= group_size) break;
      auto& to_squares = *reinterpret_cast<float2*>(squares + head * D + d);
      auto& to_products = *reinterpret_cast<float2*>(products + head * D + d);
      if (from > 0) {
        const float keep = fours.keep[kOfChance][head] * fours.keep[kOfChance][head];
        square[h] = {fmaf(keep, to_squares.x, square[h].x), fmaf(keep, to_squares.y, square[h].y)};
        product[h] = {fmaf(keep, to_products.x, product[h].x), fmaf(keep, to_products.y, product[h].y)};
      }
      to_squares = square[h];
      to_products = product[h];
    }
  }
}

// Adds up what a group's splits have left: sum w v, of fours that have been merged or not, and where errors are wanted
// sum X^2 and sum X Y of each dimension, to vectors [kPartialVectors][G][D] in shared memory; numbers to shared.number,
// against shared.reference[0]. All threads call it.
template <int D, bool kMerged>
__device__ __forceinline__ void AddFours(const GroupArrays& arrays, int kv_head, int group_size,
                                         AnswerShared<1>& shared, FourShared& fours, float* vectors, bool wants_error) {
  float reference[kReferences] = {kNegativeInfinity, kNegativeInfinity};
#pragma unroll 1
  for (int from = 0; from < arrays.num_fours(); from += kFoursAtOnce) {
    if (from > 0) __syncthreads();  // what is in shared memory has been read
    AddNumbers(arrays, kv_head, group_size, from, shared, fours, reference);
    AddOutputs<D, kMerged>(arrays, kv_head, group_size, from, fours, reinterpret_cast<float4*>(vectors));
    if (!wants_error) continue;
    float* const squares = vectors + group_size * D;
    AddSigned<D>(arrays, kv_head, group_size, from, fours, squares, squares + group_size * D);
  }
  __syncthreads();
}

// For Answer: what these sums tell of a head's error.
template <int D>
struct FourErrors {
  const AnswerShared<1>& shared;
  const float* const vectors;
  const int group_size;
  const bool ratio;

  // Of four dimensions from d on, of which x are the answer's: |X - o Y|^2, or |X|^2.
  __device__ __forceinline__ float Of(int head, int d, const float (&x)[4]) const {
    const float* squares = vectors + (group_size + head) * D + d;
    const float* products = squares + group_size * D;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum += squares[i];
      if (ratio) sum += x[i] * (x[i] * shared.number[kTotalSquares][head] - 2 * products[i]);
    }
    return sum;
  }
  // The squared error, against the reference of chance, from the sum of that over all dimensions. A row that alone is
  // left to chance tells nothing.
  __device__ __forceinline__ float Squared(int head, float sum, float /*norm*/) const {
    const float rows = shared.number[kTotalRows][head];
    if (rows < 2) return rows == 0 ? 0.0f : NAN;
    return (sum < 0 ? 0.0f : sum) + shared.number[kTotalRounding][head];
  }
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_FOUR_SUMS_CUH_
