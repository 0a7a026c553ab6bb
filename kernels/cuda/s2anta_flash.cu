// S2ANTA_FLASH (arXiv 2605.01910): one pass; each tile of 256 tokens has a fixed budget of draws, systematic on the
// tile's own softmax.
//
// Grid: (key/value head, work), as for EXACT. One warp does a whole tile by itself: the scores of its 256 tokens for
// every head of the group, the draws, and the gather of the union of the drawn value rows, each read once for the
// group. No barrier ties the warps together, and the K of a warp's next tile is on its way while it draws.
#include "kernels/cuda/s2anta_flash.h"

#include <algorithm>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/split_merge.cuh"
#include "kernels/cuda/tile_draws.cuh"
#include "kernels/cuda/tile_gather.cuh"
#include "kernels/cuda/tile_scores.cuh"
#include "kernels/sampling/tile_budgets.h"

namespace santa::cuda {
namespace {

// Slabs of a warp's rings: three blocks of 128-dimensional heads in groups of 4 fill a multiprocessor's shared memory.
// In the end the tile's memory holds the warp's result.
template <typename Kv, int D>
constexpr int kKeySlabs = std::max(2, 8192 / Slab<Kv, D>::kBytes);
template <typename Kv, int D>
constexpr int kValueSlabs = std::max(1, 4096 / Slab<Kv, D>::kBytes);

// Heads that are merged at a time.
template <int kHeads>
constexpr int kRows = kHeads < 8 ? kHeads : 8;

template <typename Kv, int D, int kHeads>
struct alignas(16) WarpMemory {
  uint8_t keys[kKeySlabs<Kv, D> * Slab<Kv, D>::kBytes];
  uint8_t values[kValueSlabs<Kv, D> * Slab<Kv, D>::kBytes];
  TileMemory<kHeads> tile;
  static_assert(sizeof(WarpResult<D, kRows<kHeads>>) <= sizeof(TileMemory<kHeads>));
};

// The head that a lane's sums are of, or the last one.
template <int kHeads>
__device__ __forceinline__ int HeadOf(int block, int h, int lane) {
  return min(8 * block + 2 * (lane % 4) + h, kHeads - 1);
}

// What a warp has summed: draw counts times value rows, in units that follow the tiles' weights.
template <int D, int kBlocks>
struct TileSums {
  // A tile whose weight is below this part of what was summed before it is taken for that part: in fp32 it makes no
  // difference, and no unit under- or overflows.
  static constexpr float kLeastUnit = 0x1p-60f;

  OutputFragment<D> out[kBlocks] = {};
  RunningSoftmax softmax[kBlocks];
  float unit[kBlocks][2];

  // told: whether it will be known how far off they are.
  __device__ explicit TileSums(bool told) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) softmax[block].squared_error[h] = told ? 0 : NAN;
    }
  }

  // Makes room for a tile's counts: from here on one draw of a head counts mass / budget, in weights against `max`.
  template <int kHeads>
  __device__ __forceinline__ void Open(const TileMemory<kHeads>& memory, uint32_t budget, int lane) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head = HeadOf<kHeads>(block, h, lane);
        float& max = softmax[block].max[h];
        const float raised = fmaxf(max, memory.max[head]);
        const float keep = Rescale(max, raised), mass = Exp2(memory.max[head] - raised) * memory.mass[head];
        const float old_unit = keep == 0 ? 0.0f : keep * unit[block][h];
        const float new_unit = fmaxf(mass / static_cast<float>(budget), old_unit * kLeastUnit);
        const float factor = old_unit / new_unit;
        max = raised;
        unit[block][h] = new_unit;
        softmax[block].squared_error[h] *= factor * factor;
        softmax[block].sum[h] = softmax[block].sum[h] * keep + (lane / 4 == 0 ? mass : 0.0f);
#pragma unroll
        for (int j = 0; j < D / 16; ++j) {
          out[block].o[j][h] *= factor;
          out[block].o[j][h + 2] *= factor;
        }
      }
    }
  }

  // Adds the squared error of the tile whose counts were added last. errors: the lane's share of t and pairs, of its
  // head in the tile, lane / kLanes. A tile in which one row alone is left to chance is a tile in which little is.
  template <typename Kv, int kHeads>
  __device__ __forceinline__ void AddError(const PairSums<Kv, D, kHeads>& pairs, sampling::StepSums errors, int lane) {
    constexpr int kLanes = TileMemory<kHeads>::kLanes;
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      errors.t += __shfl_xor_sync(~0u, errors.t, step);
      errors.pairs += __shfl_xor_sync(~0u, errors.pairs, step);
    }
    const float factor = errors.pairs > 0 ? errors.t / (2 * errors.pairs) : 0.0f;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float of_head = __shfl_sync(~0u, factor, HeadOf<kHeads>(block, h, lane) * kLanes);
        softmax[block].squared_error[h] = fmaf(of_head, pairs.Square(out, block, h), softmax[block].squared_error[h]);
      }
    }
  }

  // Brings the sums to weights against softmax.max.
  __device__ __forceinline__ void Close() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool any = softmax[block].max[i & 1] != kNegativeInfinity;
          out[block].o[j][i] = any ? out[block].o[j][i] * unit[block][i & 1] : 0.0f;
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const bool any = softmax[block].max[h] != kNegativeInfinity;
        softmax[block].squared_error[h] =
            any ? softmax[block].squared_error[h] * unit[block][h] * unit[block][h] : 0.0f;
      }
    }
  }
};

// Two where four would want more than the 99 KiB that a block has on an Ada GPU.
template <typename Kv, int D, int kHeads>
constexpr int kWarpsOf = 4 * sizeof(WarpMemory<Kv, D, kHeads>) <= 96 * 1024 ? 4 : 2;

template <typename Kv, int D, int kHeads>
__global__ void __launch_bounds__(32 * kWarpsOf<Kv, D, kHeads>, kHeads == 4 && D <= 128 ? 3 : 2)
    S2antaFlashKernel(const __grid_constant__ DecodeLaunch launch) {
  constexpr int kBlocks = kHeads > 8 ? 2 : 1;
  constexpr int kWarps = kWarpsOf<Kv, D, kHeads>;
  using Memory = WarpMemory<Kv, D, kHeads>;
  extern __shared__ __align__(1024) unsigned char bytes[];
  const WorkUnit work = launch.work[blockIdx.y];
  const DeviceItem& item = launch.items[work.item];
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Memory& mine = reinterpret_cast<Memory*>(bytes)[warp];

  const CacheView<Kv, D> view(launch, item, work, kv_head);
  int tile = view.begin / kTileTokens + warp;
  const int32_t first_page = view.PageOf(tile * kTileTokens);
  WaitForEarlierKernel();  // what was read up to here came from the host
  KeyStream<Kv, D, kWarps, kKeySlabs<Kv, D>> keys(view, SharedAddress(mine.keys), tile, first_page, lane);
  QueryFragment<D> q[kBlocks];
  LoadQueries<Kv, D, kBlocks>(q, launch, item, kv_head, lane);
  const Scorer scorer(item, kv_head);
  const sampling::Tiling tiling = sampling::MakeTiling(item.begin, item.end, item.sample_count);
  const int head = lane / TileMemory<kHeads>::kLanes;
  TileDraws draws{.stream = sampling::MakeRandomStream(item.seed, item.sampling_key, item.layer_index, item.position,
                                                       kv_head * launch.group_size + head)};

  // Too few draws tell nothing.
  const bool told = item.sample_count / tiling.count >= sampling::kLeastToldBudget;
  const bool tells_error = told && item.relative_standard_error != nullptr;
  TileSums<D, kBlocks> sums(told);
  constexpr uint32_t kCountMask = 511;  // a budget is at most 256
  unsigned rows_read = 0;
#pragma unroll 1
  for (; tile * kTileTokens < view.end; tile += kWarps) {
    const int tile_begin = tile * kTileTokens;
    draws.tile = tile;
    draws.budget = sampling::FlashBudget(tiling, tile - tiling.first, item.sample_count);
    ScoreTile<Kv, D, kHeads, kBlocks>(mine.tile, keys, view, q, scorer, tile_begin, lane);
    const DrawnMask<kHeads> drawn =
        DrawTile<kHeads>(mine.tile, draws, head < launch.group_size, tells_error ? ~kCountMask : 0, lane);
    const int listed = ListDrawn<kHeads>(mine.tile, drawn, lane);
    PairSums<Kv, D, kHeads> pairs;
    sampling::StepSums errors;
    if (tells_error) {
      const float draws_per_mass = static_cast<float>(draws.budget) / (mine.tile.mass[head] * sampling::kMassOne);
      // The values' ring is free.
      PairRows<kHeads>(mine.tile, drawn, mine.values, MassChance{kCountMask, draws_per_mass}, errors, lane);
      pairs.Start(sums.out, draws.stream.key0 + tile, lane);
    }
    rows_read += listed;
    sums.Open(mine.tile, draws.budget, lane);
    constexpr int kMore = kKeySlabs<Kv, D> + kValueSlabs<Kv, D>;
    const bool all_scored = keys.exhausted();  // the keys' ring is free, which the values' lies behind
    const SlabRing<kValueSlabs<Kv, D>, kMore> ring{SharedAddress(all_scored ? mine.keys : mine.values), all_scored};
    // Counts are up to the budget: every format holds them.
    GatherTile<Kv, D, kHeads, true>(sums.out, pairs, tells_error, mine.tile, listed, ring, view, tile_begin, lane);
    if (tells_error) sums.AddError(pairs, errors, lane);
    __syncwarp();
  }
  if (item.rows_read && lane == 0 && rows_read) atomicAdd(item.rows_read, static_cast<unsigned long long>(rows_read));

  sums.Close();
  WaitCopies<0>();
  LetLaterKernelStart();
  SplitPlace place(launch, item, work.item, kv_head);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    MergeWarps<Kv, D, kWarps, kRows<kHeads>, true>(bytes + offsetof(Memory, tile), sizeof(Memory), sums.out[block],
                                                   sums.softmax[block], launch, item, work.split, kv_head, block);
  }
  MergeSplits<D, kWarps, kWarps* static_cast<int>(sizeof(Memory)), true>(bytes, launch, item, kv_head, place);
}

struct Launcher {
  const DecodeLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    return DispatchHeads<Kv, D, kBlocks>(launch.group_size, *this);
  }

  template <typename Kv, int D, int kHeads>
  cudaError_t RunHeads() const {
    constexpr int kWarps = kWarpsOf<Kv, D, kHeads>;
    return LaunchDecode(S2antaFlashKernel<Kv, D, kHeads>, launch, 32 * kWarps,
                        kWarps * sizeof(WarpMemory<Kv, D, kHeads>), stream);
  }
};

}  // namespace

cudaError_t LaunchS2antaFlash(const DecodeLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch, Launcher{launch, stream});
}

}  // namespace santa::cuda
