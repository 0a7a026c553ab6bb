// One warp's attention over groups of 16 tokens on tensor cores, straight from device memory to registers.
//
// Both products have the cache as their left operand and the query heads of the group as the 8 columns of an
// mma.m16n8k16, transposed with respect to the usual formulation, so that a group of up to 8 heads wastes no
// accumulator:
//
//     S^T[16 tokens x 8 heads] = K[16 x D] Q^T[D x 8]         O^T[D x 8 heads] += V^T[D x 16 tokens] P^T[16 x 8]
//
// An operand fragment may take its k index (for K: the features; for V: the tokens) in any order as long as the other
// operand takes the same one, and so may the rows of O^T. The orders below let every lane load 16 contiguous bytes and
// use all of them where they land: no shared memory, no ldmatrix, no bank conflicts.
//
//   K: lane (r, c) = (lane / 4, lane % 4) loads features 32 j + 8 c .. + 7 of tokens r and r + 8: two k-steps' worth.
//   V: lane (r, c) loads dimensions 64 j + 8 r .. + 7 of tokens 2c, 2c+1, 2c+8, 2c+9; byte permutes pair the tokens.
//      Row r of block b of O^T is dimension 64 j + 8 r + 2 b, row r + 8 the one after it.
#ifndef SANTA_KERNELS_CUDA_WARP_ATTENTION_CUH_
#define SANTA_KERNELS_CUDA_WARP_ATTENTION_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace santa::cuda {

inline constexpr int kWarpTokens = 16;  // tokens of one step of a warp
inline constexpr float kLog2E = 1.4426950408889634f;

// 16 bytes that are read once: no L1, so that the stream does not evict what is read again.
__device__ __forceinline__ uint4 LoadStreaming(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

template <typename T>
__device__ __forceinline__ void Mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1);
template <>
__device__ __forceinline__ void Mma<__nv_bfloat16>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                   uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void Mma<__half>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <typename T>
__device__ __forceinline__ uint32_t Pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t Pack<__nv_bfloat16>(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t Pack<__half>(float low, float high) {
  __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// Transposes the 8 x 8 matrix of 16-bit values that the warp holds as one mma fragment register.
__device__ __forceinline__ uint32_t Transpose8x8(uint32_t value) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
}

// Queries of up to 8 heads, or the K rows of 8 tokens: D features as right or half a left operand.
template <int D>
struct RowFragment {
  static_assert(D % 32 == 0);
  uint4 chunk[D / 32];
};

// Row `row` (D contiguous 16-bit values) for the lane's r; all zeros where null.
template <int D>
__device__ __forceinline__ void LoadRow(RowFragment<D>& fragment, const uint16_t* row, int lane) {
#pragma unroll
  for (int j = 0; j < D / 32; ++j) {
    fragment.chunk[j] = row ? LoadStreaming(row + 32 * j + 8 * (lane % 4)) : uint4{};
  }
}

// S^T of 16 tokens: s[0], s[1] are token r of heads 2c, 2c + 1; s[2], s[3] token r + 8.
template <typename T, int D>
__device__ __forceinline__ void Scores(float (&s)[4], const RowFragment<D>& k_low, const RowFragment<D>& k_high,
                                       const RowFragment<D>& q) {
  float even[4] = {}, odd[4] = {};  // two accumulators: half the chain of dependent mmas
#pragma unroll
  for (int j = 0; j < D / 32; ++j) {
    Mma<T>(even, k_low.chunk[j].x, k_high.chunk[j].x, k_low.chunk[j].y, k_high.chunk[j].y, q.chunk[j].x, q.chunk[j].y);
    Mma<T>(odd, k_low.chunk[j].z, k_high.chunk[j].z, k_low.chunk[j].w, k_high.chunk[j].w, q.chunk[j].z, q.chunk[j].w);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = even[i] + odd[i];
}

// V rows of 16 tokens. kSteps columns of 64 dimensions; for D = 96 half of the lanes idle in the second.
template <int D>
struct ValueFragment {
  static constexpr int kSteps = (D + 63) / 64;
  uint4 chunk[kSteps][4];  // tokens 2c, 2c + 1, 2c + 8, 2c + 9
};

// Which of a group's 16 tokens is the lane's i-th of a ValueFragment.
__device__ __forceinline__ int ValueToken(int lane, int i) { return 2 * (lane % 4) + (i & 1) + 4 * (i & 2); }

template <int D>
__device__ __forceinline__ void LoadValueRow(ValueFragment<D>& fragment, int token, const uint16_t* row, int lane) {
#pragma unroll
  for (int j = 0; j < ValueFragment<D>::kSteps; ++j) {
    const int dim = 64 * j + 8 * (lane / 4);
    fragment.chunk[j][token] = row && (D % 64 == 0 || dim < D) ? LoadStreaming(row + dim) : uint4{};
  }
}

// The group's outputs: o[j][b][0], [1] are dimension 64 j + 8 r + 2 b of heads 2c, 2c + 1; [2], [3] dimension + 1.
template <int D>
struct OutputFragment {
  float o[ValueFragment<D>::kSteps][4][4];
};

// O^T += V^T P^T; p_low and p_high are P^T of tokens 0..7 and 8..15 as right operand (lane: tokens 2c, 2c + 1, head r).
template <typename T, int D>
__device__ __forceinline__ void Accumulate(OutputFragment<D>& out, const ValueFragment<D>& v, uint32_t p_low,
                                           uint32_t p_high) {
#pragma unroll
  for (int j = 0; j < ValueFragment<D>::kSteps; ++j) {
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const uint32_t t0 = (&v.chunk[j][0].x)[b], t1 = (&v.chunk[j][1].x)[b];
      const uint32_t t8 = (&v.chunk[j][2].x)[b], t9 = (&v.chunk[j][3].x)[b];
      Mma<T>(out.o[j][b], __byte_perm(t0, t1, 0x5410), __byte_perm(t0, t1, 0x7632), __byte_perm(t8, t9, 0x5410),
             __byte_perm(t8, t9, 0x7632), p_low, p_high);
    }
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_WARP_ATTENTION_CUH_
