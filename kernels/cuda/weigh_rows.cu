// All visible rows with their softmax weights, as GatherRows takes drawn ones: in the place of PlaceDraws and DrawRows.
//
// Grid: (key/value head, work). A warp takes a block of 256 tokens at a time. Every block of threads works out the
// heads' softmax for itself, in one order, so that all find the same bits.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/split_sums.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/sampling/mass.h"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;
// The weight of the largest score: fp16 then holds weights down to 2^-38 of it.
constexpr float kLargestWeight = 0x1p14f;

// A head's largest score, and the sum of the weights 2^(score - largest); both NaN where a score is, as all weights are
// then. The warp calls it.
__device__ __forceinline__ float2 MergeBlocks(const StoredView& stored, int head, int lane) {
  const float* own_max = stored.arrays.own_max(head);
  const uint64_t* own_mass = stored.arrays.own_mass(head);
  float max = kNegativeInfinity, sum = 0;
  bool with_nan = false;
#pragma unroll 4
  for (int block = lane; block < stored.lines.num_blocks; block += 32) {
    with_nan |= own_max[block] != own_max[block];
    max = fmaxf(max, own_max[block]);
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
#pragma unroll 4
  for (int block = lane; block < stored.lines.num_blocks; block += 32) {
    sum += Rescale(own_max[block], max) * (static_cast<float>(own_mass[block]) / sampling::kMassOne);
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return __any_sync(~0u, with_nan) ? make_float2(NAN, NAN) : make_float2(max, sum);
}

// The tokens [first, first + count) of a block, and in the place of the head's scores their weights. The warp calls it.
__device__ __forceinline__ void Weigh(float* scores, int first, int count, float max, int lane) {
  constexpr int kEach = kBlockTokens / 32;
  float weights[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int entry = lane + 32 * i;
    if (entry < count) weights[i] = kLargestWeight * Exp2(scores[first + entry] - max);
  }
  __syncwarp();  // before a score is overwritten that another lane reads
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int entry = lane + 32 * i;
    if (entry < count) scores[entry] = weights[i];
  }
}

__global__ void __launch_bounds__(32 * kWarps) WeighRowsKernel(const __grid_constant__ StoredLaunch launch) {
  __shared__ float max_of[kMaxGroup];
  LetLaterKernelStart();
  const WorkUnit work = launch.decode.work[blockIdx.y];
  const DeviceItem& item = launch.decode.items[work.item];
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group_size = launch.decode.group_size, first_head = kv_head * group_size;
  const StoredView stored(launch.decode, item, launch.stored[work.item]);
  WaitForEarlierKernel();
  for (int head = warp; head < group_size; head += kWarps) {
    const float2 max_sum = MergeBlocks(stored, first_head + head, lane);
    if (lane != 0) continue;
    max_of[head] = max_sum.x;
    if (work.split == 0) {
      WriteHeadSum(stored.arrays.head_sum(first_head + head), item, first_head + head, max_sum.x, max_sum.y,
                   kLargestWeight * max_sum.y);
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int token = work.begin / kBlockTokens * kBlockTokens + warp * kBlockTokens; token < work.end;
       token += kWarps * kBlockTokens) {
    const int block = token / kBlockTokens - stored.lines.first_block;
    const int first = max(work.begin - token, 0), count = min(work.end - token, kBlockTokens) - first;
    for (int head = 0; head < group_size; ++head) {
      Weigh(stored.arrays.scores(first_head + head, block), first, count, max_of[head], lane);
    }
    uint8_t* list = stored.arrays.list(kv_head, block);
    for (int entry = lane; entry < count; entry += 32) list[entry] = static_cast<uint8_t>(first + entry);
    if (lane == 0) stored.arrays.num_listed(kv_head)[block] = count;
  }
}

}  // namespace

cudaError_t LaunchWeighRows(const StoredLaunch& launch, cudaStream_t stream) {
  return LaunchOverlapping(WeighRowsKernel, launch, dim3(launch.decode.num_kv_heads, launch.decode.num_work),
                           32 * kWarps, 0, stream);
}

}  // namespace santa::cuda
