// A slab: the K (or V) rows of 16 tokens of one head in shared memory, and a warp's tensor-core products with it.
//
// Both products have the cache as their left operand and the query heads of the group as the 8 columns of an
// mma.m16n8k16, transposed with respect to the usual formulation, so that a group of up to 8 heads wastes no
// accumulator:
//
//     S^T[16 tokens x 8 heads] = K[16 x D] Q^T[D x 8]         O^T[D x 8 heads] += V^T[D x 16 tokens] P^T[16 x 8]
//
// Rows are cut into boxes of 128 bytes; a box has the 16 rows one after the other, and the 16-byte chunks of row r lie
// at chunk ^ (r % 8), so that the eight rows of an ldmatrix lie in different banks. An 8-bit cache is widened to fp16
// in registers; which feature (K) or dimension (V) a lane then holds is another one, and the queries (or where results
// are written) follow.
#ifndef SANTA_KERNELS_CUDA_SLAB_CUH_
#define SANTA_KERNELS_CUDA_SLAB_CUH_

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace santa::cuda {

inline constexpr int kSlabRows = 16;  // tokens

// How a cache's numbers enter a product.
template <typename Kv>
struct Storage {
  using Compute = Kv;
};
template <>
struct Storage<__nv_fp8_e4m3> {
  using Compute = __half;
};
template <typename Kv>
using Compute = typename Storage<Kv>::Compute;

template <typename Kv, int D>
struct Slab {
  static constexpr int kRowBytes = D * sizeof(Kv);
  static constexpr int kChunks = kRowBytes / 16;  // of a row
  static constexpr int kBytes = (kRowBytes + 127) / 128 * 128 * kSlabRows;
  static constexpr int kCopies = kSlabRows * kChunks / 32;  // copies of 16 bytes by each lane
  static_assert(kChunks % 2 == 0 && kSlabRows * kChunks % 32 == 0);

  // Offset of a chunk of a row.
  static __device__ __forceinline__ uint32_t At(int row, int chunk) {
    return chunk / 8 * (128 * kSlabRows) + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
  }
};

// Starts copying 16 rows that lie one after the other from `rows` on; zeros for those outside [first, last).
template <typename Kv, int D>
__device__ __forceinline__ void CopyRows(uint32_t slab, const uint8_t* rows, int first, int last, int lane) {
  using S = Slab<Kv, D>;
#pragma unroll
  for (int i = 0; i < S::kCopies; ++i) {
    const int index = 32 * i + lane, row = index / S::kChunks;
    StreamAsync16(slab + S::At(row, index % S::kChunks), rows + 16 * index, row >= first && row < last);
  }
}

// fp16 pairs of four e4m3 numbers, which are finite.
__device__ __forceinline__ void Widen(uint32_t packed, uint32_t& low, uint32_t& high) {
#if __CUDA_ARCH__ >= 900 && !defined(SANTA_EMULATED_ARCH)
  const __half2_raw a = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(packed & 0xffff), __NV_E4M3);
  const __half2_raw b = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(packed >> 16), __NV_E4M3);
  low = a.x | static_cast<uint32_t>(a.y) << 16;
  high = b.x | static_cast<uint32_t>(b.y) << 16;
#else
  // The bits of an e4m3 number, its exponent's one place lower, are an fp16 number's with an exponent 8 less. Ampere
  // has no instruction for it, and Ada's needs a pass of nvcc's front end of its own (tools/cuda/cuda_library.bzl).
  const auto widen = [packed](uint32_t bytes) {
    const uint32_t spread = __byte_perm(packed, 0, bytes);
    const uint32_t bits = (spread & 0x80008000u) | (spread & 0x7f007f00u) >> 1;
    const __half2 wide = __hmul2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(256.0f));
    return *reinterpret_cast<const uint32_t*>(&wide);
  };
  low = widen(0x1404);
  high = widen(0x3424);
#endif
}

// Queries of up to 8 heads as right operand.
template <int D>
struct QueryFragment {
  uint2 step[D / 16];
};

// `q`: the query of the lane's head r, 16-bit; zeros where null.
template <typename Kv, int D>
__device__ __forceinline__ void LoadQuery(QueryFragment<D>& fragment, const uint16_t* q, int lane) {
  const int c = lane % 4;
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    if constexpr (sizeof(Kv) == 2) {
      fragment.step[j].x = q ? *reinterpret_cast<const uint32_t*>(q + 16 * j + 2 * c) : 0;
      fragment.step[j].y = q ? *reinterpret_cast<const uint32_t*>(q + 16 * j + 2 * c + 8) : 0;
    } else {
      fragment.step[j] = q ? *reinterpret_cast<const uint2*>(q + 16 * j + 4 * c) : uint2{};
    }
  }
}

// S^T of a slab of K for kBlocks blocks of 8 heads: s[.][0], [1] are token r of heads 2c, 2c + 1; [2], [3] token r + 8.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void Scores(float (&s)[kBlocks][4], uint32_t slab, const QueryFragment<D> (&q)[kBlocks],
                                       int lane) {
  using T = Compute<Kv>;
  const int row = lane % 16, high = lane / 16;
  float even[kBlocks][4] = {}, odd[kBlocks][4] = {};  // two accumulators: half the chain of dependent products
#pragma unroll
  for (int pair = 0; pair < Slab<Kv, D>::kChunks / 2; ++pair) {
    const uint4 k = LoadMatrices(slab + Slab<Kv, D>::At(row, 2 * pair + high));
    if constexpr (sizeof(Kv) == 2) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        Mma<T>(pair % 2 ? odd[block] : even[block], k.x, k.y, k.z, k.w, q[block].step[pair].x, q[block].step[pair].y);
      }
    } else {
      uint32_t low[4], top[4];
      Widen(k.x, low[0], top[0]);
      Widen(k.y, low[1], top[1]);
      Widen(k.z, low[2], top[2]);
      Widen(k.w, low[3], top[3]);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const uint2 first = q[block].step[2 * pair], second = q[block].step[2 * pair + 1];
        Mma<T>(even[block], low[0], low[1], top[0], top[1], first.x, first.y);
        Mma<T>(odd[block], low[2], low[3], top[2], top[3], second.x, second.y);
      }
    }
  }
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[block][i] = even[block][i] + odd[block][i];
  }
}

// A block of 8 heads' outputs: o[j][0], [1] are dimension OutputDim(j, lane, 0) of heads 2c, 2c + 1; [2], [3] are
// OutputDim(j, lane, 1).
template <int D>
struct OutputFragment {
  float o[D / 16][4];
};
template <typename Kv>
__device__ __forceinline__ int OutputDim(int j, int lane, int half) {
  return 16 * j + (sizeof(Kv) == 2 ? lane / 4 + 8 * half : lane / 4 * 2 + half);
}

// P^T of a slab's tokens as right operand: tokens 2c, 2c + 1 (low) and 2c + 8, 2c + 9 (high) of head r.
struct WeightFragment {
  uint32_t low, high;
};

// V^T of a slab at the dimensions of two neighbouring chunks, as left operands: one for 16 dimensions.
template <typename Kv>
struct ValueTiles {
  static constexpr int kTiles = 2 / sizeof(Kv);
  uint32_t a[kTiles][4];
};
template <typename Kv, int D>
__device__ __forceinline__ ValueTiles<Kv> LoadValues(uint32_t slab, int pair, int lane) {
  const int row = lane % 8 + lane / 16 * 8, high = lane / 8 % 2;
  const uint4 v = LoadMatricesTransposed(slab + Slab<Kv, D>::At(row, 2 * pair + high));
  if constexpr (sizeof(Kv) == 2) {
    return {{{v.x, v.y, v.z, v.w}}};
  } else {
    // Each 16-bit element is two dimensions of one token; pair the tokens instead.
    uint32_t low[4], top[4];
    Widen(__byte_perm(v.x, 0, 0x3120), low[0], top[0]);
    Widen(__byte_perm(v.y, 0, 0x3120), low[1], top[1]);
    Widen(__byte_perm(v.z, 0, 0x3120), low[2], top[2]);
    Widen(__byte_perm(v.w, 0, 0x3120), low[3], top[3]);
    return {{{low[0], top[0], low[2], top[2]}, {low[1], top[1], low[3], top[3]}}};
  }
}

// O^T += V^T P^T for kBlocks blocks of 8 heads.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void Accumulate(OutputFragment<D> (&out)[kBlocks], uint32_t slab,
                                           const WeightFragment (&p)[kBlocks], int lane) {
  constexpr int kTiles = ValueTiles<Kv>::kTiles;
#pragma unroll
  for (int pair = 0; pair < Slab<Kv, D>::kChunks / 2; ++pair) {
    const ValueTiles<Kv> v = LoadValues<Kv, D>(slab, pair, lane);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        Mma<Compute<Kv>>(out[block].o[kTiles * pair + tile], v.a[tile][0], v.a[tile][1], v.a[tile][2], v.a[tile][3],
                         p[block].low, p[block].high);
      }
    }
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SLAB_CUH_
