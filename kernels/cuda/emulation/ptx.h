// The machine instructions that kernels name in asm(), by the same names with _ for what C++ has no names with; results
// first, then operands, then the numbers that stand among them. Add what a kernel newly uses.
#ifndef SANTA_KERNELS_CUDA_EMULATION_PTX_H_
#define SANTA_KERNELS_CUDA_EMULATION_PTX_H_

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/emulation/threads.h"

namespace santa::emulation {

// What a lane brings to a product of matrices: kernels/cuda/ptx.cuh says which element is where.
struct Product {
  float* d[4];
  uint32_t a[4], b[2];
};
void MultiplyBFloat16(void* const* of_lane, uint32_t mask);
void MultiplyHalf(void* const* of_lane, uint32_t mask);
struct ByteProduct {
  int32_t* d[4];
  uint32_t a[4], b[2];
};
template <typename Right>  // uint8_t or int8_t
void MultiplyBytes(void* const* of_lane, uint32_t mask);

struct MatrixLoad {
  const uint8_t* row;
  uint32_t* to[4];
};
void LoadMatrices(void* const* of_lane, uint32_t mask);
void LoadMatricesTransposed(void* const* of_lane, uint32_t mask);
void Transpose(void* const* of_lane, uint32_t mask);

namespace ptx {

inline void mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(float& d0, float& d1, float& d2, float& d3, uint32_t a0,
                                                                uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                                                uint32_t b1) {
  Product mine = {{&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}};
  MeetWarp(~0u, &mine, MultiplyBFloat16);
}
inline void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(float& d0, float& d1, float& d2, float& d3, uint32_t a0,
                                                              uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                                              uint32_t b1) {
  Product mine = {{&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}};
  MeetWarp(~0u, &mine, MultiplyHalf);
}

inline void mma_sync_aligned_m16n8k32_row_col_s32_u8_u8_s32(int32_t& d0, int32_t& d1, int32_t& d2, int32_t& d3,
                                                            uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                            uint32_t b0, uint32_t b1) {
  ByteProduct mine = {{&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}};
  MeetWarp(~0u, &mine, MultiplyBytes<uint8_t>);
}
inline void mma_sync_aligned_m16n8k32_row_col_s32_u8_s8_s32(int32_t& d0, int32_t& d1, int32_t& d2, int32_t& d3,
                                                            uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                            uint32_t b0, uint32_t b1) {
  ByteProduct mine = {{&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}};
  MeetWarp(~0u, &mine, MultiplyBytes<int8_t>);
}

inline void ldmatrix_sync_aligned_m8n8_x4_shared_b16(uint32_t& x, uint32_t& y, uint32_t& z, uint32_t& w,
                                                     uint32_t address) {
  MatrixLoad mine = {SharedPointer(address, 16), {&x, &y, &z, &w}};
  MeetWarp(~0u, &mine, LoadMatrices);
}
inline void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint32_t& x, uint32_t& y, uint32_t& z, uint32_t& w,
                                                           uint32_t address) {
  MatrixLoad mine = {SharedPointer(address, 16), {&x, &y, &z, &w}};
  MeetWarp(~0u, &mine, LoadMatricesTransposed);
}
inline void movmatrix_sync_aligned_m8n8_trans_b16(uint32_t& result, uint32_t value) {
  result = value;
  MeetWarp(~0u, &result, Transpose);
}

inline void cp_async_cg_shared_global(uint32_t to, const void* from, int bytes) { StartCopy(to, from, bytes, bytes); }
inline void cp_async_cg_shared_global(uint32_t to, const void* from, int bytes_read, int bytes) {
  StartCopy(to, from, bytes, bytes_read);
}
inline void createpolicy_fractional_L2_evict_first_b64(uint64_t& policy, double /*share*/) { policy = 0; }
inline void cp_async_cg_shared_global_L2_cache_hint_L2_128B(uint32_t to, const void* from, int bytes_read,
                                                            uint64_t /*policy*/, int bytes) {
  StartCopy(to, from, bytes, bytes_read);
}
inline void cp_async_cg_shared_global_L2_cache_hint_L2_128B(uint32_t to, const void* from, uint64_t /*policy*/,
                                                            int offset, int bytes) {
  StartCopy(to + offset, static_cast<const uint8_t*>(from) + offset, bytes, bytes);
}
inline void cp_async_commit_group() { CommitCopies(); }
inline void cp_async_wait_group(int pending) { WaitForCopies(pending); }
inline void cp_async_wait_all() { WaitForAllCopies(); }

inline void st_release_gpu_global_u32(unsigned* to, unsigned value) {
  MayGiveWay();
  *to = value;
}
inline void red_release_gpu_global_add_u32(unsigned* to, unsigned value) {
  MayGiveWay();
  *to += value;
}
inline void st_release_sys_global_u64(uint64_t* to, uint64_t value) {
  std::atomic_ref(*to).store(value, std::memory_order_release);
}
inline void ld_acquire_gpu_global_u32(unsigned& value, const unsigned* from) { value = ReadVolatile(from); }
inline void discard_global_L2(void* line, int bytes) {
  if (reinterpret_cast<uintptr_t>(line) % bytes != 0) Fail("a line that is not aligned is given up");
  std::memset(line, 0xff, bytes);
}

inline void mov_u64(uint64_t& clock) {  // %globaltimer
  clock = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}
inline void prefetch_global_L2(const void* /*byte*/) {}

inline void griddepcontrol_wait() { WaitForEarlierKernel(); }
inline void griddepcontrol_launch_dependents() { LetLaterKernelStart(); }

inline void max_NaN_f32(float& result, float a, float b) {
  result = std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b);
}
inline void rcp_approx_ftz_f32(float& result, float x) { result = 1 / x; }
inline void sqrt_approx_ftz_f32(float& result, float x) { result = std::sqrt(x); }
inline void ex2_approx_ftz_f32(float& result, float x) {
  const float power = ::exp2f(x);
  result = power < 0x1p-126f ? 0.0f : power;
}
// Bit i of `table` is the result where the bits of a, b and c are those of i.
inline void lop3_b32(uint32_t& result, uint32_t a, uint32_t b, uint32_t c, int table) {
  result = 0;
  for (int i = 0; i < 8; ++i) {
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
}

}  // namespace ptx
}  // namespace santa::emulation

#endif  // SANTA_KERNELS_CUDA_EMULATION_PTX_H_
