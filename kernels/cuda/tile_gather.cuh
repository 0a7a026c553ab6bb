// A warp's gather: the sum of the value rows that a tile drew, each times its draw count, for every head of the group;
// each row is read once for them all.
#ifndef SANTA_KERNELS_CUDA_TILE_GATHER_CUH_
#define SANTA_KERNELS_CUDA_TILE_GATHER_CUH_

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/tile_draws.cuh"

namespace santa::cuda {

// Starts copying the listed tokens' V rows from entry `at` on into a slab; zeros past the end of the list.
template <typename Kv, int D>
__device__ __forceinline__ void CopyListed(uint32_t slab, const CacheView<Kv, D>& view, const uint8_t* list, int listed,
                                           int at, int tile_begin, int lane) {
  using S = Slab<Kv, D>;
  if (at < listed) {
    const int entry = at + lane % kSlabRows;
    const int token = tile_begin + list[min(entry, listed - 1)];
    const auto mine = reinterpret_cast<uint64_t>(view.Row(view.PageOf(token), token) + view.value_offset);
#pragma unroll
    for (int i = 0; i < S::kCopies; ++i) {
      const int index = 32 * i + lane, row = index / S::kChunks, chunk = index % S::kChunks;
      const auto* from = reinterpret_cast<const uint8_t*>(__shfl_sync(~0u, mine, row)) + 16 * chunk;
      StreamAsync16(slab + S::At(row, chunk), from, at + row < listed);
    }
  }
  CommitCopies();
}

// Adds the drawn rows of the tile to `out`. ring: kSlabs slabs of the warp. All copies that the lane started before
// have arrived afterwards.
template <typename Kv, int D, int kHeads, int kBlocks, int kSlabs>
__device__ __forceinline__ void GatherTile(OutputFragment<D> (&out)[kBlocks], const TileMemory<kHeads>& memory,
                                           uint32_t ring, const CacheView<Kv, D>& view, int listed, int tile_begin,
                                           int lane) {
  const int r = lane / 4, c = lane % 4;
#pragma unroll
  for (int i = 0; i < kSlabs; ++i) {
    CopyListed<Kv, D>(ring + i * Slab<Kv, D>::kBytes, view, memory.list, listed, i * kSlabRows, tile_begin, lane);
  }
  uint32_t slot = 0;
#pragma unroll 1
  for (int at = 0; at < listed; at += kSlabRows) {
    int column[4];  // of the lane's tokens 2c, 2c + 1, 2c + 8, 2c + 9
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int entry = at + 2 * c + (i & 1) + 4 * (i & 2);
      column[i] = entry < listed ? TileMemory<kHeads>::Column(memory.list[entry]) : -1;
    }
    WeightFragment p[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int head = 8 * block + r;
      float count[4];  // to 256: exact in every format
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        count[i] = column[i] >= 0 && head < kHeads ? static_cast<float>(memory.value[head][column[i]]) : 0.0f;
      }
      p[block] = {Pack<Compute<Kv>>(count[0], count[1]), Pack<Compute<Kv>>(count[2], count[3])};
    }
    WaitCopies<kSlabs - 1>();
    Accumulate<Kv, D, kBlocks>(out, ring + slot, p, lane);
    __syncwarp();
    CopyListed<Kv, D>(ring + slot, view, memory.list, listed, at + kSlabs * kSlabRows, tile_begin, lane);
    slot += Slab<Kv, D>::kBytes;
    if (slot == kSlabs * Slab<Kv, D>::kBytes) slot = 0;
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_TILE_GATHER_CUH_
