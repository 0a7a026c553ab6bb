// Where a block's tokens lie in the paged cache.
#ifndef SANTA_KERNELS_CUDA_CACHE_VIEW_CUH_
#define SANTA_KERNELS_CUDA_CACHE_VIEW_CUH_

#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/slab.cuh"
#include "kernels/sampling/score.h"

namespace santa::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// The visible tokens [begin, end) of one split, for one key/value head.
template <typename Kv, int D>
struct CacheView {
  const uint8_t* k;  // the head's K in page 0
  const int32_t* page_table;
  size_t page_bytes, value_offset;
  int page_shift;
  int begin, end;

  __device__ CacheView(const DecodeLaunch& launch, const DeviceItem& item, const WorkUnit& work, int kv_head)
      : k(static_cast<const uint8_t*>(item.layer) + (static_cast<size_t>(kv_head) << launch.page_shift) * kRowBytes),
        page_table(item.page_table),
        page_bytes((static_cast<size_t>(2 * launch.num_kv_heads) << launch.page_shift) * kRowBytes),
        value_offset(page_bytes / 2),
        page_shift(launch.page_shift),
        begin(work.begin),
        end(work.end) {}

  __device__ bool visible(int token) const { return token >= begin && token < end; }

  // The page of a slab's tokens, which share one; that of a visible token where the slab has none.
  __device__ int32_t PageOf(int token) const {
    return __ldg(page_table + (min(max(token, begin), end - 1) >> page_shift));
  }

  // The K row of a token that lies in `page`.
  __device__ const uint8_t* Row(int32_t page, int token) const {
    return k + page * page_bytes + static_cast<size_t>(token & ((1 << page_shift) - 1)) * kRowBytes;
  }

 private:
  static constexpr int kRowBytes = D * sizeof(Kv);
};

// Starts copying the slab of the 16 tokens from `token` on, whose K (or V) rows begin at `rows`; zeros for invisible
// ones.
template <typename Kv, int D>
__device__ __forceinline__ void CopySlab(uint32_t slab, const CacheView<Kv, D>& view, const uint8_t* rows, int token,
                                         int lane) {
  CopyRows<Kv, D>(slab, rows, view.begin - token, view.end - token, lane);
}

// Queries of the group's heads; zeros past it.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void LoadQueries(QueryFragment<D> (&q)[kBlocks], const DecodeLaunch& launch,
                                            const DeviceItem& item, int kv_head, int lane) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int head = 8 * block + lane / 4;
    const auto* row = static_cast<const uint16_t*>(item.q) + (kv_head * launch.group_size + head) * D;
    LoadQuery<Kv, D>(q[block], head < launch.group_size ? row : nullptr, lane);
  }
}

// Holds an exact dot product, in units of a sketch's, to what a score that may be a sketch's has room for. NaN stays.
__device__ __forceinline__ float Hold(float dot) {
  constexpr float kMost = 0x1p36f;  // which no sketch's comes near
  if (dot > kMost) dot = kMost;
  if (dot < -kMost) dot = -kMost;
  return dot;
}

// From dot products to scores in units of log2: kernels/sampling/score.h, with the factor taken in beforehand.
struct Scorer {
  float scale, soft_cap;

  Scorer() = default;
  __device__ Scorer(const DeviceItem& item, int kv_head)
      : scale(item.scale * kLog2E * (item.kv_scales ? item.kv_scales[kv_head] : 1.0f)),
        soft_cap(item.soft_cap * kLog2E) {}

  // NaN stays NaN, so that a cache row read by mistake shows; anything else is finite.
  __device__ __forceinline__ float operator()(float dot) const {
    float score = dot * scale;
    if (soft_cap > 0) score = soft_cap * tanhf(score / soft_cap);
    if (score > sampling::kMaxScore) score = sampling::kMaxScore;
    if (score < -sampling::kMaxScore) score = -sampling::kMaxScore;
    return score;
  }
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_CACHE_VIEW_CUH_
