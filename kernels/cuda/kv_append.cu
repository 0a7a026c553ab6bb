// Stores tokens in the paged cache, or compares them with it, converting from the caller's type to the cache's.
//
// Grid: one thread for every 8 numbers of a K or V row; consecutive threads take consecutive pieces of a row, then the
// token's next head, then its V, then the next token. A 16-bit row is read and written 16 bytes at a time, but for keys
// that lie feature by feature, whose numbers go each to its own place.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/kv_append.h"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPiece = 8;  // numbers of a thread

template <typename T>
struct alignas(kPiece * sizeof(T) < 16 ? kPiece * sizeof(T) : 16) Piece {
  T x[kPiece];
};

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }

template <typename Stored, typename Source>
__device__ __forceinline__ Stored Convert(Source x, float scale) {
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
__device__ __forceinline__ bool SameBits(const Piece<T>& a, const Piece<T>& b) {
  const auto* x = reinterpret_cast<const uint2*>(&a);
  const auto* y = reinterpret_cast<const uint2*>(&b);
  bool same = true;
#pragma unroll
  for (int i = 0; i < sizeof(a) / sizeof(uint2); ++i) same = same && x[i].x == y[i].x && x[i].y == y[i].y;
  return same;
}

template <typename Source, typename Stored, bool kCompare>
__global__ void __launch_bounds__(kThreads) KvAppendKernel(const __grid_constant__ KvAppendLaunch launch) {
  static_assert(sizeof(Piece<__nv_bfloat16>) == 16 && alignof(Piece<__nv_bfloat16>) == 16);
  const unsigned pieces = launch.head_dim / kPiece, heads = launch.num_kv_heads;
  const unsigned index = blockIdx.x * kThreads + threadIdx.x;
  const unsigned piece = index % pieces, row = index / pieces;
  const unsigned head = row % heads, value = row / heads % 2, token = row / heads / 2;
  if (token >= launch.num_tokens) return;

  const TokenPlace place = launch.places[token];
  const Piece<Source> from = static_cast<const Piece<Source>*>(value ? place.v : place.k)[head * pieces + piece];
  const float scale = launch.scales ? launch.scales[(place.layer * 2 + value) * heads + head] : 1.0f;
  Piece<Stored> converted;
#pragma unroll
  for (int i = 0; i < kPiece; ++i) converted.x[i] = Convert<Stored>(from.x[i], scale);

  const int64_t stored_row = place.row + static_cast<int64_t>(value * heads + head) * launch.page_size;
  if (launch.feature_major_keys && !value) {
    // The head's numbers in the page begin where its first token's row would; those of one token lie page_size apart.
    const int64_t in_page = stored_row % launch.page_size;
    Stored* to = static_cast<Stored*>(launch.pool) + (stored_row - in_page) * launch.head_dim +
                 piece * kPiece * launch.page_size + in_page;
    if constexpr (kCompare) {
      Piece<Stored> there;
#pragma unroll
      for (int i = 0; i < kPiece; ++i) there.x[i] = to[i * launch.page_size];
      if (!SameBits(there, converted)) launch.differs[place.append] = 1;
    } else {
#pragma unroll
      for (int i = 0; i < kPiece; ++i) to[i * launch.page_size] = converted.x[i];
    }
    return;
  }
  Piece<Stored>* to = static_cast<Piece<Stored>*>(launch.pool) + stored_row * pieces + piece;
  if constexpr (kCompare) {
    if (!SameBits(*to, converted)) launch.differs[place.append] = 1;
  } else {
    *to = converted;
  }
}

template <typename Source, typename Stored, bool kCompare>
cudaError_t Launch(const KvAppendLaunch& launch, cudaStream_t stream) {
  const int64_t threads = launch.num_tokens * 2 * launch.num_kv_heads * (launch.head_dim / kPiece);
  if (threads == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  KvAppendKernel<Source, Stored, kCompare><<<blocks, kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

template <typename Source, bool kCompare>
cudaError_t LaunchFrom(const KvAppendLaunch& launch, cudaStream_t stream) {
  switch (launch.stored) {
    case DType::kBFloat16:
      return Launch<Source, __nv_bfloat16, kCompare>(launch, stream);
    case DType::kFloat16:
      return Launch<Source, __half, kCompare>(launch, stream);
    case DType::kFloat8E4M3:
      return Launch<Source, __nv_fp8_e4m3, kCompare>(launch, stream);
    default:
      return cudaErrorNotSupported;
  }
}

template <bool kCompare>
cudaError_t LaunchEither(const KvAppendLaunch& launch, cudaStream_t stream) {
  switch (launch.source) {
    case DType::kFloat32:
      return LaunchFrom<float, kCompare>(launch, stream);
    case DType::kBFloat16:
      return LaunchFrom<__nv_bfloat16, kCompare>(launch, stream);
    case DType::kFloat16:
      return LaunchFrom<__half, kCompare>(launch, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

cudaError_t LaunchKvAppend(const KvAppendLaunch& launch, cudaStream_t stream) {
  return LaunchEither<false>(launch, stream);
}

cudaError_t LaunchKvCompare(const KvAppendLaunch& launch, cudaStream_t stream) {
  return LaunchEither<true>(launch, stream);
}

}  // namespace santa::cuda
