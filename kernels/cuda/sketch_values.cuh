// A warp's weighted sums of a block of 64 tokens from the sketch of its values.
//
// Codes become halves 16 + code (of 8 bits 1024 + code), the left operand with features as its rows and tokens as its
// columns; weights, in half precision too, are the right one. What the 16 have added is taken off again, and steps and
// smallest numbers come in, once a block: sum w v~ = step (sum w (16 + code) - 16 sum w) + low sum w. Of the eight
// columns 2c and 2c + 1 are heads c of two quads, so that lane (r, c) = (lane / 4, lane % 4) gets the sums of the very
// heads whose scores it has.
#ifndef SANTA_KERNELS_CUDA_SKETCH_VALUES_CUH_
#define SANTA_KERNELS_CUDA_SKETCH_VALUES_CUH_

#include <type_traits>

#include "kernels/cuda/sketch_scores.cuh"

namespace santa::cuda {

inline constexpr int kValueQuads = 2;  // of the eight columns

// Right operands of a block's slabs: tokens 2c, 2c + 1 (and 2c + 8, 2c + 9) of column r.
using BlockWeights = uint32_t[kBlockSlabs][2];

// From weights as the lanes have the scores: [quad][2 slab + i] is token 16 slab + r + 8 i, head c.
__device__ __forceinline__ void TurnWeights(BlockWeights& to, const float (&weights)[kValueQuads][2 * kBlockSlabs]) {
#pragma unroll
  for (int i = 0; i < 2 * kBlockSlabs; ++i) to[i / 2][i % 2] = Transpose8x8(Pack<__half>(weights[0][i], weights[1][i]));
}

// A left operand's registers from a lane's words of a tile.
template <int kBits>
struct ValueOperand {
  static constexpr float kOffset = kBits == 4 ? 16 : 1024;
  uint32_t a[4];

  __device__ __forceinline__ explicit ValueOperand(const uint32_t* words) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kBits == 4) {
        const uint32_t turned = i == 0 ? words[0] : words[0] >> 4 * i | words[0] << (32 - 4 * i);
        a[i] = MaskOr(turned, 0x03c003c0, 0x4c004c00);
      } else {
        a[i] = BytePair(words[i / 2], i % 2 * 2);
      }
    }
  }
};

// A lane's sums over blocks for heads c of two quads, against the largest score so far, which all lanes of a head know.
template <int D>
struct ValueTotals {
  LaneSum scores[kValueQuads];   // of all visible tokens, of those r; for probabilities
  float mass[kValueQuads] = {};  // sum of e~ of all tokens with a sketch
  float sums[D / 16][4] = {};    // of e~ v~: feature 16 tile + r of the quads, then feature 16 tile + r + 8

  // Brings what there is to larger maxima.
  __device__ __forceinline__ void Keep(const float (&factor)[kValueQuads]) {
#pragma unroll
    for (int quad = 0; quad < kValueQuads; ++quad) mass[quad] *= factor[quad];
#pragma unroll
    for (int tile = 0; tile < D / 16; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[tile][i] *= factor[i % 2];
    }
  }

  // Adds a tile's products, times `factor`, of a page's part with those columns. mass: of the part, times factor.
  __device__ __forceinline__ void Fold(int tile, const float (&products)[4], float offset, uint2 column,
                                       const float (&factor)[kValueQuads], const float (&of_part)[kValueQuads]) {
    const float2 step = __half22float2(*reinterpret_cast<const __half2*>(&column.x));
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&column.y));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float codes = fmaf(factor[i % 2], products[i], -offset * of_part[i % 2]);
      sums[tile][i] += fmaf(i < 2 ? step.x : step.y, codes, (i < 2 ? low.x : low.y) * of_part[i % 2]);
    }
  }
};

// Adds a block whose pages have kPartSlabs slabs each in it, of which those with a token in [begin, end) are there.
// weights: those of the block's tokens, 0 of others; factor: what brings them to the totals.
template <int kBits, int kPartSlabs, int D>
__device__ __forceinline__ void AddParts(ValueTotals<D>& totals, const unsigned char* stage,
                                         const BlockWeights& weights, const float (&factor)[kValueQuads],
                                         int first_token, int begin, int end, int lane) {
  using Geometry = SketchGeometry<D, kBits>;
  using Load = std::conditional_t<WordsOfLoad(D, kBits) == 4, uint4, uint2>;
  constexpr int kTiles = StepsOfLoad(D, kBits), kPartTokens = kPartSlabs * kSlabRows;
  constexpr int kPartBytes = kPartSlabs * Geometry::kSlabBytes + Geometry::kColumnBytes;
#pragma unroll
  for (int part = 0; part < kBlockSlabs / kPartSlabs; ++part) {
    const int token = first_token + part * kPartTokens;
    if (token + kPartTokens <= begin || token >= end) continue;
    const unsigned char* codes = stage + part * kPartBytes;
    const uint2* columns = reinterpret_cast<const uint2*>(codes + kPartSlabs * Geometry::kSlabBytes) + lane / 4;
    float mass[4] = {};
#pragma unroll
    for (int slab = 0; slab < kPartSlabs; ++slab) {
      const uint32_t(&right)[2] = weights[part * kPartSlabs + slab];
      Mma<__half>(mass, kHalves1, kHalves1, kHalves1, kHalves1, right[0], right[1]);
    }
    const float of_part[kValueQuads] = {factor[0] * mass[0], factor[1] * mass[1]};
#pragma unroll
    for (int quad = 0; quad < kValueQuads; ++quad) totals.mass[quad] += of_part[quad];
#pragma unroll
    for (int load = 0; load < D / 16 / kTiles; ++load) {
      float products[kTiles][4] = {};
#pragma unroll
      for (int slab = 0; slab < kPartSlabs; ++slab) {
        const uint32_t(&right)[2] = weights[part * kPartSlabs + slab];
        const Load words = reinterpret_cast<const Load*>(codes + slab * Geometry::kSlabBytes)[load * 32 + lane];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const ValueOperand<kBits> left(reinterpret_cast<const uint32_t*>(&words) + i * WordsOfStep(kBits));
          Mma<__half>(products[i], left.a[0], left.a[1], left.a[2], left.a[3], right[0], right[1]);
        }
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int tile = load * kTiles + i;
        totals.Fold(tile, products[i], ValueOperand<kBits>::kOffset, columns[8 * tile], factor, of_part);
      }
    }
  }
}

// The same for pages of any size.
template <int kBits, int D>
__device__ __forceinline__ void AddBlock(ValueTotals<D>& totals, const SketchGeometry<D, kBits>& geometry,
                                         const unsigned char* stage, const BlockWeights& weights,
                                         const float (&factor)[kValueQuads], int first_token, int begin, int end,
                                         int lane) {
  if (geometry.parts == 1) return AddParts<kBits, 4>(totals, stage, weights, factor, first_token, begin, end, lane);
  if (geometry.parts == 2) return AddParts<kBits, 2>(totals, stage, weights, factor, first_token, begin, end, lane);
  AddParts<kBits, 1>(totals, stage, weights, factor, first_token, begin, end, lane);
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
  __device__ __forceinline__ void Leave(const ValueTotals<D>& totals, int quad, int warp, int lane) const {
    float sum = totals.scores[quad].sum;
#pragma unroll
    for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    const int head = lane % 4;
    if (head >= heads) return;
    float* to = At(warp, head);
    if (lane < 4) {
      to[0] = totals.scores[quad].max;
      to[1] = sum;
      to[2] = totals.mass[quad];
    }
#pragma unroll
    for (int tile = 0; tile < D / 16; ++tile) {
      to[4 + 16 * tile + lane / 4] = totals.sums[tile][quad];
      to[4 + 16 * tile + lane / 4 + 8] = totals.sums[tile][2 + quad];
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
