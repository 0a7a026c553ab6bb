// What one thread does to store tokens in the paged cache, or to compare them with it.
//
// One thread for every 8 numbers of a K or V row; consecutive threads take consecutive pieces of a row, then the
// token's next head, then its V, then the next token. A 16-bit row is read and written 16 bytes at a time, but for keys
// that lie feature by feature, whose numbers go each to its own place.
#ifndef SANTA_KERNELS_CUDA_KV_APPEND_CUH_
#define SANTA_KERNELS_CUDA_KV_APPEND_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/kv_append.h"

namespace santa::cuda {

inline constexpr int kAppendPiece = 8;  // numbers of a thread

// Threads that the launch takes.
inline int64_t AppendThreads(const KvAppendLaunch& launch) {
  return launch.num_tokens * 2 * launch.num_kv_heads * (launch.head_dim / kAppendPiece);
}

template <typename T>
struct alignas(kAppendPiece * sizeof(T) < 16 ? kAppendPiece * sizeof(T) : 16) AppendPiece {
  T x[kAppendPiece];
};

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }

template <typename Stored, typename Source>
__device__ __forceinline__ Stored ToStored(Source x, float scale) {
  if constexpr (sizeof(Stored) == 1) {
    __nv_fp8_e4m3 stored;
    stored.__x = __nv_cvt_float_to_fp8(__fdiv_rn(ToFloat(x), scale), __NV_SATFINITE, __NV_E4M3);
    return stored;
  } else if constexpr (std::is_same_v<Stored, Source>) {
    return x;
  } else if constexpr (std::is_same_v<Stored, __nv_bfloat16>) {
    return __float2bfloat16_rn(ToFloat(x));
  } else {
    return __float2half_rn(ToFloat(x));
  }
}

template <typename T>
__device__ __forceinline__ bool SameBits(const AppendPiece<T>& a, const AppendPiece<T>& b) {
  const auto* x = reinterpret_cast<const uint2*>(&a);
  const auto* y = reinterpret_cast<const uint2*>(&b);
  bool same = true;
#pragma unroll
  for (int i = 0; i < sizeof(a) / sizeof(uint2); ++i) same = same && x[i].x == y[i].x && x[i].y == y[i].y;
  return same;
}

// Thread `index` of AppendThreads(launch). ready() is called once the numbers are there that came from the host, and
// before the cache is touched.
template <typename Source, typename Stored, bool kCompare, typename Ready>
__device__ __forceinline__ void AppendOnePiece(const KvAppendLaunch& launch, unsigned index, const Ready& ready) {
  static_assert(sizeof(AppendPiece<__nv_bfloat16>) == 16 && alignof(AppendPiece<__nv_bfloat16>) == 16);
  const unsigned pieces = launch.head_dim / kAppendPiece, heads = launch.num_kv_heads;
  const unsigned piece = index % pieces, row = index / pieces;
  const unsigned head = row % heads, value = row / heads % 2, token = row / heads / 2;
  if (token >= launch.num_tokens) return ready();

  const TokenPlace place = token < kPlacesInLaunch ? launch.first[token] : launch.places[token];
  const auto from = static_cast<const AppendPiece<Source>*>(value ? place.v : place.k)[head * pieces + piece];
  const float scale = launch.scales ? launch.scales[(place.layer * 2 + value) * heads + head] : 1.0f;
  AppendPiece<Stored> converted;
#pragma unroll
  for (int i = 0; i < kAppendPiece; ++i) converted.x[i] = ToStored<Stored>(from.x[i], scale);
  ready();

  const int64_t stored_row = place.row + static_cast<int64_t>(value * heads + head) * launch.page_size;
  if (launch.feature_major_keys && !value) {
    // The head's numbers in the page begin where its first token's row would; those of one token lie page_size apart.
    const int64_t in_page = stored_row % launch.page_size;
    Stored* to = static_cast<Stored*>(launch.pool) + (stored_row - in_page) * launch.head_dim +
                 piece * kAppendPiece * launch.page_size + in_page;
    if constexpr (kCompare) {
      AppendPiece<Stored> there;
#pragma unroll
      for (int i = 0; i < kAppendPiece; ++i) there.x[i] = to[i * launch.page_size];
      if (!SameBits(there, converted)) launch.differs[place.append] = 1;
    } else {
#pragma unroll
      for (int i = 0; i < kAppendPiece; ++i) to[i * launch.page_size] = converted.x[i];
    }
    return;
  }
  AppendPiece<Stored>* to = static_cast<AppendPiece<Stored>*>(launch.pool) + stored_row * pieces + piece;
  if constexpr (kCompare) {
    if (!SameBits(*to, converted)) launch.differs[place.append] = 1;
  } else {
    *to = converted;
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_KV_APPEND_CUH_
