// Where a block's tokens lie in the paged cache, and a warp's loads from it.
#ifndef SANTA_KERNELS_CUDA_CACHE_VIEW_CUH_
#define SANTA_KERNELS_CUDA_CACHE_VIEW_CUH_

#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/warp_attention.cuh"
#include "kernels/sampling/score.h"

namespace santa::cuda {

// The visible tokens [begin, end) of one split, for one key/value head.
template <int D>
struct CacheView {
  const uint16_t* k;  // the head's K in page 0
  const int32_t* page_table;
  size_t page_stride, value_offset;  // elements
  int page_shift;
  int begin, end;

  __device__ CacheView(const DecodeLaunch& launch, const DeviceItem& item, int split, int kv_head)
      : k(static_cast<const uint16_t*>(item.layer) + (static_cast<size_t>(kv_head) << launch.page_shift) * D),
        page_table(item.page_table),
        page_stride((static_cast<size_t>(2 * launch.num_kv_heads) << launch.page_shift) * D),
        value_offset(page_stride / 2),
        page_shift(launch.page_shift) {
    const int first = (item.begin / item.split_tokens + split) * item.split_tokens;
    begin = max(item.begin, first);
    end = min(item.end, first + item.split_tokens);
  }

  __device__ bool visible(int token) const { return token >= begin && token < end; }

  // The K row of a visible token.
  __device__ const uint16_t* Row(int token) const {
    return k + __ldg(page_table + (token >> page_shift)) * page_stride +
           static_cast<size_t>(token & ((1 << page_shift) - 1)) * D;
  }
  // The K row of the first of 16 tokens that share a page; any row where none of them is visible.
  __device__ const uint16_t* Group(int token) const {
    const int known = min(max(token, begin), end - 1);
    return k + __ldg(page_table + (known >> page_shift)) * page_stride +
           static_cast<size_t>(token & ((1 << page_shift) - 1)) * D;
  }
};

// K rows of the 16 tokens from `token` on; zeros for invisible ones.
template <int D>
__device__ __forceinline__ void LoadKeys(RowFragment<D> (&k)[2], const CacheView<D>& view, const uint16_t* group,
                                         int token, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    LoadRow<D>(k[half], view.visible(token + row) ? group + row * D : nullptr, lane);
  }
}

template <int D>
__device__ __forceinline__ void LoadValues(ValueFragment<D>& v, const CacheView<D>& view, const uint16_t* group,
                                           int token, int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = ValueToken(lane, i);
    LoadValueRow<D>(v, i, view.visible(token + row) ? group + view.value_offset + row * D : nullptr, lane);
  }
}

// Queries of the 8 heads from 8 * block on; zeros past the group.
template <int D>
__device__ __forceinline__ void LoadQueries(RowFragment<D>& q, const DecodeLaunch& launch, const DeviceItem& item,
                                            int kv_head, int block, int lane) {
  const int head = 8 * block + lane / 4;
  LoadRow<D>(q,
             head < launch.group_size ? static_cast<const uint16_t*>(item.q) + (kv_head * launch.group_size + head) * D
                                      : nullptr,
             lane);
}

// A dot product as a score in units of log2.
__device__ __forceinline__ float Log2Score(float dot, const DeviceItem& item) {
  return sampling::Score(dot, item.scale, item.soft_cap) * kLog2E;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_CACHE_VIEW_CUH_
