// How warps, then splits, become one answer: each brings an output not yet divided by its sum, the largest score it was
// taken against and that sum (flash-decoding's log-sum-exp merge). The order is fixed, so the bits are too.
#ifndef SANTA_KERNELS_CUDA_SPLIT_MERGE_CUH_
#define SANTA_KERNELS_CUDA_SPLIT_MERGE_CUH_

#include <cmath>

#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/warp_attention.cuh"

namespace santa::cuda {

inline constexpr float kNegativeInfinity = -INFINITY;
inline constexpr int kMaxGroup = 16;  // query heads of one key/value head

// The running softmax of a warp for heads 2c, 2c + 1 of a block of 8: scores in units of log2.
struct RunningSoftmax {
  float max[2] = {kNegativeInfinity, kNegativeInfinity};
  float sum[2] = {0, 0};  // this lane's share: the sum over r is the head's
};

// exp2(from - to) where -inf stands for "nothing yet".
__device__ __forceinline__ float Rescale(float from, float to) {
  return from == kNegativeInfinity ? 0.0f : exp2f(from - to);
}

template <int D, int kWarps>
struct alignas(16) WarpResults {
  float o[kWarps][8][D + 4];
  float max[kWarps][8];
  float sum[kWarps][8];
};

// Merges the block's warps for heads 8 * block .. + 7 and writes the split's partial result. All threads call it.
template <int D, int kWarps>
__device__ void MergeWarps(WarpResults<D, kWarps>& shared, const OutputFragment<D>& out, const RunningSoftmax& softmax,
                           const DecodeLaunch& launch, size_t partial, int block) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
  __syncthreads();  // the memory may have been something else
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = softmax.sum[h];
#pragma unroll
    for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (r == 0) {
      shared.max[warp][2 * c + h] = softmax.max[h];
      shared.sum[warp][2 * c + h] = sum;
    }
#pragma unroll
    for (int j = 0; j < ValueFragment<D>::kSteps; ++j) {
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int dim = 64 * j + 8 * r + 2 * b;
        if (D % 64 == 0 || dim < D) {
          *reinterpret_cast<float2*>(&shared.o[warp][2 * c + h][dim]) = make_float2(out.o[j][b][h], out.o[j][b][h + 2]);
        }
      }
    }
  }
  __syncthreads();
  const int heads = min(8, launch.group_size - 8 * block);
  for (int i = threadIdx.x; i < heads * D; i += 32 * kWarps) {
    const int head = i / D, dim = i % D;
    float max = kNegativeInfinity, sum = 0, o = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, shared.max[w][head]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = Rescale(shared.max[w][head], max);
      sum += factor * shared.sum[w][head];
      o += factor * shared.o[w][head][dim];
    }
    const size_t to = partial * launch.group_size + 8 * block + head;
    launch.partial_o[to * D + dim] = o;
    if (dim == 0) launch.partial_max_sum[to] = make_float2(max, sum);
  }
}

__device__ __forceinline__ void StoreOutput(const DeviceItem& item, int index, float value) {
  switch (item.io_dtype) {
    case DType::kFloat32:
      static_cast<float*>(item.o)[index] = value;
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(item.o)[index] = __float2bfloat16(value);
      break;
    case DType::kFloat16:
      static_cast<__half*>(item.o)[index] = __float2half(value);
      break;
  }
}

// Counts the block in; the last one of the (item, head) merges the splits and writes the answer. All threads call it.
template <int D>
__device__ void MergeSplits(const DecodeLaunch& launch, const DeviceItem& item, int item_index, int kv_head) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* ticket = launch.tickets + item_index * launch.num_kv_heads + kv_head;
    last = atomicAdd(ticket, 1) + 1 == item.num_splits;
    if (last) *ticket = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int group_size = launch.group_size, lane = threadIdx.x % 32;
  const size_t stride = static_cast<size_t>(launch.num_kv_heads) * group_size;  // between splits
  const size_t first = item.first_split * stride + kv_head * group_size;

  // A warp a head: the largest score of all splits, and the sum against it.
  __shared__ float max_of_head[kMaxGroup], sum_of_head[kMaxGroup];
  for (int head = threadIdx.x / 32; head < group_size; head += blockDim.x / 32) {
    const float2* parts = launch.partial_max_sum + first + head;
    const float sink = item.sinks ? item.sinks[kv_head * group_size + head] * kLog2E : kNegativeInfinity;
    float max = sink;
    for (int split = lane; split < item.num_splits; split += 32) max = fmaxf(max, __ldcg(parts + split * stride).x);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
    float sum = lane == 0 ? Rescale(sink, max) : 0.0f;
    for (int split = lane; split < item.num_splits; split += 32) {
      const float2 part = __ldcg(parts + split * stride);
      sum += Rescale(part.x, max) * part.y;
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) {
      max_of_head[head] = max;
      sum_of_head[head] = sum;
      item.lse[kv_head * group_size + head] = (max + log2f(sum)) / kLog2E;
    }
  }
  __syncthreads();
  for (int i = 4 * threadIdx.x; i < group_size * D; i += 4 * blockDim.x) {
    const int head = i / D;
    const float max = max_of_head[head];
    float4 o = {};
#pragma unroll 8
    for (int split = 0; split < item.num_splits; ++split) {
      const float factor = Rescale(__ldcg(launch.partial_max_sum + first + head + split * stride).x, max);
      const float4 part = __ldcg(reinterpret_cast<const float4*>(launch.partial_o + (first + split * stride) * D + i));
      o.x += factor * part.x;
      o.y += factor * part.y;
      o.z += factor * part.z;
      o.w += factor * part.w;
    }
    const int to = kv_head * group_size * D + i;
    const float sum = sum_of_head[head];
    StoreOutput(item, to, o.x / sum);
    StoreOutput(item, to + 1, o.y / sum);
    StoreOutput(item, to + 2, o.z / sum);
    StoreOutput(item, to + 3, o.w / sum);
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SPLIT_MERGE_CUH_
