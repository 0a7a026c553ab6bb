// The scores of every visible token, into scratch.
//
// Grid: (key/value head, work), as for S2ANTA_FLASH, whose warps score tiles of 256 tokens in the same way.
#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/cuda/tile_draws.cuh"
#include "kernels/cuda/tile_scores.cuh"
#include "kernels/cuda/tile_scratch.cuh"

namespace santa::cuda {
namespace {

// Slabs of a warp's ring: 8 KiB, four blocks to a multiprocessor.
template <typename Kv, int D>
constexpr int kKeySlabs = 8192 / Slab<Kv, D>::kBytes > 2 ? 8192 / Slab<Kv, D>::kBytes : 2;

template <typename Kv, int D, int kHeads>
struct alignas(128) WarpMemory {
  uint8_t keys[kKeySlabs<Kv, D> * Slab<Kv, D>::kBytes];
  TileMemory<kHeads> tile;
};

// So many that a block fits the 99 KiB of every GPU's multiprocessor.
template <typename Kv, int D, int kHeads>
constexpr int kWarpsOf = 4 * sizeof(WarpMemory<Kv, D, kHeads>) <= 96 * 1024 ? 4 : 2;

template <typename Kv, int D, int kHeads>
__global__ void __launch_bounds__(32 * kWarpsOf<Kv, D, kHeads>, kHeads <= 4 && D <= 128 ? 4 : 2)
    StoreScoresKernel(const __grid_constant__ StoredLaunch launch) {
  constexpr int kBlocks = kHeads > 8 ? 2 : 1, kWarps = kWarpsOf<Kv, D, kHeads>;
  extern __shared__ __align__(1024) unsigned char bytes[];
  LetLaterKernelStart();
  const WorkUnit work = launch.decode.work[blockIdx.y];
  const DeviceItem& item = launch.decode.items[work.item];
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  WarpMemory<Kv, D, kHeads>& mine = reinterpret_cast<WarpMemory<Kv, D, kHeads>*>(bytes)[warp];

  const CacheView<Kv, D> view(launch.decode, item, work, kv_head);
  int tile = view.begin / kTileTokens + warp;
  const int32_t first_page = view.PageOf(tile * kTileTokens);
  const StoredView stored(launch.decode, item, launch.stored[work.item]);
  WaitForEarlierKernel();  // what was read up to here came from the host
  KeyStream<Kv, D, kWarps, kKeySlabs<Kv, D>> keys(view, SharedAddress(mine.keys), tile, first_page, lane);
  QueryFragment<D> q[kBlocks];
  LoadQueries<Kv, D, kBlocks>(q, launch.decode, item, kv_head, lane);
  const Scorer scorer(item, kv_head);
  const int group_size = launch.decode.group_size, first_head = kv_head * group_size;
  const int head = lane / TileMemory<kHeads>::kLanes;
#pragma unroll 1
  for (; tile * kTileTokens < view.end; tile += kWarps) {
    const int block = tile - stored.lines.first_block;
    ScoreTile<Kv, D, kHeads, kBlocks>(mine.tile, keys, view, q, scorer, tile * kTileTokens, lane);
    WriteTile<kHeads>(stored.arrays.scores(first_head, block), stored.lines.pitch(), mine.tile, group_size, lane);
    __syncwarp();
    float max;
    uint64_t mass = WeighRun<kHeads, true>(mine.tile, max, lane);
#pragma unroll
    for (int step = 1; step < TileMemory<kHeads>::kLanes; step *= 2) mass += __shfl_xor_sync(~0u, mass, step);
    if (lane % TileMemory<kHeads>::kLanes == 0 && head < group_size) {
      stored.arrays.own_max(first_head + head)[block] = max;
      stored.arrays.own_mass(first_head + head)[block] = mass;
    }
    __syncwarp();
  }
}

struct Launcher {
  const StoredLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    return DispatchHeads<Kv, D, kBlocks>(launch.decode.group_size, *this);
  }

  template <typename Kv, int D, int kHeads>
  cudaError_t RunHeads() const {
    constexpr int kWarps = kWarpsOf<Kv, D, kHeads>;
    return LaunchOverlapping(StoreScoresKernel<Kv, D, kHeads>, launch,
                             dim3(launch.decode.num_kv_heads, launch.decode.num_work), 32 * kWarps,
                             kWarps * sizeof(WarpMemory<Kv, D, kHeads>), stream);
  }
};

}  // namespace

cudaError_t LaunchStoreScores(const StoredLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
