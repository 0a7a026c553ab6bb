// The weighted sum of the drawn rows, and the answer.
//
// Grid: (key/value head, work), as for the scores. A warp takes a block of 256 tokens at a time. Sums of a split's
// warps, then of an item's splits, are plain sums in a fixed order.
#include <cuda_fp16.h>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/split_merge.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/cuda/tile_draws.cuh"
#include "kernels/cuda/tile_gather.cuh"

namespace santa::cuda {
namespace {

// Slabs of a warp's ring: 8 KiB.
template <typename Kv, int D>
constexpr int kSlabs = 8192 / Slab<Kv, D>::kBytes > 1 ? 8192 / Slab<Kv, D>::kBytes : 1;

template <typename Kv, int D, int kHeads>
struct alignas(128) WarpMemory {
  uint8_t values[kSlabs<Kv, D> * Slab<Kv, D>::kBytes];
  float weight[kHeads][kTileTokens + 4];  // of the listed tokens; the pad keeps heads in different banks
  uint8_t list[kTileTokens];
};

// So many that a block fits the 99 KiB of every GPU's multiprocessor.
template <typename Kv, int D, int kHeads>
constexpr int kWarpsOf = 4 * sizeof(WarpMemory<Kv, D, kHeads>) <= 96 * 1024 ? 4 : 2;

template <typename Kv, int D, int kHeads>
union Shared {
  WarpMemory<Kv, D, kHeads> warp[kWarpsOf<Kv, D, kHeads>];
  float sums[kWarpsOf<Kv, D, kHeads>][8][D + 4];
};

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

// Starts copying what a block drew.
template <typename Kv, int D, int kHeads>
__device__ __forceinline__ void CopyDrawn(WarpMemory<Kv, D, kHeads>& memory, const StoredArrays& arrays, int first_head,
                                          int heads, int kv_head, int block, int listed, int lane) {
  if (lane < kTileTokens / 16) {
    CopyScratch16(SharedAddress(memory.list + 16 * lane), arrays.list(kv_head, block) + 16 * lane, 16 * lane < listed);
  }
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    // Zeros past the heads and the end of the list.
    const float* from = arrays.scores(first_head + min(head, heads - 1), block);
    for (int entry = 4 * lane; entry < kTileTokens && entry < listed; entry += 128) {
      CopyScratch16(SharedAddress(&memory.weight[head][entry]), from + entry, head < heads);
    }
  }
  CommitCopies();
}

// Adds a block's drawn rows to `out`. A weight that the products' type does not hold goes into them in parts.
template <typename Kv, int D, int kHeads, int kBlocks>
__device__ __forceinline__ void GatherBlock(OutputFragment<D> (&out)[kBlocks], WarpMemory<Kv, D, kHeads>& memory,
                                            const CacheView<Kv, D>& view, int listed, int tile_begin, int lane) {
  using T = Compute<Kv>;
  constexpr int kRing = kSlabs<Kv, D> * Slab<Kv, D>::kBytes;
  const int r = lane / 4, c = lane % 4;
  const uint32_t ring = SharedAddress(memory.values);
#pragma unroll
  for (int i = 0; i < kSlabs<Kv, D>; ++i) {
    CopyListed<Kv, D>(ring + i * Slab<Kv, D>::kBytes, view, memory.list, listed, i * kSlabRows, tile_begin, lane);
  }
  uint32_t slot = 0;
#pragma unroll 1
  for (int at = 0; at < listed; at += kSlabRows) {
    float weight[kBlocks][4];  // of entries 2c, 2c + 1, 2c + 8, 2c + 9
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int head = 8 * block + r;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int entry = at + 2 * c + (i & 1) + 4 * (i & 2);
        weight[block][i] = entry < listed && head < kHeads ? memory.weight[head][entry] : 0.0f;
      }
    }
    WaitCopies<kSlabs<Kv, D> - 1>();
    bool more;
    do {
      WeightFragment p[kBlocks];
      more = false;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float held[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          held[i] = TakeHeld<T>(weight[block][i]);
          more |= weight[block][i] > 0 && held[i] > 0;
        }
        p[block] = {Pack<T>(held[0], held[1]), Pack<T>(held[2], held[3])};
      }
      Accumulate<Kv, D, kBlocks>(out, ring + slot, p, lane);
    } while (__any_sync(~0u, more));
    __syncwarp();
    CopyListed<Kv, D>(ring + slot, view, memory.list, listed, at + kSlabs<Kv, D> * kSlabRows, tile_begin, lane);
    slot += Slab<Kv, D>::kBytes;
    if (slot == kRing) slot = 0;
  }
}

// Adds up the block's warps for heads 8 * block .. + 7: the answer, where the item has but one split, or a partial
// result. All threads call it.
template <typename Kv, int D, int kWarps>
__device__ void AddWarps(float (&sums)[kWarps][8][D + 4], const OutputFragment<D>& out, const StoredLaunch& launch,
                         const DeviceItem& item, const StoredArrays& arrays, int split, int kv_head, int block) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // the memory was something else
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      sums[warp][2 * (lane % 4) + h][OutputDim<Kv>(j, lane, 0)] = out.o[j][h];
      sums[warp][2 * (lane % 4) + h][OutputDim<Kv>(j, lane, 1)] = out.o[j][h + 2];
    }
  }
  __syncthreads();
  const int group_size = launch.decode.group_size;
  const int heads = min(8, group_size - 8 * block);
  for (int i = 4 * threadIdx.x; i < heads * D; i += 4 * 32 * kWarps) {
    const int head = 8 * block + i / D, dim = i % D;
    float4 o = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) o += *reinterpret_cast<const float4*>(&sums[w][i / D][dim]);
    if (item.num_splits == 1) {
      const AnswerWriter answer(launch.decode, item, kv_head);
      answer.WriteOutput<D>(head, dim, o, arrays.head_sum(answer.first_head + head)->divisor);
    } else {
      const size_t to =
          (static_cast<size_t>(item.first_split + split) * launch.decode.num_kv_heads + kv_head) * group_size + head;
      *reinterpret_cast<float4*>(launch.decode.partial_o + to * D + dim) = o;
    }
  }
}

// Counts the split in; the last one of the (item, head) adds them all up and writes the answer. All threads call it.
template <int D>
__device__ void AddSplits(const DecodeLaunch& launch, const DeviceItem& item, const StoredArrays& arrays,
                          int item_number, int kv_head) {
  if (item.num_splits == 1) return;
  __threadfence();
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    unsigned* ticket = launch.tickets + item_number * launch.num_kv_heads + kv_head;
    last = atomicAdd(ticket, 1) + 1 == item.num_splits;
    if (last) *ticket = 0;
  }
  if (!__syncthreads_or(last)) return;
  __threadfence();
  const AnswerWriter answer(launch, item, kv_head);
  const size_t stride = static_cast<size_t>(launch.num_kv_heads) * launch.group_size * (D / 4);
  const auto* partial = reinterpret_cast<const float4*>(launch.partial_o) + item.first_split * stride +
                        static_cast<size_t>(answer.first_head) * (D / 4);
  for (int quad = threadIdx.x; quad < launch.group_size * D / 4; quad += blockDim.x) {
    float4 o = {};
#pragma unroll 8
    for (int split = 0; split < item.num_splits; ++split) o += __ldcg(partial + split * stride + quad);
    const int head = 4 * quad / D;
    answer.WriteOutput<D>(head, 4 * quad % D, o, arrays.head_sum(answer.first_head + head)->divisor);
  }
}

template <typename Kv, int D, int kHeads>
__global__ void __launch_bounds__(32 * kWarpsOf<Kv, D, kHeads>, kHeads > 8 || D > 128 ? 2 : 4)
    GatherRowsKernel(const __grid_constant__ StoredLaunch launch) {
  constexpr int kBlocks = kHeads > 8 ? 2 : 1, kWarps = kWarpsOf<Kv, D, kHeads>;
  extern __shared__ __align__(1024) unsigned char bytes[];
  Shared<Kv, D, kHeads>& shared = *reinterpret_cast<Shared<Kv, D, kHeads>*>(bytes);
  LetLaterKernelStart();
  const WorkUnit work = launch.decode.work[blockIdx.y];
  const DeviceItem& item = launch.decode.items[work.item];
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group_size = launch.decode.group_size;
  WarpMemory<Kv, D, kHeads>& mine = shared.warp[warp];
  const CacheView<Kv, D> view(launch.decode, item, work, kv_head);
  const StoredView stored(launch, item, launch.stored[work.item]);
  WaitForEarlierKernel();  // what was read up to here came from the host

  OutputFragment<D> out[kBlocks] = {};
  const int* num_listed = stored.arrays.num_listed(kv_head);
#pragma unroll 1
  for (int tile = view.begin / kTileTokens + warp; tile * kTileTokens < view.end; tile += kWarps) {
    const int block = tile - stored.lines.first_block;
    const int listed = num_listed[block];
    if (listed == 0) continue;
    __syncwarp();
    CopyDrawn<Kv, D, kHeads>(mine, stored.arrays, kv_head * group_size, group_size, kv_head, block, listed, lane);
    WaitCopies<0>();
    GatherBlock<Kv, D, kHeads, kBlocks>(out, mine, view, listed, tile * kTileTokens, lane);
  }
  WaitCopies<0>();
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    AddWarps<Kv, D, kWarps>(shared.sums, out[block], launch, item, stored.arrays, work.split, kv_head, block);
  }
  AddSplits<D>(launch.decode, item, stored.arrays, work.item, kv_head);
}

struct Launcher {
  const StoredLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    if constexpr (kBlocks == 2) return RunHeads<Kv, D, 16>();
    return launch.decode.group_size <= 4 ? RunHeads<Kv, D, 4>() : RunHeads<Kv, D, 8>();
  }

  template <typename Kv, int D, int kHeads>
  cudaError_t RunHeads() const {
    return LaunchStored(GatherRowsKernel<Kv, D, kHeads>, launch,
                        dim3(launch.decode.num_kv_heads, launch.decode.num_work), 32 * kWarpsOf<Kv, D, kHeads>,
                        sizeof(Shared<Kv, D, kHeads>), stream);
  }
};

}  // namespace

cudaError_t LaunchGatherRows(const StoredLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
