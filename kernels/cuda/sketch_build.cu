// Sketches full pages of keys.
//
// Grid: (key/value head, page). A thread finds a column's range, then each thread puts words of codes together.
#include "kernels/cuda/sketch_build.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/sketch_layout.h"
#include "kernels/sampling/sketch.h"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxDim = 256;
static_assert(kThreads >= kMaxDim, "a thread a column");

template <typename Kv>
__global__ void __launch_bounds__(kThreads) SketchBuildKernel(const __grid_constant__ SketchBuildLaunch launch) {
  __shared__ float low[kMaxDim], inverse_step[kMaxDim];
  const int dim = launch.head_dim, page_size = launch.page_size;
  const int64_t page = launch.pages[blockIdx.y];
  const Kv* keys =
      static_cast<const Kv*>(launch.pool) + (page * 2 * launch.num_kv_heads + blockIdx.x) * page_size * dim;
  uint8_t* sketch = static_cast<uint8_t*>(launch.sketch) +
                    (page * launch.num_kv_heads + blockIdx.x) * SketchHeadBytes(dim, page_size);
  auto* columns = reinterpret_cast<__half*>(sketch + static_cast<size_t>(page_size / 16) * SketchSlabBytes(dim));
  const int column = threadIdx.x;
  if (column < dim) {
    float smallest = static_cast<float>(keys[column]), largest = smallest;
    for (int token = 1; token < page_size; ++token) {
      const float x = static_cast<float>(keys[token * dim + column]);
      smallest = fminf(smallest, x);
      largest = fmaxf(largest, x);
    }
    // The step follows from the low number as rounded, so that the largest number has a code.
    const __half low_half = __float2half_rn(sampling::RangeOf(smallest, largest, kSketchBits).low);
    const __half step_half = __float2half_rn(sampling::RangeOf(__half2float(low_half), largest, kSketchBits).step);
    low[column] = __half2float(low_half);
    inverse_step[column] = 1.0f / __half2float(step_half);
    columns[SketchStepAt(column)] = step_half;
    columns[SketchLowAt(dim, column)] = low_half;
  }
  __syncthreads();
  auto* words = reinterpret_cast<uint32_t*>(sketch);
  const int steps = dim / 16, words_of_slab = steps * 32;
  for (int index = threadIdx.x; index < page_size / 16 * words_of_slab; index += kThreads) {
    const int slab = index / words_of_slab, step = index / 32 % steps, lane = index % 32;
    uint32_t word = 0;
#pragma unroll
    for (int nibble = 0; nibble < 8; ++nibble) {
      const int token = 16 * slab + lane / 4 + (nibble & 2) * 4;
      const int feature = 16 * step + 2 * (lane % 4) + (nibble & 1) * 8 + nibble / 4;
      const float x = static_cast<float>(keys[token * dim + feature]);
      word |= sampling::CodeOf(x, low[feature], inverse_step[feature], kSketchBits) << 4 * nibble;
    }
    words[slab * words_of_slab + SketchWord(dim, step, lane)] = word;
  }
}

}  // namespace

cudaError_t LaunchSketchBuild(const SketchBuildLaunch& launch, cudaStream_t stream) {
  if (launch.num_pages == 0) return cudaSuccess;
  if (launch.head_dim > kMaxDim) return cudaErrorNotSupported;
  const dim3 grid(launch.num_kv_heads, launch.num_pages);
  switch (launch.stored) {
    case DType::kBFloat16:
      SketchBuildKernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(launch);
      break;
    case DType::kFloat16:
      SketchBuildKernel<__half><<<grid, kThreads, 0, stream>>>(launch);
      break;
    case DType::kFloat8E4M3:
      SketchBuildKernel<__nv_fp8_e4m3><<<grid, kThreads, 0, stream>>>(launch);
      break;
    default:
      return cudaErrorNotSupported;
  }
  return cudaGetLastError();
}

}  // namespace santa::cuda
