// A warp's scores of a block of 64 tokens from the sketch of its keys.
//
// Codes become halves 1024 + code by one instruction and enter the product as they are; of 4 bits two at once, of
// features f and f + 8: 1024 + (code of f) + 16 (code of f + 8), and masked 1024 + 16 (code of f + 8), so that the
// second one's query has what the first has of it too many taken off. What has to be added to that, the columns'
// smallest numbers less what the 1024 have added, comes from one more product a page. Four query heads (a quad) are the
// even columns of the products' right operand, multiplied by the page's steps; the odd ones have the same heads without
// them, for the smallest numbers. So lane (r, c) = (lane / 4, lane % 4) gets the scores of tokens r and r + 8 of a slab
// for head c of the quad, and nothing is moved between lanes.
#ifndef SANTA_KERNELS_CUDA_SKETCH_PRODUCTS_CUH_
#define SANTA_KERNELS_CUDA_SKETCH_PRODUCTS_CUH_

#include <type_traits>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/group_splits.cuh"
#include "kernels/cuda/sketch_layout.h"

namespace santa::cuda {

// A lane's scores of a block: [slab][i] is token 16 slab + r + 8 i, head c.
using QuadScores = float[kBlockSlabs][2];

inline constexpr uint32_t kHalves1 = 0x3c003c00, kHalvesMinus1 = 0xbc00bc00, kHalvesMinus1024 = 0xe400e400;

// Right operands of a quad for all pages, in shared memory, with what stands in their place in the other kind of lane.
template <int D, int kQuads>
struct SketchQueries {
  uint4 of[kQuads][D / 32][32];  // of two steps of a product
  uint4 ones[D / 32][4];         // the odd columns' steps
  uint4 minus1024[D / 32][4];    // the even columns' smallest numbers
};

// Two elements of a group's queries.
struct QueryPair {
  const DecodeLaunch& launch;

  __device__ __forceinline__ float2 operator()(uint32_t two) const {
    return launch.dtype == DType::kBFloat16 ? __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&two))
                                            : __half22float2(*reinterpret_cast<const __half2*>(&two));
  }
  __device__ __forceinline__ float Largest(uint32_t two) const {
    const float2 pair = (*this)(two);
    return fmaxf(fabsf(pair.x), fabsf(pair.y));
  }
};
__device__ __forceinline__ const uint32_t* QueryWords(const DecodeLaunch& launch, const DeviceItem& item, int kv_head,
                                                      int head, int head_dim) {
  return static_cast<const uint32_t*>(item.q) + (kv_head * launch.group_size + head) * (head_dim / 2);
}

// The words that become queries.of[quad][pair][lane], i = (quad * D / 32 + pair) * 32 + lane.
template <int D>
__device__ __forceinline__ uint4 QueryWordsOf(const DecodeLaunch& launch, const DeviceItem& item, int kv_head,
                                              int first_quad, int i) {
  const int lane = i % 32, pair = i / 32 % (D / 32), quad = i / D;
  const int head = kQuad * (first_quad + quad) + lane / 8;
  if (head >= launch.group_size) return {};
  const uint32_t* words = QueryWords(launch, item, kv_head, head, D) + 16 * pair + lane % 4;
  return {words[0], words[4], words[8], words[12]};
}

// Fills it, for codes of kBits, with the group's quads from `first_quad` on: queries in half precision, the largest
// element of the group's, of which each lane of a warp has seen some, in [16, 32). words_of(i): of QueryWordsOf.
// Returns the factor that this took, with the sign of `scale`, so that the score's own factor is positive. All threads
// call it, and __syncthreads() afterwards.
template <int kBits, int D, int kQuads, typename WordsOf>
__device__ __forceinline__ float FillSketchQueries(SketchQueries<D, kQuads>& queries, const DecodeLaunch& launch,
                                                   int first_quad, float scale, float largest,
                                                   const WordsOf& words_of) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  // A power of two, from the exponent alone; 1 for a query of zeros.
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23);
  const float power =
      exponent == 0 ? 1.0f : __uint_as_float(static_cast<uint32_t>(max(1, 127 + 4 - (exponent - 127))) << 23);
  const float factor = scale < 0 ? -power : power;
  const int quads = min(kQuads, (launch.group_size - kQuad * first_quad + kQuad - 1) / kQuad);
  const QueryPair pair_of{launch};
  for (int i = threadIdx.x; i < quads * D; i += blockDim.x) {
    const uint4 raw = words_of(i);
    uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 two = pair_of(words[j]);
      // Of 4 bits every other code is 16 times too large.
      const float mine = kBits == 4 && i / 4 % 2 == 0 && j % 2 == 1 ? factor / 16 : factor;
      words[j] = Pack<__half>(two.x * mine, two.y * mine);
    }
    queries.of[i / D][i / 32 % (D / 32)][i % 32] = {words[0], words[1], words[2], words[3]};
  }
  for (int i = threadIdx.x; i < D / 8; i += blockDim.x) {
    queries.ones[i / 4][i % 4] = {kHalves1, kHalves1, kHalves1, kHalves1};
    queries.minus1024[i / 4][i % 4] = {kHalvesMinus1024, kHalvesMinus1024, kHalvesMinus1024, kHalvesMinus1024};
  }
  return factor;
}
// Likewise, straight from memory.
template <int kBits, int D, int kQuads>
__device__ float LoadSketchQueries(SketchQueries<D, kQuads>& queries, const DecodeLaunch& launch,
                                   const DeviceItem& item, int kv_head, int first_quad, float scale) {
  const QueryPair pair_of{launch};
  float largest = 0;  // each warp finds it, with eight loads under way at once
  const uint32_t* words = QueryWords(launch, item, kv_head, 0, D);
  const int num_words = launch.group_size * D / 2;
#pragma unroll 1
  for (int first = threadIdx.x % 32; first < num_words; first += 8 * 32) {
    uint32_t eight[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) eight[i] = first + 32 * i < num_words ? words[first + 32 * i] : 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, pair_of.Largest(eight[i]));
  }
  return FillSketchQueries<kBits>(queries, launch, first_quad, scale, largest,
                                  [&](int i) { return QueryWordsOf<D>(launch, item, kv_head, first_quad, i); });
}

// The words of a group of up to kQuads quads that a thread needs for that, asked for at once: to be on their way before
// copies are, behind which they would wait. A block has kQuads * D threads or more.
template <int D, int kQuads>
class EarlyQueries {
 public:
  __device__ __forceinline__ void Ask(const DecodeLaunch& launch, const DeviceItem& item, int kv_head) {
    const uint32_t* words = QueryWords(launch, item, kv_head, 0, D);
    const int num_words = launch.group_size * D / 2, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kWords; ++i) some_[i] = lane + 32 * i < num_words ? words[lane + 32 * i] : 0;
    const int i = threadIdx.x;
    mine_ = i < kQuads * D ? QueryWordsOf<D>(launch, item, kv_head, 0, i) : uint4{};
  }
  // As LoadSketchQueries.
  template <int kBits>
  __device__ __forceinline__ float Fill(SketchQueries<D, kQuads>& queries, const DecodeLaunch& launch,
                                        float scale) const {
    const QueryPair pair_of{launch};
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) largest = fmaxf(largest, pair_of.Largest(some_[i]));
    return FillSketchQueries<kBits>(queries, launch, 0, scale, largest, [&](int) { return mine_; });
  }

 private:
  static constexpr int kWords = kQuads * kQuad * D / 2 / 32;  // of a lane: a warp has all

  uint32_t some_[kWords];
  uint4 mine_;
};

__device__ __forceinline__ uint32_t Multiply(uint32_t a, uint32_t b) {
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// a b + c
__device__ __forceinline__ uint32_t MultiplyAdd(uint32_t a, uint32_t b, uint32_t c) {
  const __half2 sum = __hfma2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b),
                              *reinterpret_cast<const __half2*>(&c));
  return *reinterpret_cast<const uint32_t*>(&sum);
}

// A quad's right operand for one page, and what is to be added to its head's scores.
template <int D, int kBits>
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
    const uint32_t less = odd_column ? 0 : kHalvesMinus1;
    // Of features f and f + 8.
    const auto multiply = [&](uint32_t low, uint32_t by_low, uint32_t high, uint32_t by_high) -> uint2 {
      low = Multiply(low, by_low);
      if constexpr (kBits == 4) return {low, MultiplyAdd(high, by_high, Multiply(low, less))};
      return {low, Multiply(high, by_high)};
    };
    // Rows r have the smallest numbers of the pair's first step, rows r + 8 those of its second: of either product half
    // of the sums are meant.
    float first[4] = {}, second[4] = {};
#pragma unroll
    for (int pair = 0; pair < D / 32; ++pair) {
      const uint4 q = queries.of[quad][pair][lane], by = multiply_by[4 * pair], a = left[4 * pair];
      const uint2 even = multiply(q.x, by.x, q.y, by.y), odd = multiply(q.z, by.z, q.w, by.w);
      Mma<__half>(first, a.x, a.y, a.z, a.w, even.x, even.y);
      Mma<__half>(second, a.x, a.y, a.z, a.w, odd.x, odd.y);
      step[2 * pair] = even;
      step[2 * pair + 1] = odd;
    }
    const float mine = odd_column ? first[1] + second[3] : first[0] + second[2];
    add = mine + __shfl_xor_sync(~0u, mine, 4);
  }
};

// Bytes kFirst and kSecond of the word as halves 1024 + byte.
template <int kFirst, int kSecond>
__device__ __forceinline__ uint32_t BytePair(uint32_t word) {
  return __byte_perm(word, 0x64646464, 0x4040 + kFirst + 0x100 * kSecond);
}

// Dot products of the sketches of kSlabs slabs, slab_bytes apart, which are of one page or of one each. A product waits
// for the one before it of the same slab, and for no other: so all slabs go step by step.
template <int D, int kBits, int kSlabs, int kPages>
__device__ __forceinline__ void ScoreSlabs(float (&s)[kSlabs][2], const unsigned char* codes, int slab_bytes,
                                           const PageQueries<D, kBits> (&pages)[kPages], int lane) {
  static_assert(kPages == 1 || kPages == kSlabs);
  constexpr int kOfLoad = StepsOfLoad(D, kBits);
  using Load = std::conditional_t<WordsOfLoad(D, kBits) == 4, uint4, uint2>;
  float sums[kSlabs][4] = {};
#pragma unroll
  for (int load = 0; load < D / 16 / kOfLoad; ++load) {
    Load words[kSlabs];
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      words[slab] = reinterpret_cast<const Load*>(codes + slab * slab_bytes)[load * 32 + lane];
    }
#pragma unroll
    for (int i = 0; i < kOfLoad; ++i) {
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab) {
        const uint32_t* of_step = reinterpret_cast<const uint32_t*>(&words[slab]) + i * WordsOfStep(kBits);
        const uint2 q = pages[kPages == 1 ? 0 : slab].step[load * kOfLoad + i];
        if constexpr (kBits == 4) {
          constexpr uint32_t kUpper = 0xfff0fff0;
          const uint32_t r = BytePair<0, 2>(of_step[0]), r8 = BytePair<1, 3>(of_step[0]);
          Mma<__half>(sums[slab], r, r8, r & kUpper, r8 & kUpper, q.x, q.y);
        } else {
          Mma<__half>(sums[slab], BytePair<0, 1>(of_step[0]), BytePair<2, 3>(of_step[0]), BytePair<0, 1>(of_step[1]),
                      BytePair<2, 3>(of_step[1]), q.x, q.y);
        }
      }
    }
  }
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
    // Last, so that these products wait for no others.
    const float add = pages[kPages == 1 ? 0 : slab].add;
    s[slab][0] = sums[slab][0] + add;
    s[slab][1] = sums[slab][2] + add;
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SKETCH_PRODUCTS_CUH_
