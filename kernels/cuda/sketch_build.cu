// Sketches full pages: their keys, and their values where these are to have one.
//
// Grid: (key/value head, page, keys or values). A thread finds a column's range, then each thread puts words of codes
// together.
#include "kernels/cuda/sketch_build.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/sketch_codes.cuh"
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
  const bool of_values = blockIdx.z == 1;
  const int bits = of_values ? launch.value_bits : launch.key_bits;
  const int64_t page = launch.pages[blockIdx.y];
  const Kv* rows = static_cast<const Kv*>(launch.pool) +
                   ((page * 2 + (of_values ? 1 : 0)) * launch.num_kv_heads + blockIdx.x) * page_size * dim;
  uint8_t* sketch =
      static_cast<uint8_t*>(launch.sketch) +
      (page * launch.num_kv_heads + blockIdx.x) * SketchHeadBytes(dim, page_size, launch.key_bits, launch.value_bits) +
      (of_values ? SketchPartBytes(dim, page_size, launch.key_bits) : 0);
  auto* columns = reinterpret_cast<__half*>(sketch + static_cast<size_t>(page_size / 16) * SketchSlabBytes(dim, bits));
  const int column = threadIdx.x;
  if (column < dim) {
    float smallest = static_cast<float>(rows[column]), largest = smallest;
    for (int token = 1; token < page_size; ++token) {
      const float x = static_cast<float>(rows[token * dim + column]);
      smallest = fminf(smallest, x);
      largest = fmaxf(largest, x);
    }
    // The step follows from the low number as rounded, so that the largest number has a code.
    const __half low_half = __float2half_rn(sampling::RangeOf(smallest, largest, bits).low);
    const __half step_half = __float2half_rn(sampling::RangeOf(__half2float(low_half), largest, bits).step);
    low[column] = __half2float(low_half);
    inverse_step[column] = of_values ? InverseStep(__half2float(step_half)) : 1.0f / __half2float(step_half);
    columns[of_values ? ValueStepAt(column) : KeyStepAt(column)] = step_half;
    columns[of_values ? ValueLowAt(column) : KeyLowAt(dim, column)] = low_half;
  }
  __syncthreads();
  auto* words = reinterpret_cast<uint32_t*>(sketch);
  const int of_step = WordsOfStep(bits), words_of_slab = dim / 16 * of_step * 32;
  for (int index = threadIdx.x; index < page_size / 16 * words_of_slab; index += kThreads) {
    const int slab = index / words_of_slab, lane = index % 32;
    const int step = index / 32 / of_step % (dim / 16), part = index / 32 % of_step;
    uint32_t word = 0;
    for (int i = 0; i < 32 / bits; ++i) {
      const SketchPlace place = of_values ? ValuePlace(bits, lane, part, i) : KeyPlace(bits, lane, part, i);
      const int feature = 16 * step + place.feature;
      const float x = static_cast<float>(rows[(16 * slab + place.token) * dim + feature]);
      const uint32_t code =
          of_values ? static_cast<uint32_t>(ValueCode(x, low[feature], inverse_step[feature], (1 << bits) - 1))
                    : sampling::CodeOf(x, low[feature], inverse_step[feature], bits);
      word |= code << place.bit | (place.bit > 28 ? code >> (32 - place.bit) : 0);
    }
    words[slab * words_of_slab + SketchWord(dim, bits, step, lane, part)] = word;
  }
}

}  // namespace

cudaError_t LaunchSketchBuild(const SketchBuildLaunch& launch, cudaStream_t stream) {
  if (launch.num_pages == 0) return cudaSuccess;
  if (launch.head_dim > kMaxDim) return cudaErrorNotSupported;
  const dim3 grid(launch.num_kv_heads, launch.num_pages, launch.value_bits > 0 ? 2 : 1);
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
