// Rounds queries to the type of the products.
//
// Grid: one block for each item; blocks of items that need nothing leave at once. Two passes over H * D numbers: the
// largest magnitude, which picks the power of two, then the conversion.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/query_convert.h"

namespace santa::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kExponent = 14;   // of an fp16 item's largest query
constexpr int kMostShift = 64;  // of tinier ones: the scale that takes it back is to stay a normal number
constexpr float kLargestBFloat16 = 0x1.fep127f;

__device__ __forceinline__ float Load(const void* q, DType type, int index) {
  switch (type) {
    case DType::kFloat32:
      return static_cast<const float*>(q)[index];
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(q)[index]);
    default:
      return __half2float(static_cast<const __half*>(q)[index]);
  }
}

// The largest finite magnitude of the block's numbers.
__device__ float LargestMagnitude(const DeviceItem& item, int num_numbers) {
  __shared__ float of_warp[kThreads / 32];
  float largest = 0;
  for (int i = threadIdx.x; i < num_numbers; i += kThreads) {
    const float magnitude = fabsf(Load(item.q, item.io_dtype, i));
    if (magnitude < INFINITY) largest = fmaxf(largest, magnitude);
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  for (const float other : of_warp) largest = fmaxf(largest, other);
  return largest;
}

__global__ void __launch_bounds__(kThreads) QueryConvertKernel(const __grid_constant__ QueryConvertLaunch launch) {
  DeviceItem& item = launch.items[blockIdx.x];
  if (item.io_dtype == launch.type) return;
  const bool half = launch.type == DType::kFloat16;
  int shift = 0;
  if (half) {
    const float largest = LargestMagnitude(item, launch.num_numbers);
    shift = largest == 0 ? 0 : min(kExponent - ilogbf(largest), kMostShift);
  }
  uint16_t* to = static_cast<uint16_t*>(launch.converted) + static_cast<size_t>(blockIdx.x) * launch.num_numbers;
  for (int i = threadIdx.x; i < launch.num_numbers; i += kThreads) {
    const float x = Load(item.q, item.io_dtype, i);
    if (half) {
      to[i] = __half_as_ushort(__float2half_rn(ldexpf(x, shift)));
    } else {
      const bool clamp = fabsf(x) > kLargestBFloat16 && fabsf(x) < INFINITY;
      to[i] = __bfloat16_as_ushort(__float2bfloat16_rn(clamp ? copysignf(kLargestBFloat16, x) : x));
    }
  }
  __syncthreads();  // before the item changes under a slower thread
  if (threadIdx.x == 0) {
    item.q = to;
    item.scale = ldexpf(item.scale, -shift);
  }
}

}  // namespace

cudaError_t LaunchQueryConvert(const QueryConvertLaunch& launch, cudaStream_t stream) {
  if (launch.num_items == 0) return cudaSuccess;
  QueryConvertKernel<<<launch.num_items, kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace santa::cuda
