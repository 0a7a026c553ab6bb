// Each group's kappa (kernels/sampling/inclusion.h): a histogram of a_i over its candidates, and the equation solved on
// it by the block whose split was the last.
//
// Grid: (key/value head, work). A block takes some splits, a thread four tokens at a time; what a block counted is
// added to the group's histogram, where whole numbers come to the same sum in any order.
#include "kernels/cuda/group_inclusion.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/solve_threshold.cuh"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;

struct Shared {
  unsigned histogram[sampling::kInclusionBins];
  alignas(16) float octaves[kMostOctaves];
  float lse[kMaxGroup];
  SolveShared<kThreads> solve;
  bool last;
};

template <typename Code>
__global__ void __launch_bounds__(kThreads) FindThresholdKernel(const __grid_constant__ GroupLaunch group) {
  const DecodeLaunch& launch = group.decode;
  __shared__ Shared shared;
  LetLaterKernelStart();
  const int item_index = launch.work[blockIdx.y].item;
  const DeviceItem& item = launch.items[item_index];
  const int kv_head = blockIdx.x, lane = threadIdx.x % 32;
  if (!BlockSplits::IsFirst(group)) return WaitForEarlierKernel();
  const BlockSplits splits(group, item);
  const GroupArrays arrays = group.arrays[item_index];
  for (int i = threadIdx.x; i < sampling::kInclusionBins; i += kThreads) shared.histogram[i] = 0;
  WaitForEarlierKernel();
  for (int head = threadIdx.x / 32; head < launch.group_size; head += kThreads / 32) {
    const float lse = HeadLse(arrays, kv_head, head, launch.group_size, lane);
    if (lane == 0) shared.lse[head] = lse;
  }
  __syncthreads();
  LoadOctaves(shared.octaves, arrays, splits, kv_head, launch.group_size, shared.lse);
  __syncthreads();
  const bool sketched = group.method == Method::kSketched;
  const int end = sketched ? min(splits.end, FullPagesEnd(item, launch.page_shift)) : splits.end;
  const auto* codes =
      reinterpret_cast<const QuadCodes<Code>*>(arrays.codes(kv_head, splits.origin / sampling::kCodeBlock));
  const int quads = CodesOfToken(launch.group_size) / kQuad;
  constexpr int kStep = kRunTokens * kThreads;
  codes += static_cast<size_t>(kRunTokens * threadIdx.x) * quads;
  for (int place = kRunTokens * threadIdx.x; splits.origin + place < end; place += kStep, codes += kStep * quads) {
    float a_squared[kRunTokens];
    SumSquares(a_squared, codes, shared.octaves + place / sampling::kCodeBlock * kQuad * quads, quads);
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i) {
      const int token = splits.origin + place + i;
      if (token < splits.begin || token >= end || (!sketched && a_squared[i] == 0)) continue;
      atomicAdd(&shared.histogram[sampling::InclusionBin(a_squared[i])], 1u);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < sampling::kInclusionBins; i += kThreads) {
    if (shared.histogram[i] != 0) atomicAdd(arrays.histogram(kv_head) + i, shared.histogram[i]);
  }
  __syncthreads();
  if (!IsLastOfGroup(launch, item_index, kv_head, BlockSplits::BlocksOf(item, group.splits_of_block), shared.last))
    return;
  // Candidates that have a chance: with a floor every one.
  const int first = item.begin, last = sketched ? FullPagesEnd(item, launch.page_shift) : item.end;
  const double budget = sampling::InclusionBudget(item.sample_count, max(last - first, 0));
  const double even = sketched ? sampling::kEvenShare * item.sample_count : 0;
  const unsigned* histogram = arrays.histogram(kv_head);
  const sampling::InclusionThreshold threshold = SolveThreshold(
      shared.solve, [histogram](int bin) { return __ldcg(histogram + bin); }, budget, even);
  if (threadIdx.x == 0) *arrays.threshold(kv_head) = threshold;
  if (threadIdx.x < launch.group_size) arrays.lse(kv_head)[threadIdx.x] = shared.lse[threadIdx.x];
}

}  // namespace

cudaError_t LaunchFindThreshold(const GroupLaunch& launch, cudaStream_t stream) {
  const auto kernel =
      CodeBytes(launch.method, launch.sketch) == 2 ? FindThresholdKernel<uint16_t> : FindThresholdKernel<uint8_t>;
  return LaunchGroup(kernel, launch, kThreads, 0, stream);
}

}  // namespace santa::cuda
