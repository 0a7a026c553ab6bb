// Stores tokens in the paged cache, or compares them with it, converting from the caller's type to the cache's.
//
// Grid: threads as kernels/cuda/kv_append.cuh has them. A kernel may start while the wave ahead is still at work: it
// has then read its tokens out of host memory, which takes longest, by the time the cache may be written.
#include "kernels/cuda/kv_append.h"

#include "kernels/cuda/kv_append.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;

template <typename Source, typename Stored, bool kCompare>
__global__ void __launch_bounds__(kThreads) KvAppendKernel(const __grid_constant__ KvAppendLaunch launch) {
  AppendOnePiece<Source, Stored, kCompare>(launch, blockIdx.x * kThreads + threadIdx.x, [] { WaitForEarlierKernel(); });
}

template <typename Source, typename Stored, bool kCompare>
cudaError_t Launch(const KvAppendLaunch& launch, cudaStream_t stream) {
  const int64_t threads = AppendThreads(launch);
  if (threads == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  return LaunchOverlapping(KvAppendKernel<Source, Stored, kCompare>, launch, dim3(blocks), kThreads, 0, stream);
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
