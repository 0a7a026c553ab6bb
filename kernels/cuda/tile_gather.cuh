// A warp's gather: the weighted sum of the value rows that a tile drew, for every head of the group; each row is read
// once for them all.
#ifndef SANTA_KERNELS_CUDA_TILE_GATHER_CUH_
#define SANTA_KERNELS_CUDA_TILE_GATHER_CUH_

#include <cuda_fp16.h>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/tile_draws.cuh"
#include "kernels/cuda/tile_errors.cuh"

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

// Takes from a weight w >= 0 what T holds of it, towards 0. Does so again and again, and nothing is left, but for what
// underflows fp16.
template <typename T>
__device__ __forceinline__ float TakeHeld(float& weight);
template <>
__device__ __forceinline__ float TakeHeld<__nv_bfloat16>(float& weight) {
  const float held = __uint_as_float(__float_as_uint(weight) & 0xffff0000u);
  weight -= held;
  return held;
}
template <>
__device__ __forceinline__ float TakeHeld<__half>(float& weight) {
  const float held = __half2float(__float2half_rz(fminf(weight, 65504.0f)));
  weight -= held;
  return held;
}

// Slabs of a warp's, one after the other, for rows that are on their way: kFew, or kMany where there is room for them.
template <int kFew, int kMany = kFew>
struct SlabRing {
  uint32_t address;
  bool has_many = false;

  __device__ __forceinline__ int slabs() const { return has_many ? kMany : kFew; }
  // Until all but the last slabs() - 1 copies have arrived.
  __device__ __forceinline__ void Wait() const {
    if (kFew != kMany && has_many) {
      WaitCopies<kMany - 1>();
    } else {
      WaitCopies<kFew - 1>();
    }
  }
};

// Adds the listed rows of the tile to `out`, each times weight(column, its entry in the list): of a head, or where
// there are 4 (PairSums::kInOutputs) of what else the products have room for. kHeld: the products' type holds every
// weight; else one goes into them in parts. beside(slab, at): what else is done with a slab, that of the entries from
// `at` on. All copies that the lane started before have arrived afterwards.
template <typename Kv, int D, int kHeads, bool kHeld, int kBlocks, typename Weight, typename Beside, typename Ring>
__device__ __forceinline__ void GatherListed(OutputFragment<D> (&out)[kBlocks], const uint8_t* list, int listed,
                                             const Weight& weight, const Beside& beside, const Ring& ring,
                                             const CacheView<Kv, D>& view, int tile_begin, int lane) {
  using T = Compute<Kv>;
  constexpr int kColumns = PairSums<Kv, D, kHeads>::kInOutputs ? 2 * kHeads : kHeads;
  const int r = lane / 4, c = lane % 4;
  const int slabs = ring.slabs();
#pragma unroll 1
  for (int i = 0; i < slabs; ++i) {
    CopyListed<Kv, D>(ring.address + i * Slab<Kv, D>::kBytes, view, list, listed, i * kSlabRows, tile_begin, lane);
  }
  uint32_t slot = 0;
#pragma unroll 1
  for (int at = 0; at < listed; at += kSlabRows) {
    float left[kBlocks][4];  // of the weights of entries 2c, 2c + 1, 2c + 8, 2c + 9
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int entry = at + 2 * c + (i & 1) + 4 * (i & 2);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int head = 8 * block + r;
        left[block][i] = entry < listed && head < kColumns ? weight(head, entry) : 0.0f;
      }
    }
    ring.Wait();
    bool more;
    do {
      WeightFragment p[kBlocks];
      more = false;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float held[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          held[i] = kHeld ? left[block][i] : TakeHeld<T>(left[block][i]);
          more |= !kHeld && left[block][i] > 0 && held[i] > 0;
        }
        p[block] = {Pack<T>(held[0], held[1]), Pack<T>(held[2], held[3])};
      }
      Accumulate<Kv, D, kBlocks>(out, ring.address + slot, p, lane);
    } while (!kHeld && __any_sync(~0u, more));
    beside(ring.address + slot, at);
    __syncwarp();
    CopyListed<Kv, D>(ring.address + slot, view, list, listed, at + slabs * kSlabRows, tile_begin, lane);
    slot += Slab<Kv, D>::kBytes;
    if (slot == slabs * Slab<Kv, D>::kBytes) slot = 0;
  }
}

// The weight of a row in a column of GatherListed: draws(value) of a head; of the columns past them, where errors are
// told, its factor in u. value(head, entry): as of PairRows.
template <int kHeads, typename Value, typename Draws>
__device__ __forceinline__ float ColumnWeight(int column, int entry, bool tells_errors, const Value& value,
                                              const Draws& draws) {
  if (column < kHeads) return draws(value(column, entry));
  return tells_errors ? PairFactorOf(value(column - kHeads, entry)) : 0.0f;
}

// Likewise, the weights being the tile's draw counts; tells_errors: and to `pairs` each times its PairFactorOf.
template <typename Kv, int D, int kHeads, bool kHeld, int kBlocks, typename Ring>
__device__ __forceinline__ void GatherTile(OutputFragment<D> (&out)[kBlocks], PairSums<Kv, D, kHeads>& pairs,
                                           bool tells_errors, const TileMemory<kHeads>& memory, int listed,
                                           const Ring& ring, const CacheView<Kv, D>& view, int tile_begin, int lane) {
  const auto value = [&memory](int head, int entry) {
    return memory.value[head][TileMemory<kHeads>::Column(memory.list[entry])];
  };
  const auto count = [&](int column, int entry) {
    return ColumnWeight<kHeads>(column, entry, tells_errors, value,
                                [](uint32_t value) { return static_cast<float>(DrawsOf(value)); });
  };
  const auto beside = [&](uint32_t slab, int at) {
    if (tells_errors) pairs.Add(slab, value, listed, at, lane);
  };
  GatherListed<Kv, D, kHeads, kHeld>(out, memory.list, listed, count, beside, ring, view, tile_begin, lane);
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_TILE_GATHER_CUH_
