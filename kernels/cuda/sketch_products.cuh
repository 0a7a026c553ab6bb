// A warp's scores of a block of 64 tokens from the sketch of its keys.
//
// Codes become halves 1024 + code (of 4 bits also 1024 + 16 code) by one instruction and enter the product as they are.
// What has to be added to that, the columns' smallest numbers less what the 1024 have added, comes from one more
// product a page. Four query heads (a quad) are the even columns of the products' right operand, multiplied by the
// page's steps; the odd ones have the same heads without them, for the smallest numbers. So lane (r, c) = (lane / 4,
// lane % 4) gets the scores of tokens r and r + 8 of a slab for head c of the quad, and nothing is moved between lanes.
#ifndef SANTA_KERNELS_CUDA_SKETCH_PRODUCTS_CUH_
#define SANTA_KERNELS_CUDA_SKETCH_PRODUCTS_CUH_

#include <type_traits>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/group_splits.cuh"
#include "kernels/cuda/sketch_layout.h"

namespace santa::cuda {

// A lane's scores of a block: [slab][i] is token 16 slab + r + 8 i, head c.
using QuadScores = float[kBlockSlabs][2];

inline constexpr uint32_t kHalves1 = 0x3c003c00, kHalves1024 = 0x64006400, kHalvesMinus1024 = 0xe400e400;

// Right operands of a quad for all pages, in shared memory, with what stands in their place in the other kind of lane.
template <int D, int kQuads>
struct SketchQueries {
  uint4 of[kQuads][D / 32][32];  // of two steps of a product
  uint4 ones[D / 32][4];         // the odd columns' steps
  uint4 minus1024[D / 32][4];    // the even columns' smallest numbers
};

// Fills it, for codes of kBits, with the group's quads from `first_quad` on: queries in half precision, the largest
// element of the group's in [16, 32). Returns the factor that this took, with the sign of `scale`, so that the score's
// own factor is positive. All threads call it, and __syncthreads() afterwards.
template <int kBits, int D, int kQuads>
__device__ float LoadSketchQueries(SketchQueries<D, kQuads>& queries, const DecodeLaunch& launch,
                                   const DeviceItem& item, int kv_head, int first_quad, float scale) {
  const auto* group = static_cast<const uint16_t*>(item.q) + static_cast<size_t>(kv_head) * launch.group_size * D;
  const bool bf16 = launch.dtype == DType::kBFloat16;
  const auto widen = [bf16](uint32_t two) {
    return bf16 ? __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&two))
                : __half22float2(*reinterpret_cast<const __half2*>(&two));
  };
  float largest = 0;  // each warp finds it, with eight loads under way at once
  const auto* words = reinterpret_cast<const uint32_t*>(group);
  const int num_words = launch.group_size * D / 2;
#pragma unroll 1
  for (int first = threadIdx.x % 32; first < num_words; first += 8 * 32) {
    uint32_t eight[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) eight[i] = first + 32 * i < num_words ? words[first + 32 * i] : 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 pair = widen(eight[i]);
      largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
    }
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  // A power of two, from the exponent alone; 1 for a query of zeros.
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23);
  const float power =
      exponent == 0 ? 1.0f : __uint_as_float(static_cast<uint32_t>(max(1, 127 + 4 - (exponent - 127))) << 23);
  const float factor = scale < 0 ? -power : power;
  constexpr int kPairs = D / 32;
  const int quads = min(kQuads, (launch.group_size - kQuad * first_quad + kQuad - 1) / kQuad);
  for (int i = threadIdx.x; i < quads * kPairs * 32; i += blockDim.x) {
    const int lane = i % 32, pair = i / 32 % kPairs, quad = i / 32 / kPairs;
    const int head = kQuad * (first_quad + quad) + lane / 8;
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = head * D + 32 * pair + 2 * (lane % 4) + 8 * j;
      const float2 two = head < launch.group_size ? widen(*reinterpret_cast<const uint32_t*>(group + at)) : float2{};
      // Of 4 bits every other code is 16 times too large.
      const float mine = kBits == 4 && lane / 4 % 2 == 0 && j % 2 == 1 ? factor / 16 : factor;
      words[j] = Pack<__half>(two.x * mine, two.y * mine);
    }
    queries.of[quad][pair][lane] = {words[0], words[1], words[2], words[3]};
  }
  for (int i = threadIdx.x; i < kPairs * 4; i += blockDim.x) {
    queries.ones[i / 4][i % 4] = {kHalves1, kHalves1, kHalves1, kHalves1};
    queries.minus1024[i / 4][i % 4] = {kHalvesMinus1024, kHalvesMinus1024, kHalvesMinus1024, kHalvesMinus1024};
  }
  return factor;
}

__device__ __forceinline__ uint32_t Multiply(uint32_t a, uint32_t b) {
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// A quad's right operand for one page, and what is to be added to its head's scores.
template <int D>
struct PageQueries {
  uint2 step[D / 16];
  float add;

  template <int kQuads>
  __device__ __forceinline__ PageQueries(const SketchQueries<D, kQuads>& queries, int quad,
                                         const unsigned char* columns, int lane) {
    const int c = lane % 4;
    const bool odd_column = lane / 4 % 2 != 0;
    const auto* steps = reinterpret_cast<const uint4*>(columns);
    const uint4* multiply_by = (odd_column ? queries.ones[0] : steps) + c;
    const uint4* left = (odd_column ? steps + D / 8 : queries.minus1024[0]) + c;
    // Rows r have the smallest numbers of the pair's first step, rows r + 8 those of its second: of either product half
    // of the sums are meant.
    float first[4] = {}, second[4] = {};
#pragma unroll
    for (int pair = 0; pair < D / 32; ++pair) {
      const uint4 q = queries.of[quad][pair][lane], by = multiply_by[4 * pair], a = left[4 * pair];
      const uint2 even = {Multiply(q.x, by.x), Multiply(q.y, by.y)}, odd = {Multiply(q.z, by.z), Multiply(q.w, by.w)};
      Mma<__half>(first, a.x, a.y, a.z, a.w, even.x, even.y);
      Mma<__half>(second, a.x, a.y, a.z, a.w, odd.x, odd.y);
      step[2 * pair] = even;
      step[2 * pair + 1] = odd;
    }
    const float mine = odd_column ? first[1] + second[3] : first[0] + second[2];
    add = mine + __shfl_xor_sync(~0u, mine, 4);
  }
};

// (word & mask) | bits, which the compiler would make two instructions of.
__device__ __forceinline__ uint32_t MaskOr(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
}

// Two bytes of the word, from the `first` on, as halves 1024 + code.
__device__ __forceinline__ uint32_t BytePair(uint32_t word, int first) {
  return __byte_perm(word, 0x64646464, first == 0 ? 0x4140 : 0x4342);
}

// Dot products of a slab's sketch.
template <int D, int kBits>
__device__ __forceinline__ void ScoreSlab(float (&s)[2], const unsigned char* codes, const PageQueries<D>& page,
                                          int lane) {
  constexpr int kOfLoad = StepsOfLoad(D, kBits);
  using Load = std::conditional_t<WordsOfLoad(D, kBits) == 4, uint4, uint2>;
  float sums[4] = {page.add, 0, page.add, 0};
#pragma unroll
  for (int load = 0; load < D / 16 / kOfLoad; ++load) {
    const Load words = reinterpret_cast<const Load*>(codes)[load * 32 + lane];
#pragma unroll
    for (int i = 0; i < kOfLoad; ++i) {
      const uint32_t* of_step = reinterpret_cast<const uint32_t*>(&words) + i * WordsOfStep(kBits);
      const uint2 q = page.step[load * kOfLoad + i];
      if constexpr (kBits == 4) {
        const uint32_t word = of_step[0], upper = word >> 8;
        Mma<__half>(sums, MaskOr(word, 0x000f000f, kHalves1024), MaskOr(upper, 0x000f000f, kHalves1024),
                    MaskOr(word, 0x00f000f0, kHalves1024), MaskOr(upper, 0x00f000f0, kHalves1024), q.x, q.y);
      } else {
        Mma<__half>(sums, BytePair(of_step[0], 0), BytePair(of_step[0], 2), BytePair(of_step[1], 0),
                    BytePair(of_step[1], 2), q.x, q.y);
      }
    }
  }
  s[0] = sums[0];
  s[1] = sums[2];
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SKETCH_PRODUCTS_CUH_
