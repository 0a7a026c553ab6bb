// The few machine instructions that CUDA C++ has no name for.
#ifndef SANTA_KERNELS_CUDA_PTX_CUH_
#define SANTA_KERNELS_CUDA_PTX_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace santa::cuda {

// D[16 x 8] += A[16 x 16] B[16 x 8], fp32 sums. Lane (r, c) = (lane / 4, lane % 4) holds of A rows r (a0, a2) and r + 8
// (a1, a3) at columns 2c, 2c + 1 (a0, a1) and 2c + 8, 2c + 9 (a2, a3); of B column r at rows 2c, 2c + 1 (b0) and
// 2c + 8, 2c + 9 (b1); of D rows r (d0, d1) and r + 8 (d2, d3) at columns 2c, 2c + 1.
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

// As Mma, of bytes, the left operand's without sign, and with whole sums: D[16 x 8] += A[16 x 32] B[32 x 8]. Lane (r,
// c) holds of A rows r (a0, a2) and r + 8 (a1, a3) at columns 4c to 4c + 3 (a0, a1) and 16 more (a2, a3); of B column r
// at rows 4c to 4c + 3 (b0) and 16 more (b1); of D rows r (d0, d1) and r + 8 (d2, d3) at columns 2c, 2c + 1.
template <typename Right>
__device__ __forceinline__ void MmaBytes(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                         uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void MmaBytes<uint8_t>(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                  uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void MmaBytes<int8_t>(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                 uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
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

template <typename T>
__device__ __forceinline__ float2 Unpack(uint32_t two) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&two));
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&two));
  }
}

// Four 8 x 8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8. Lane (r, c) gets columns
// 2c, 2c + 1 of row r; transposed: rows 2c, 2c + 1 of column r.
__device__ __forceinline__ uint4 LoadMatrices(uint32_t address) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(address)
               : "memory");
  return m;
}
__device__ __forceinline__ uint4 LoadMatricesTransposed(uint32_t address) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(address)
               : "memory");
  return m;
}

// Transposes the 8 x 8 matrix of 16-bit values that the warp holds as one fragment register.
__device__ __forceinline__ uint32_t Transpose8x8(uint32_t value) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
}

// Starts the copy of 16 bytes into shared memory.
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// Likewise of the cache, which is read once: L2 shall rather keep the partial results. Zeros, and nothing is read,
// where not `valid`.
__device__ __forceinline__ void StreamAsync16(uint32_t to, const void* from, bool valid) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
               "r"(bytes), "l"(policy)
               : "memory");
}
// As StreamAsync16, kOffset bytes after either address.
template <int kOffset>
__device__ __forceinline__ void StreamAsync16At(uint32_t to, const void* from) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0+%3], [%1+%3], 16, %2;" ::"r"(to), "l"(from),
               "l"(policy), "n"(kOffset)
               : "memory");
}
// Closes the group of copies that this lane started since the last one.
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last kPending groups have arrived, for the whole warp.
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
  __syncwarp();
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// What a thread of another block left before its release is there after an acquire that reads it.
__device__ __forceinline__ void StoreRelease(unsigned* to, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ void AddRelease(unsigned* to, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned LoadAcquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// The 128 bytes from `line` on, which are aligned to that, will not be read before they are written again: what the L2
// cache has of them need not go to memory. All who have read them are done.
__device__ __forceinline__ void DiscardLine(void* line) {
  asm volatile("discard.global.L2 [%0], 128;" ::"l"(line) : "memory");
}

// Has the L2 cache fetch the 128 bytes that `byte` is one of.
__device__ __forceinline__ void FetchLine(const void* byte) { asm volatile("prefetch.global.L2 [%0];" ::"l"(byte)); }

// Programmatic dependent launch: a kernel may start while the one before it in the stream still runs. Nothing that the
// earlier one wrote may be read, nor anything written, before WaitForEarlierKernel(). No-ops before Hopper.
__device__ __forceinline__ void WaitForEarlierKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetLaterKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_PTX_CUH_
