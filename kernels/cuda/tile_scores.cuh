// A warp's scores of whole tiles of 256 tokens: K streams through a ring of slabs that asynchronous copies fill ahead
// of the products, across the tiles that the warp takes.
#ifndef SANTA_KERNELS_CUDA_TILE_SCORES_CUH_
#define SANTA_KERNELS_CUDA_TILE_SCORES_CUH_

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/split_merge.cuh"
#include "kernels/cuda/tile_draws.cuh"

namespace santa::cuda {

// The K of every kWarps-th tile of the view, slab after slab.
template <typename Kv, int D, int kWarps, int kSlabs>
class KeyStream {
 public:
  static constexpr int kBytes = kSlabs * Slab<Kv, D>::kBytes;

  // tile: the warp's first, absolute; page: that of its first token.
  __device__ KeyStream(const CacheView<Kv, D>& view, uint32_t ring, int tile, int32_t page, int lane)
      : view_(view), ring_(ring), lane_(lane), token_(tile * kTileTokens), page_(page) {
#pragma unroll
    for (int i = 0; i < kSlabs; ++i) Load();
  }

  // The next slab, arrived. Other copies may have been started meanwhile if they were waited for too.
  __device__ __forceinline__ uint32_t Wait() {
    WaitCopies<kSlabs - 1>();
    return ring_ + slot_;
  }
  // Whether all has been loaded.
  __device__ __forceinline__ bool exhausted() const { return token_ >= view_.end; }
  // Gives it back once every lane has read it, and starts the copy of one further on.
  __device__ __forceinline__ void Release() {
    __syncwarp();
    Load();
  }

 private:
  __device__ __forceinline__ void Load() {
    if (token_ < view_.end) {
      CopySlab(ring_ + slot_, view_, view_.Row(page_, token_), token_, lane_);
      token_ += kSlabRows;
      if (token_ % kTileTokens == 0) token_ += (kWarps - 1) * kTileTokens;
      page_ = view_.PageOf(token_);
    }
    CommitCopies();
    slot_ += Slab<Kv, D>::kBytes;
    if (slot_ == kBytes) slot_ = 0;
  }

  const CacheView<Kv, D>& view_;
  const uint32_t ring_;
  const int lane_;
  int token_;  // of the next slab to load
  int32_t page_;
  uint32_t slot_ = 0;
};

// Scores of the tile's tokens in units of log2; -inf where a token is invisible.
template <typename Kv, int D, int kHeads, int kBlocks, typename Stream>
__device__ __forceinline__ void ScoreTile(TileMemory<kHeads>& memory, Stream& keys, const CacheView<Kv, D>& view,
                                          const QueryFragment<D> (&q)[kBlocks], const Scorer& scorer, int tile_begin,
                                          int lane) {
#pragma unroll 1
  for (int offset = 0; offset < kTileTokens && tile_begin + offset < view.end; offset += kSlabRows) {
    float s[kBlocks][4];
    Scores<Kv, D, kBlocks>(s, keys.Wait(), q, lane);
    keys.Release();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int head = 8 * block + 2 * (lane % 4) + (i & 1), token = offset + lane / 4 + 4 * (i & 2);
        if (head < kHeads) {
          memory.value[head][TileMemory<kHeads>::Column(token)] =
              __float_as_uint(view.visible(tile_begin + token) ? scorer(s[block][i]) : kNegativeInfinity);
        }
      }
    }
  }
  // Past the last slab.
  const int end = (min(view.end - tile_begin, kTileTokens) + kSlabRows - 1) / kSlabRows * kSlabRows;
  for (int i = end * kHeads + lane; i < kTileTokens * kHeads; i += 32) {
    memory.value[i % kHeads][TileMemory<kHeads>::Column(i / kHeads)] = __float_as_uint(kNegativeInfinity);
  }
  __syncwarp();
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_TILE_SCORES_CUH_
