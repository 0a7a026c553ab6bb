// How warps, then splits, of a method that stored its scores become one answer: plain sums in a fixed order, divided at
// the end by a number that was known before.
#ifndef SANTA_KERNELS_CUDA_SPLIT_SUMS_CUH_
#define SANTA_KERNELS_CUDA_SPLIT_SUMS_CUH_

#include "kernels/cuda/split_merge.cuh"
#include "kernels/cuda/stored_layout.h"
#include "kernels/cuda/tile_errors.cuh"

namespace santa::cuda {

// A head's softmax over all its tokens: for the answer, and its lse, which is written here. weights: what the rows are
// counted with in the answer, all together.
__device__ __forceinline__ void WriteHeadSum(HeadSum* to, const DeviceItem& item, int head, float max, float sum,
                                             float weights) {
  const float sink = item.sinks ? item.sinks[head] * kLog2E : kNegativeInfinity;
  const float of_both = fmaxf(max, sink);
  const float of_tokens = Rescale(max, of_both) * sum, of_all = of_tokens + Rescale(sink, of_both);
  item.lse[head] = (of_both + log2f(of_all)) / kLog2E;
  *to = {.max = max, .sum = sum, .divisor = weights * (of_all / of_tokens)};
}
// Likewise, the weights being draws.
__device__ __forceinline__ void WriteHeadSum(HeadSum* to, const DeviceItem& item, int head, float max, float sum) {
  WriteHeadSum(to, item, head, max, sum, static_cast<float>(item.sample_count));
}

__device__ __forceinline__ void AddTo(sampling::StepSums& sum, const sampling::StepSums& part) {
  sum.t += part.t;
  sum.pairs += part.pairs;
  sum.steps += part.steps;
}

// Of a sum of drawn rows of that squared norm. `independent` draws: their steps are from 0.
__device__ __forceinline__ float SquaredErrorOf(const sampling::StepSums& sum, uint32_t independent,
                                                float squared_norm) {
  if (independent == 0) return sampling::SquaredError(sum);
  const auto draws = static_cast<float>(independent);
  return sampling::SquaredError({.t = draws, .t_squared = draws, .z_squared = sum.steps}, squared_norm);
}

// What the block's warps left of heads 8 * block .. + 7, added up: the answer, where the item has but one split, or a
// partial result; and their errors, where the item wants them. independent: draws of each head that are; 0: of another
// method. sums: [H] of the item. All threads call it. Not inlined: one for all types of cache.
template <int D, int kWarps>
__device__ __noinline__ void AddResults(const float (&of_warp)[kWarps][8][D + 4], Partials partials,
                                        const DeviceItem& item, const HeadSum* sums, uint32_t independent, int split,
                                        int kv_head, int block) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool tells_errors = item.relative_standard_error != nullptr;
  const int group_size = partials.group_size;
  const int heads = min(8, group_size - 8 * block);
  for (int i = 4 * threadIdx.x; i < heads * D; i += 4 * 32 * kWarps) {
    const int head = 8 * block + i / D, dim = i % D;
    float4 o = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) o += *reinterpret_cast<const float4*>(&of_warp[w][i / D][dim]);
    if (item.num_splits == 1) {
      const AnswerWriter answer(partials, item, kv_head);
      answer.WriteOutput<D>(head, dim, o, __ldcg(&sums[answer.first_head + head].divisor));
    } else {
      const size_t to = partials.Of(item, split, kv_head, head);
      *reinterpret_cast<float4*>(partials.o + to * D + dim) = o;
    }
  }
  for (int in_block = warp; tells_errors && in_block < heads; in_block += kWarps) {
    sampling::StepSums sum;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* part = &of_warp[w][in_block][D];
      AddTo(sum, {part[0], part[1], part[2]});
    }
    const AnswerWriter answer(partials, item, kv_head);
    const int head = 8 * block + in_block;
    if (item.num_splits > 1) {
      if (lane == 0) partials.errors[partials.Of(item, split, kv_head, head)] = sum;
      continue;
    }
    float squared_norm = 0;
    for (int dim = 4 * lane; dim < D; dim += 4 * 32) {
      float4 o = {};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) o += *reinterpret_cast<const float4*>(&of_warp[w][in_block][dim]);
      squared_norm += SquaredNorm(o);
    }
    squared_norm = WarpSum(squared_norm);
    if (lane == 0) answer.WriteError(head, SquaredErrorOf(sum, independent, squared_norm), squared_norm);
  }
  __syncwarp();  // what is called is left by all lanes together, for barriers count warps
}

// Adds up the block's warps for heads 8 * block .. + 7, as AddResults says. All threads call it.
template <typename Kv, int D, int kWarps, int kHeads>
__device__ __forceinline__ void AddWarps(float (&of_warp)[kWarps][8][D + 4], const OutputFragment<D>& out,
                                         const WarpErrors<kHeads>& errors, const DecodeLaunch& launch,
                                         const DeviceItem& item, const HeadSum* sums, uint32_t independent, int split,
                                         int kv_head, int block) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // the memory was something else
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      of_warp[warp][2 * (lane % 4) + h][OutputDim<Kv>(j, lane, 0)] = out.o[j][h];
      of_warp[warp][2 * (lane % 4) + h][OutputDim<Kv>(j, lane, 1)] = out.o[j][h + 2];
    }
  }
  if (item.relative_standard_error != nullptr) errors.Write(&of_warp[warp][0][D], D + 4, block, lane);
  __syncthreads();
  AddResults<D, kWarps>(of_warp, Partials(launch), item, sums, independent, split, kv_head, block);
}

// Counts one of several splits in, on a ticket that was `first` before the first of them; the last one of the (item,
// head) adds them all up, writes the answer and leaves the ticket zero. answers: [G][D], shared. All threads call it.
// Not inlined, as AddResults.
template <int D>
__device__ __noinline__ void AddSplits(float* answers, Partials partials, const DeviceItem& item, const HeadSum* sums,
                                       uint32_t independent, unsigned* ticket, unsigned first, int kv_head) {
  __threadfence();
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1) + 1 == first + item.num_splits;
    if (last) *ticket = 0;
  }
  if (!__syncthreads_or(last)) return;
  __threadfence();
  const AnswerWriter answer(partials, item, kv_head);
  const size_t stride = static_cast<size_t>(partials.num_kv_heads) * partials.group_size * (D / 4);
  auto* partial = reinterpret_cast<float4*>(partials.o) + item.first_split * stride +
                  static_cast<size_t>(answer.first_head) * (D / 4);
  const int quads = partials.group_size * D / 4;
  for (int quad = threadIdx.x; quad < quads; quad += blockDim.x) {
    float4 o = {};
#pragma unroll 8
    for (int split = 0; split < item.num_splits; ++split) o += __ldcg(partial + split * stride + quad);
    const int head = 4 * quad / D;
    answer.WriteOutput<D>(head, 4 * quad % D, o, __ldcg(&sums[answer.first_head + head].divisor));
    reinterpret_cast<float4*>(answers)[quad] = o;
  }
  __syncthreads();  // all partial results have been read
  if (item.relative_standard_error != nullptr) {
    const int lane = threadIdx.x % 32;
    for (int head = threadIdx.x / 32; head < partials.group_size; head += blockDim.x / 32) {
      sampling::StepSums sum;
      for (int split = lane; split < item.num_splits; split += 32) {
        const float* part = &partials.errors[partials.Of(item, split, kv_head, head)].t;
        AddTo(sum, {__ldcg(part), __ldcg(part + 1), __ldcg(part + 2)});
      }
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        AddTo(sum, {__shfl_xor_sync(~0u, sum.t, step), __shfl_xor_sync(~0u, sum.pairs, step),
                    __shfl_xor_sync(~0u, sum.steps, step)});
      }
      float squared_norm = 0;
      for (int quad = lane; quad < D / 4; quad += 32) {
        squared_norm += SquaredNorm(reinterpret_cast<const float4*>(answers)[head * (D / 4) + quad]);
      }
      squared_norm = WarpSum(squared_norm);
      if (lane == 0) answer.WriteError(head, SquaredErrorOf(sum, independent, squared_norm), squared_norm);
    }
  }
  for (int quad = 8 * threadIdx.x; quad < item.num_splits * quads; quad += 8 * blockDim.x) {
    DiscardLine(partial + quad / quads * stride + quad % quads);
  }
  __syncwarp();
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SPLIT_SUMS_CUH_
