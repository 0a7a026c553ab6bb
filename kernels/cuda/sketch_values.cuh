// A warp's weighted sums of a block of 64 tokens from the sketch of its values.
//
// A product of bytes: codes are the left operand, with features as its rows and tokens as its columns; of 4 bits those
// of features r + 8 come 16 times as large, which saves shifting them. Weights are whole numbers of 16 bits: of the
// right operand's eight columns 2c is the upper byte of head c of a quad and 2c + 1 the lower one, so that lane (r, c)
// = (lane / 4, lane % 4) gets the sums of the very head whose scores it has, and they are exact. Steps and smallest
// numbers come in once a page: sum w v~ = step sum w code + low sum w.
#ifndef SANTA_KERNELS_CUDA_SKETCH_VALUES_CUH_
#define SANTA_KERNELS_CUDA_SKETCH_VALUES_CUH_

#include <type_traits>

#include "kernels/cuda/sketch_scores.cuh"

namespace santa::cuda {

// Right operands of a block's slabs for a quad, two of which make one.
using BlockWeights = uint32_t[kBlockSlabs];

// What is added to weights with a sign before their bytes are taken: the upper byte is right then, and the lower one
// but for its first bit.
inline constexpr int kSignedBytes = 0x80;

// From weights as the lanes have the scores: [2 slab + i] is token 16 slab + r + 8 i, head c; in the last 16 bits.
// Right: int8_t for weights with a sign, kSignedBytes more than they are; else uint8_t.
template <typename Right = uint8_t>
__device__ __forceinline__ void TurnWeights(BlockWeights& to, const uint32_t (&weights)[2 * kBlockSlabs]) {
  constexpr uint32_t kFirstBits = std::is_signed_v<Right> ? kSignedBytes * 0x01010000u : 0;  // of the lower bytes
#pragma unroll
  for (int slab = 0; slab < kBlockSlabs; ++slab) {
    to[slab] = Transpose8x8(__byte_perm(weights[2 * slab], weights[2 * slab + 1], 0x4051) ^ kFirstBits);
  }
}

// Features r and r + 8 of a lane's words of a tile, as bytes; those of r + 8 are so many times as large.
template <int kBits>
struct ValueBytes {
  static constexpr int kUpperFactor = kBits == 4 ? 16 : 1;
  uint32_t lower, upper;

  __device__ __forceinline__ explicit ValueBytes(const uint32_t* words)
      : lower(kBits == 4 ? words[0] & 0x0f0f0f0f : words[0]),
        upper(kBits == 4 ? words[0] & 0xf0f0f0f0 : words[WordsOfStep(kBits) - 1]) {}
};

// The sum of the two bytes' products.
__device__ __forceinline__ float WholeSum(int32_t of_upper_bytes, int32_t of_lower_bytes) {
  return static_cast<float>(of_upper_bytes * 256 + of_lower_bytes);
}

// A lane's sums over blocks for heads c of the quads. What they are measured in all lanes of a head know: at first the
// largest score of a block, raised where that would leave too little room.
template <int D, int kQuads>
struct ValueTotals {
  LaneSum scores[kQuads];              // of all visible tokens; for probabilities
  float mass[kQuads] = {};             // sum of e~ of all tokens with a sketch
  float sums[kQuads][D / 16][2] = {};  // of e~ v~: features 16 tile + r, then 16 tile + r + 8

  // Makes room for scores of up to `max`.
  __device__ __forceinline__ void Raise(const float (&max)[kQuads]) {
    constexpr float kRoom = 32;  // octaves
    bool raises = false;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) raises |= max[quad] > scores[quad].max + kRoom;
    if (!__any_sync(~0u, raises)) return;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      LaneSum& score = scores[quad];
      const float raised = max[quad] > score.max + kRoom ? max[quad] : score.max, keep = Exp2(score.max - raised);
      score.max = raised;
      score.sum *= keep;
      mass[quad] *= keep;
#pragma unroll
      for (int tile = 0; tile < D / 16; ++tile) {
        sums[quad][tile][0] *= keep;
        sums[quad][tile][1] *= keep;
      }
    }
  }
};

// Adds a block whose pages have kPartSlabs slabs each in it, of which those with a token from `begin` on are there, and
// have a sketch before `sketched_end`. weights: of all of the block's tokens; factor: what brings them to the totals.
template <int kBits, int kPartSlabs, typename Right = uint8_t, int D, int kQuads>
__device__ __forceinline__ void AddParts(ValueTotals<D, kQuads>& totals, const unsigned char* stage,
                                         const BlockWeights (&weights)[kQuads], const float (&factor)[kQuads],
                                         int first_token, int begin, int sketched_end, int lane) {
  using Geometry = SketchGeometry<D, kBits>;
  using Load = std::conditional_t<WordsOfLoad(D, kBits) == 4, uint4, uint2>;
  using Bytes = ValueBytes<kBits>;
  constexpr int kTiles = StepsOfLoad(D, kBits), kLoads = D / 16 / kTiles, kPartTokens = kPartSlabs * kSlabRows;
  constexpr int kPairs = (kPartSlabs + 1) / 2;  // of slabs, which a product takes; the last may be a half
  constexpr int kPartBytes = kPartSlabs * Geometry::kSlabBytes + Geometry::kColumnBytes;
#pragma unroll
  for (int part = 0; part < kBlockSlabs / kPartSlabs; ++part) {
    const int token = first_token + part * kPartTokens;
    if (token + kPartTokens <= begin) continue;
    const auto weight = [&](int quad, int slab) {
      return slab < kPartSlabs ? weights[quad][part * kPartSlabs + slab] : 0;
    };
    float mass[kQuads];  // of the part, as are the factors
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      int32_t sums[4] = {};
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        constexpr uint32_t kOnes = 0x01010101;
        MmaBytes<Right>(sums, kOnes, kOnes, kOnes, kOnes, weight(quad, 2 * pair), weight(quad, 2 * pair + 1));
      }
      mass[quad] = WholeSum(sums[0], sums[1]);
      totals.scores[quad].sum = fmaf(factor[quad], mass[quad], totals.scores[quad].sum);
    }
    if (token >= sketched_end) continue;
    const unsigned char* codes = stage + part * kPartBytes;
    const uint2* columns = reinterpret_cast<const uint2*>(codes + kPartSlabs * Geometry::kSlabBytes) + lane / 4;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) totals.mass[quad] = fmaf(factor[quad], mass[quad], totals.mass[quad]);
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      int32_t products[kQuads][kTiles][4] = {};
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const auto words_of = [&](int slab) {
          return slab < kPartSlabs
                     ? reinterpret_cast<const Load*>(codes + slab * Geometry::kSlabBytes)[load * 32 + lane]
                     : Load{};
        };
        const Load words[2] = {words_of(2 * pair), words_of(2 * pair + 1)};
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const Bytes first(reinterpret_cast<const uint32_t*>(&words[0]) + i * WordsOfStep(kBits));
          const Bytes second(reinterpret_cast<const uint32_t*>(&words[1]) + i * WordsOfStep(kBits));
#pragma unroll
          for (int quad = 0; quad < kQuads; ++quad) {
            MmaBytes<Right>(products[quad][i], first.lower, first.upper, second.lower, second.upper,
                            weight(quad, 2 * pair), weight(quad, 2 * pair + 1));
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int tile = load * kTiles + i;
        const uint2 column = columns[8 * tile];
        const float2 step = __half22float2(*reinterpret_cast<const __half2*>(&column.x));
        const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&column.y));
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
          const int32_t(&of)[4] = products[quad][i];
          float(&sums)[2] = totals.sums[quad][tile];
          constexpr float kUpper = Bytes::kUpperFactor;
          sums[0] = fmaf(factor[quad], fmaf(step.x, WholeSum(of[0], of[1]), low.x * mass[quad]), sums[0]);
          sums[1] =
              fmaf(factor[quad] / kUpper, fmaf(step.y, WholeSum(of[2], of[3]), low.y * (mass[quad] * kUpper)), sums[1]);
        }
      }
    }
  }
}

// The same for pages of any size.
template <int kBits, int D, int kQuads>
__device__ __forceinline__ void AddBlock(ValueTotals<D, kQuads>& totals, const SketchGeometry<D, kBits>& geometry,
                                         const unsigned char* stage, const BlockWeights (&weights)[kQuads],
                                         const float (&factor)[kQuads], int first_token, int begin, int sketched_end,
                                         int lane) {
  const auto add = [&](auto part_slabs) {
    AddParts<kBits, decltype(part_slabs)::value>(totals, stage, weights, factor, first_token, begin, sketched_end,
                                                 lane);
  };
  if (geometry.parts == 1) return add(std::integral_constant<int, 4>());
  if (geometry.parts == 2) return add(std::integral_constant<int, 2>());
  add(std::integral_constant<int, 1>());
}

// The warps' totals of a quad's heads over a split on their way to the split's, in shared memory: [warp][head][kPitch],
// what the sums are measured in, the scores' sum, the mass, then features from 4 on.
template <int D, int kWarps>
struct TotalsMerger {
  static constexpr int kPitch = D + 8;  // lanes (r, c) lie in different banks
  float* memory;
  int heads;  // of the quad

  static __host__ __device__ int Bytes(int heads) { return kWarps * heads * kPitch * static_cast<int>(sizeof(float)); }

  __device__ __forceinline__ float* At(int warp, int head) const { return memory + (warp * heads + head) * kPitch; }

  // Leaves a warp's.
  template <int kQuads>
  __device__ __forceinline__ void Leave(const ValueTotals<D, kQuads>& totals, int quad, int warp, int lane) const {
    const int head = lane % 4;
    if (head >= heads) return;
    float* to = At(warp, head);
    if (lane < 4) {
      to[0] = totals.scores[quad].max;
      to[1] = totals.scores[quad].sum;
      to[2] = totals.mass[quad];
    }
#pragma unroll
    for (int tile = 0; tile < D / 16; ++tile) {
      to[4 + 16 * tile + lane / 4] = totals.sums[quad][tile][0];
      to[4 + 16 * tile + lane / 4 + 8] = totals.sums[quad][tile][1];
    }
  }

  // Adds the warps up. first_head: of the quad. All threads call it, between barriers.
  __device__ __forceinline__ void Write(const GroupArrays& arrays, int kv_head, int split, int first_head,
                                        int group_size) const {
    for (int i = 4 * threadIdx.x; i < heads * D; i += 4 * 32 * kWarps) {
      const int head = i / D, dim = i % D;
      float max = kNegativeInfinity;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) max = fmaxf(max, At(warp, head)[0]);
      float4 of_values = {};
      float sum = 0, mass = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        const float* from = At(warp, head);
        const float factor = Rescale(from[0], max);
        of_values += factor * *reinterpret_cast<const float4*>(from + 4 + dim);
        sum = fmaf(factor, from[1], sum);
        mass = fmaf(factor, from[2], mass);
      }
      *reinterpret_cast<float4*>(arrays.sketch_sums(kv_head, split) + (first_head + head) * D + dim) = of_values;
      if (dim != 0) continue;
      arrays.split_sums(kv_head)[split * group_size + first_head + head] = make_float2(max, sum);
      arrays.sketch_masses(kv_head)[split * group_size + first_head + head] = make_float2(max, mass);
    }
  }
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SKETCH_VALUES_CUH_
