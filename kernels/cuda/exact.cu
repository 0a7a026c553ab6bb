// EXACT: paged split-KV decode attention (flash-decoding with a log-sum-exp merge), reading each byte of K and V once.
//
// Grid: (work, key/value head): one block for each split of each item. A split is a run of tokens whose bounds depend
// on the item's own visible tokens alone. Each warp takes every kWarps-th group of 16 tokens, with the next K and V
// rows on their way into registers while it computes.
#include "kernels/cuda/exact.h"

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/split_merge.cuh"
#include "kernels/cuda/warp_attention.cuh"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;

// Turns scores into weights exp2(s - max), after raising max (and scaling what was summed) where a score exceeds it.
template <int D>
__device__ __forceinline__ void Weigh(float (&s)[4], RunningSoftmax& softmax, OutputFragment<D>& out) {
  float raised[2] = {fmaxf(s[0], s[2]), fmaxf(s[1], s[3])};
  if (__any_sync(~0u, raised[0] > softmax.max[0] || raised[1] > softmax.max[1])) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      raised[h] = fmaxf(raised[h], softmax.max[h]);
#pragma unroll
      for (int step = 4; step < 32; step *= 2) raised[h] = fmaxf(raised[h], __shfl_xor_sync(~0u, raised[h], step));
      const float factor = Rescale(softmax.max[h], raised[h]);
      softmax.max[h] = raised[h];
      softmax.sum[h] *= factor;
#pragma unroll
      for (int j = 0; j < ValueFragment<D>::kSteps; ++j) {
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          out.o[j][b][h] *= factor;
          out.o[j][b][h + 2] *= factor;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    s[i] = Rescale(s[i], softmax.max[i & 1]);
    softmax.sum[i & 1] += s[i];
  }
}

template <typename T, int D, int kHeadBlocks>
__global__ void __launch_bounds__(32 * kWarps) ExactKernel(const __grid_constant__ DecodeLaunch launch) {
  __shared__ WarpResults<D, kWarps> shared;
  const int2 work = launch.work[blockIdx.x];
  const DeviceItem& item = launch.items[work.x];
  const int kv_head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4;
  constexpr int kStride = kWarps * kWarpTokens;

  const CacheView<D> view(launch, item, work.y, kv_head);
  RowFragment<D> q[kHeadBlocks];
#pragma unroll
  for (int block = 0; block < kHeadBlocks; ++block) LoadQueries<D>(q[block], launch, item, kv_head, block, lane);

  RunningSoftmax softmax[kHeadBlocks];
  OutputFragment<D> out[kHeadBlocks] = {};
  RowFragment<D> k[2];
  ValueFragment<D> v;
  int token = view.begin / kWarpTokens * kWarpTokens + warp * kWarpTokens;
  const uint16_t* group = view.Group(token);
  LoadKeys<D>(k, view, group, token, lane);
  LoadValues<D>(v, view, group, token, lane);
  group = view.Group(token + kStride);
#pragma unroll 1
  for (; token < view.end; token += kStride) {
    float s[kHeadBlocks][4];
#pragma unroll
    for (int block = 0; block < kHeadBlocks; ++block) Scores<T, D>(s[block], k[0], k[1], q[block]);
    LoadKeys<D>(k, view, group, token + kStride, lane);
#pragma unroll
    for (int block = 0; block < kHeadBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[block][i] = view.visible(token + r + 4 * (i & 2)) ? Log2Score(s[block][i], item) : kNegativeInfinity;
      }
      Weigh<D>(s[block], softmax[block], out[block]);
      Accumulate<T, D>(out[block], v, Transpose8x8(Pack<T>(s[block][0], s[block][1])),
                       Transpose8x8(Pack<T>(s[block][2], s[block][3])));
    }
    LoadValues<D>(v, view, group, token + kStride, lane);
    group = view.Group(token + 2 * kStride);
  }

  const size_t partial = static_cast<size_t>(item.first_split + work.y) * launch.num_kv_heads + kv_head;
#pragma unroll
  for (int block = 0; block < kHeadBlocks; ++block) {
    MergeWarps<D, kWarps>(shared, out[block], softmax[block], launch, partial, block);
  }
  MergeSplits<D>(launch, item, work.x, kv_head);
}

template <typename T, int D>
cudaError_t Launch(const DecodeLaunch& launch, cudaStream_t stream) {
  const dim3 grid(launch.num_work, launch.num_kv_heads);
  if (launch.group_size <= 8) {
    ExactKernel<T, D, 1><<<grid, 32 * kWarps, 0, stream>>>(launch);
  } else {
    ExactKernel<T, D, 2><<<grid, 32 * kWarps, 0, stream>>>(launch);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchExact(const DecodeLaunch& launch, cudaStream_t stream) {
  if (launch.head_dim != 128 || launch.group_size > kMaxGroup) return cudaErrorNotSupported;
  switch (launch.dtype) {
    case DType::kBFloat16:
      return Launch<__nv_bfloat16, 128>(launch, stream);
    case DType::kFloat16:
      return Launch<__half, 128>(launch, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace santa::cuda
