// Each group's kappa (kernels/sampling/inclusion.h): a histogram of a_i over its candidates, and the equation solved on
// it by the block whose split was the last.
//
// Grid: (key/value head, work). A block takes some splits, a thread four tokens at a time; what a block counted is
// added to the group's histogram, where whole numbers come to the same sum in any order.
#include "kernels/cuda/group_inclusion.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBinsOfThread = sampling::kInclusionBins / kThreads;

struct Shared {
  unsigned histogram[sampling::kInclusionBins];
  alignas(16) float octaves[kMostOctaves];
  float lse[kMaxGroup];
  unsigned long long warp_tail[kThreads / 32];
  unsigned warp_heavy[kThreads / 32];
  int highest;
  bool last;
};

// log2 of a head's sum of 2^score over all splits, by a warp.
__device__ float HeadLse(const GroupArrays& arrays, int kv_head, int head, int group_size, int lane) {
  const float2* sums = arrays.split_sums(kv_head) + head;
  float max = kNegativeInfinity, sum = 0;
  for (int split = lane; split < arrays.num_splits(); split += 32) {
    const float2 part = sums[split * group_size];
    const float raised = fmaxf(max, part.x);
    sum = Rescale(max, raised) * sum + Rescale(part.x, raised) * part.y;
    max = raised;
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float other_max = __shfl_xor_sync(~0u, max, step), other_sum = __shfl_xor_sync(~0u, sum, step);
    const float raised = fmaxf(max, other_max);
    sum = Rescale(max, raised) * sum + Rescale(other_max, raised) * other_sum;
    max = raised;
  }
  return max + log2f(sum);
}

// The kappa of the counts in global memory. All threads call it; thread t has bins [kBinsOfThread t, ...).
__device__ sampling::InclusionThreshold Solve(Shared& shared, const unsigned* histogram, double budget, double even) {
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  unsigned count[kBinsOfThread], heavy = 0;  // heavy: rows of higher bins than the one at hand
  unsigned long long tail = 0;               // BinTop summed over rows of it and lower ones
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    count[i] = __ldcg(histogram + kBinsOfThread * t + i);
    heavy += count[i];
    tail += count[i] * sampling::BinTop(kBinsOfThread * t + i);
  }
  // Inclusive sums over threads.
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned h = __shfl_up_sync(~0u, heavy, step);
    const unsigned long long s = __shfl_up_sync(~0u, tail, step);
    if (lane >= step) {
      heavy += h;
      tail += s;
    }
  }
  if (lane == 31) {
    shared.warp_heavy[warp] = heavy;
    shared.warp_tail[warp] = tail;
  }
  if (t == 0) shared.highest = -1;
  __syncthreads();
  unsigned rows = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) {
      heavy += shared.warp_heavy[w];
      tail += shared.warp_tail[w];
    }
    rows += shared.warp_heavy[w];
  }
  heavy = rows - heavy;  // rows of all bins above this thread's
  const double floor = rows == 0 ? 0 : even / rows;
  double kappa[kBinsOfThread + 1];
  int mine = -1;  // the highest boundary below which all are below certainty
#pragma unroll
  for (int i = kBinsOfThread; i > 0; --i) {
    const int bin = kBinsOfThread * t + i;
    kappa[i] = sampling::KappaFor(budget, rows, floor, heavy, tail);
    if (mine < 0 && sampling::AllBelowCertain(kappa[i], floor, bin)) mine = bin;
    heavy += count[i - 1];
    tail -= count[i - 1] * sampling::BinTop(bin - 1);
  }
  if (mine >= 0) atomicMax(&shared.highest, mine);
  __syncthreads();
  if (shared.highest < 0) return {static_cast<float>(sampling::kMostKappa), static_cast<float>(floor)};
  if (mine == shared.highest) {
#pragma unroll
    for (int i = 1; i <= kBinsOfThread; ++i) {
      if (kBinsOfThread * t + i == mine) shared.octaves[0] = static_cast<float>(kappa[i]);
    }
  }
  __syncthreads();
  return {shared.octaves[0], static_cast<float>(floor)};
}

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
  if (!IsLastOfGroup(launch, item_index, kv_head, BlockSplits::BlocksOf(group, item), shared.last)) return;
  // Candidates that have a chance: with a floor every one.
  const int first = item.begin, last = sketched ? FullPagesEnd(item, launch.page_shift) : item.end;
  const double budget = sampling::InclusionBudget(item.sample_count, max(last - first, 0));
  const double even = sketched ? sampling::kEvenShare * item.sample_count : 0;
  const sampling::InclusionThreshold threshold = Solve(shared, arrays.histogram(kv_head), budget, even);
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
