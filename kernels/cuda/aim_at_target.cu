// After a pilot draw: the threshold that reaches an item's target error (kernels/sampling/target_error.h), from each
// group's p[h,i]^2 by the bins of a_i, by the block whose split was the last.
//
// Grid: (key/value head, work). A block takes some splits, a thread four tokens at a time. What a block counted is
// added to the group's sums in whole numbers, which come to the same in any order.
#include "kernels/cuda/group_inclusion.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/sampling/target_error.h"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBins = sampling::kInclusionBins;
// p^2 is counted as its share of the upper edge of a^2's bin, in these units.
constexpr float kSpreadUnits = 0x1p16f;

struct Shared {
  alignas(16) float octaves[kMostOctaves];
  float lse[kMaxGroup];
  unsigned count[kBins];  // rows of each bin
  float top[kBins];       // the largest a of each
  bool last;
};

__device__ __forceinline__ float UpperEdge(int bin) {
  return __uint_as_float((sampling::kFirstBin + static_cast<uint32_t>(bin) + 1) << 19);
}

// Adds the block's tokens to `spreads`, [G][kBins] in shared memory.
template <typename Code>
__device__ void CountSpreads(const GroupLaunch& group, const BlockSplits& splits, const QuadCodes<Code>* codes, int end,
                             const float* octaves, unsigned* spreads) {
  const int group_size = group.decode.group_size, quads = CodesOfToken(group_size) / kQuad;
  for (int place = kRunTokens * threadIdx.x; splits.origin + place < end; place += kRunTokens * kThreads) {
    const float* of_block = octaves + place / sampling::kCodeBlock * kQuad * quads;
    float a_squared[kRunTokens];
    SumSquares(a_squared, codes + static_cast<size_t>(place) * quads, of_block, quads);
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i) {
      const int token = splits.origin + place + i;
      if (token < splits.begin || token >= end || a_squared[i] == 0) continue;
      const int bin = sampling::InclusionBin(a_squared[i]);
      const float scale = kSpreadUnits / UpperEdge(bin);
      for (int head = 0; head < group_size; ++head) {
        const float p = codes[(place + i) * quads + head / kQuad].Weight(head % kQuad, of_block[head]);
        const auto share = static_cast<unsigned>(fminf(p * p * scale, kSpreadUnits));
        if (share > 0) atomicAdd(spreads + head * kBins + bin, share);
      }
    }
  }
}

// sampling::RowsAt, ThresholdAt and Spread by a warp. spreads: [kBins], of one head.
__device__ float RowsAt(const Shared& shared, const sampling::InclusionThreshold& threshold) {
  float rows = 0;
  for (int bin = threadIdx.x % 32; bin < kBins; bin += 32) {
    rows += shared.count[bin] * fminf(fmaf(threshold.kappa, shared.top[bin], threshold.floor), 1.0f);
  }
  return WarpSum(rows);
}
__device__ sampling::InclusionThreshold ThresholdAt(const Shared& shared, float kappa, float even_share, float rows) {
  const sampling::InclusionThreshold plain = {kappa, 0};
  return even_share > 0 ? sampling::InclusionThreshold{kappa, even_share * RowsAt(shared, plain) / rows} : plain;
}
__device__ float Spread(const Shared& shared, const sampling::InclusionThreshold& threshold, const float* spreads) {
  float sum = 0;
  for (int bin = threadIdx.x % 32; bin < kBins; bin += 32) {
    const float chance = fminf(fmaf(threshold.kappa, shared.top[bin], threshold.floor), 1.0f);
    if (shared.count[bin] > 0) sum = fmaf(1 / chance - 1, spreads[bin], sum);
  }
  return WarpSum(sum);
}

// sampling::SolveTarget by all threads, a warp for every kThreads / 32 of the heads. spreads: [G][kBins].
__device__ sampling::InclusionThreshold SolveTarget(const Shared& shared, const float* spreads, int group_size,
                                                    const sampling::InclusionThreshold& pilot, const float* allowed,
                                                    float even_share) {
  constexpr int kWarps = kThreads / 32, kHeadsOfWarp = kMaxGroup / kWarps;
  const int warp = threadIdx.x / 32;
  float limits[kHeadsOfWarp];
#pragma unroll
  for (int i = 0; i < kHeadsOfWarp; ++i) {
    const int head = warp + i * kWarps;
    if (head < group_size) limits[i] = allowed[head] * Spread(shared, pilot, spreads + head * kBins);
  }
  const float rows = RowsAt(shared, {0, 1});
  float low = -10, high = 40;  // log2 of kappa
  for (int step = 0; step < 12; ++step) {
    const float middle = (low + high) / 2;
    const sampling::InclusionThreshold threshold = ThresholdAt(shared, exp2f(middle), even_share, rows);
    bool beyond = false;
#pragma unroll
    for (int i = 0; i < kHeadsOfWarp; ++i) {
      const int head = warp + i * kWarps;
      if (head < group_size) beyond |= Spread(shared, threshold, spreads + head * kBins) > limits[i];
    }
    (__syncthreads_or(beyond) ? low : high) = middle;
  }
  const sampling::InclusionThreshold threshold = ThresholdAt(shared, exp2f(high), even_share, rows);
  if (RowsAt(shared, threshold) <= static_cast<float>(sampling::kMostShare) * rows) return threshold;
  return {static_cast<float>(sampling::kMostKappa), even_share > 0 ? 1.0f : 0.0f};
}

template <typename Code>
__global__ void __launch_bounds__(kThreads) AimAtTargetKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ unsigned counted[];  // [G][kBins]; for the last block floats
  __shared__ Shared shared;
  const DecodeLaunch& launch = group.decode;
  const int item_index = launch.work[blockIdx.y].item, kv_head = blockIdx.x, group_size = launch.group_size;
  const DeviceItem& item = launch.items[item_index];
  if (!BlockSplits::IsFirst(group) || item.target_relative_error == 0) return WaitForEarlierKernel();
  const BlockSplits splits(group, item);
  const GroupArrays arrays = group.arrays[item_index];
  const int num_spreads = group_size * kBins;
  for (int i = threadIdx.x; i < num_spreads; i += kThreads) counted[i] = 0;
  WaitForEarlierKernel();
  LetLaterKernelStart();
  if (arrays.pilot(kv_head)->done) return;
  if (threadIdx.x < splits.count) arrays.totals(kv_head)[splits.work->split + threadIdx.x] = 0;  // for the second draw
  if (threadIdx.x < group_size) shared.lse[threadIdx.x] = arrays.lse(kv_head)[threadIdx.x];
  __syncthreads();
  LoadOctaves(shared.octaves, arrays, splits, kv_head, group_size, shared.lse);
  __syncthreads();
  const bool sketched = group.method == Method::kSketched;
  const int end = sketched ? min(splits.end, FullPagesEnd(item, launch.page_shift)) : splits.end;
  const auto* codes =
      reinterpret_cast<const QuadCodes<Code>*>(arrays.codes(kv_head, splits.origin / sampling::kCodeBlock));
  CountSpreads(group, splits, codes, end, shared.octaves, counted);
  __syncthreads();
  unsigned long long* sums = arrays.spreads(kv_head);
  for (int i = threadIdx.x; i < num_spreads; i += kThreads) {
    if (counted[i] != 0) atomicAdd(sums + i, static_cast<unsigned long long>(counted[i]));
  }
  __syncthreads();
  if (!IsLastOfGroup(launch, item_index, kv_head, BlockSplits::BlocksOf(item, group.splits_of_block), shared.last))
    return;
  auto* spreads = reinterpret_cast<float*>(counted);
  for (int i = threadIdx.x; i < num_spreads; i += kThreads) {
    spreads[i] = static_cast<float>(__ldcg(sums + i)) / kSpreadUnits * UpperEdge(i % kBins);
  }
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
    shared.count[bin] = arrays.histogram(kv_head)[bin];
    shared.top[bin] = static_cast<float>(sampling::BinTop(bin)) * 0x1p-40f;
  }
  __syncthreads();
  const float even_share = sketched ? static_cast<float>(sampling::kEvenShare) : 0.0f;
  const sampling::InclusionThreshold threshold =
      SolveTarget(shared, spreads, group_size, *arrays.threshold(kv_head), arrays.pilot(kv_head)->allowed, even_share);
  __syncthreads();  // all have read the pilot's
  if (threadIdx.x == 0) *arrays.threshold(kv_head) = threshold;
}

}  // namespace

cudaError_t LaunchAimAtTarget(const GroupLaunch& launch, cudaStream_t stream) {
  const auto kernel =
      CodeBytes(launch.method, launch.sketch) == 2 ? AimAtTargetKernel<uint16_t> : AimAtTargetKernel<uint8_t>;
  const int shared_bytes = launch.decode.group_size * kBins * static_cast<int>(sizeof(unsigned));
  return LaunchGroup(kernel, launch, kThreads, shared_bytes, stream);
}

}  // namespace santa::cuda
