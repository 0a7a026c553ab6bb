// What nvcc gives a CUDA source beside C++, for a source that kernels/cuda/emulation/rewrite.py has made C++ of.
#ifndef SANTA_KERNELS_CUDA_EMULATION_DEVICE_H_
#define SANTA_KERNELS_CUDA_EMULATION_DEVICE_H_

// IWYU pragma: begin_exports
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
// IWYU pragma: end_exports

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/cuda/emulation/ptx.h"
#include "kernels/cuda/emulation/runtime.h"
#include "kernels/cuda/emulation/threads.h"

#define SANTA_EMULATED_ARCH 900

#undef __device__
#undef __global__
#undef __host__
#undef __forceinline__
#undef __noinline__
#undef __grid_constant__
#undef __launch_bounds__
#define __device__
#define __global__
#define __host__
#define __forceinline__ inline  // what is not inlined compiles faster
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)

namespace santa::emulation {

template <typename T>
struct Shuffle {
  T value;
  int source;
};

// Every lane gets the value of its source.
template <typename T>
void Exchange(void* const* of_lane, uint32_t mask) {
  T values[32];
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) values[lane] = static_cast<const Shuffle<T>*>(of_lane[lane])->value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto& mine = *static_cast<Shuffle<T>*>(of_lane[lane]);
    if (!(mask >> mine.source & 1)) Fail("a shuffle from a lane that does not take part");
    mine.value = values[mine.source];
  }
}
template <typename T>
T ShuffleFrom(uint32_t mask, T value, int source) {
  Shuffle<T> mine = {value, source};
  MeetWarp(mask, &mine, Exchange<T>);
  return mine.value;
}

inline void BallotOf(void* const* of_lane, uint32_t mask) {
  uint32_t ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) ballot |= *static_cast<uint32_t*>(of_lane[lane]) << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) *static_cast<uint32_t*>(of_lane[lane]) = ballot;
  }
}
inline void AnyOf(void* const* of_lane, uint32_t mask) {
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) any = any || ((mask >> lane & 1) && *static_cast<const bool*>(of_lane[lane]));
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) *static_cast<bool*>(of_lane[lane]) = any;
  }
}

}  // namespace santa::emulation

inline void __syncthreads() { ::santa::emulation::MeetBlock(false); }
inline int __syncthreads_or(int predicate) { return ::santa::emulation::MeetBlock(predicate != 0); }
inline void __syncwarp(unsigned mask = ~0u) { ::santa::emulation::MeetWarp(mask, nullptr, nullptr); }
inline void __threadfence() { ::santa::emulation::MayGiveWay(); }
inline void __nanosleep(unsigned) { ::santa::emulation::GiveWay(true); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = ::santa::emulation::current->lane;
  return ::santa::emulation::ShuffleFrom(mask, value, (lane & -width) | (source & (width - 1)));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = ::santa::emulation::current->lane;
  return ::santa::emulation::ShuffleFrom(
      mask, value, lane % width < static_cast<int>(delta) ? lane : lane - static_cast<int>(delta));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = ::santa::emulation::current->lane, source = lane ^ bits;
  return ::santa::emulation::ShuffleFrom(mask, value, source >= (lane & -width) + width ? lane : source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  uint32_t ballot = predicate != 0;
  ::santa::emulation::MeetWarp(mask, &ballot, ::santa::emulation::BallotOf);
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) {
  bool any = predicate != 0;
  ::santa::emulation::MeetWarp(mask, &any, ::santa::emulation::AnyOf);
  return any;
}

template <typename T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  ::santa::emulation::MayGiveWay();
  return std::exchange(*to, *to + value);
}
template <typename T>
T atomicMax(T* to, std::type_identity_t<T> value) {
  ::santa::emulation::MayGiveWay();
  return std::exchange(*to, std::max(*to, value));
}
template <typename T>
T atomicExch(T* to, std::type_identity_t<T> value) {
  ::santa::emulation::MayGiveWay();
  return std::exchange(*to, value);
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
inline size_t __cvta_generic_to_shared(const void* pointer) { return ::santa::emulation::SharedOffset(pointer); }
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  ::santa::emulation::StartCopy(static_cast<uint32_t>(::santa::emulation::SharedOffset(to)), from,
                                static_cast<int>(bytes), static_cast<int>(bytes));
}

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
#define __log2f(x) ::log2f(x)  // a name of the C library's own
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  const float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
  return __floats2half2_rn(std::fma(x.x, y.x, z.x), std::fma(x.y, y.y, z.y));
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = low | static_cast<uint64_t>(high) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

template <typename T, typename U>
constexpr std::common_type_t<T, U> min(T a, U b) {
  return b < a ? b : a;
}
template <typename T, typename U>
constexpr std::common_type_t<T, U> max(T a, U b) {
  return a < b ? b : a;
}

// Of kernels, which nvcc alone knows.
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
#define cudaLaunchKernelEx ::santa::emulation::LaunchKernelEx

namespace santa::emulation {

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const bool overlaps = config->numAttrs == 1 && config->attrs->val.programmaticStreamSerializationAllowed;
  return QueueKernel({.grid = config->gridDim,
                      .block = config->blockDim,
                      .dynamic_bytes = config->dynamicSmemBytes,
                      .overlaps = overlaps,
                      .function = reinterpret_cast<const void*>(kernel),
                      .body = [kernel, arguments...] { kernel(arguments...); }},
                     config->stream);
}

// kernel<<<grid, block, dynamic_bytes, stream>>>
struct LaunchSetup {
  dim3 grid, block;
  size_t dynamic_bytes = 0;
  cudaStream_t stream = nullptr;
};
template <typename... Parameters, typename... Arguments>
void LaunchKernel(const LaunchSetup& setup, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = setup.grid;
  config.blockDim = setup.block;
  config.dynamicSmemBytes = setup.dynamic_bytes;
  config.stream = setup.stream;
  LaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace santa::emulation

#endif  // SANTA_KERNELS_CUDA_EMULATION_DEVICE_H_
