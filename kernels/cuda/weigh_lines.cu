// The mass of each block of 256 tokens against the largest score of its line.
//
// Grid: (query head, work). A warp takes a block at a time.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/split_merge.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/sampling/mass.h"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;

// The largest of max[begin .. end), whatever NaN is among them.
__device__ __forceinline__ float LargestOf(const float* max, int begin, int end, int lane) {
  float largest = kNegativeInfinity;
#pragma unroll 4
  for (int i = begin + lane; i < end; i += 32) largest = fmaxf(largest, max[i]);
#pragma unroll
  for (int step = 1; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  return largest;
}

__global__ void __launch_bounds__(32 * kWarps) WeighLinesKernel(const __grid_constant__ StoredLaunch launch) {
  LetLaterKernelStart();
  const WorkUnit work = launch.decode.work[blockIdx.y];
  const StoredView stored(launch.decode, launch.decode.items[work.item], launch.stored[work.item]);
  const int head = blockIdx.x, lane = threadIdx.x % 32;
  WaitForEarlierKernel();
  if (stored.lines.line_blocks == 1) return;
  const float* own_max = stored.arrays.own_max(head);
  int line = -1;
  float max = kNegativeInfinity;
  for (int token = work.begin / kBlockTokens * kBlockTokens + threadIdx.x / 32 * kBlockTokens; token < work.end;
       token += kWarps * kBlockTokens) {
    const int block = token / kBlockTokens - stored.lines.first_block;
    if (stored.lines.LineOf(block) != line) {
      line = stored.lines.LineOf(block);
      max = LargestOf(own_max, stored.lines.Begin(line), stored.lines.End(line), lane);
    }
    const float* scores = stored.arrays.scores(head, block);
    uint64_t mass = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 s = *reinterpret_cast<const float4*>(scores + kBlockTokens / 2 * half + 4 * lane);
      mass += static_cast<uint64_t>(sampling::RowMass(Exp2(s.x - max))) + sampling::RowMass(Exp2(s.y - max));
      mass += static_cast<uint64_t>(sampling::RowMass(Exp2(s.z - max))) + sampling::RowMass(Exp2(s.w - max));
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) mass += __shfl_xor_sync(~0u, mass, step);
    if (lane == 0) {
      stored.arrays.line_max(head)[block] = max;
      stored.arrays.line_mass(head)[block] = mass;
    }
  }
}

}  // namespace

cudaError_t LaunchWeighLines(const StoredLaunch& launch, cudaStream_t stream) {
  const dim3 grid(launch.decode.num_kv_heads * launch.decode.group_size, launch.decode.num_work);
  return LaunchOverlapping(WeighLinesKernel, launch, grid, 32 * kWarps, 0, stream);
}

}  // namespace santa::cuda
