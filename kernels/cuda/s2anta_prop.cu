// S2ANTA_PROP (arXiv 2605.01910) with systematic budgets on tiles of 256 tokens: two passes over an item in one launch,
// in which the passes of different items overlap. Scoring waits for memory, drawing and gathering for latency and
// arithmetic: a multiprocessor does both at once.
//
// Grid: as many blocks as run at once. Each takes one unit of work after another: a split of a key/value head is
// scored, and `lead` units later it is gathered, in turns with the scoring of those that follow.
//
//     score    masses of the split's tokens to scratch, each tile's against its own largest score. The last split of
//              an (item, key/value head) to be scored sums up the softmax of each query head and shares its S draws
//              among the tiles.
//     gather   the draws of each tile that has any, systematic on its own masses, and the sum of the union of the drawn
//              value rows, each read once for the group. The last split adds up all of them.
//
// A gather waits until its (item, head) has been scored, all of which comes before it in the order of the units. They
// are taken in this order, each block does its own in this order, and scoring waits for nothing: whichever unit is the
// first that is not done can be done.
#include "kernels/cuda/s2anta_prop.h"

#include <algorithm>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/line_draws.cuh"
#include "kernels/cuda/share_draws.cuh"
#include "kernels/cuda/split_sums.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/cuda/tile_gather.cuh"
#include "kernels/cuda/tile_scores.cuh"
#include "kernels/cuda/tile_scratch.cuh"

namespace santa::cuda {
namespace {

// Slabs of a warp's ring, of K or of V: 8 KiB.
template <typename Kv, int D>
constexpr int kSlabs = std::max(2, 8192 / Slab<Kv, D>::kBytes);

template <typename Kv, int D, int kHeads>
struct alignas(128) WarpMemory {
  uint8_t ring[kSlabs<Kv, D> * Slab<Kv, D>::kBytes];
  TileMemory<kHeads> tile;
};

// So many that a block fits the 99 KiB of every GPU's multiprocessor.
template <typename Kv, int D, int kHeads>
constexpr int kWarpsOf = 4 * sizeof(WarpMemory<Kv, D, kHeads>) <= 96 * 1024 ? 4 : 2;

template <typename Kv, int D, int kHeads>
union Shared {
  WarpMemory<Kv, D, kHeads> warp[kWarpsOf<Kv, D, kHeads>];
  float sums[kWarpsOf<Kv, D, kHeads>][8][D + 4];
  float answers[kHeads * D];
};

struct PropUnits {
  PropLaunch launch;
  int lead;  // units that are scored before the first is gathered: all of them, or at least an item's
};

// What a block does next.
struct alignas(16) Unit {
  WorkUnit work;
  int kv_head;
  bool any, gather;
};

// Takes units into shared memory, in steps with time for the memory to answer between them. One thread calls it.
class UnitTaker {
 public:
  __device__ UnitTaker(const PropUnits& units, Unit& next) : units_(units), next_(next) {}

  __device__ __forceinline__ void Ask() { number_ = static_cast<int>(atomicAdd(units_.launch.decode.next_unit, 1)); }
  __device__ __forceinline__ void Look() {
    const DecodeLaunch& launch = units_.launch.decode;
    const int count = launch.num_work * launch.num_kv_heads;
    const int after = number_ - units_.lead, in_turns = 2 * (count - units_.lead);
    // Every block takes one number past the last unit; after all of these the next launch counts anew.
    if (number_ + 1 == 2 * count + static_cast<int>(gridDim.x)) *launch.next_unit = 0;
    next_.any = number_ < 2 * count;
    if (!next_.any) return;
    int index = number_;
    next_.gather = after >= in_turns || (after >= 0 && after % 2 == 0);
    if (after >= in_turns) {
      index = number_ - count;
    } else if (after >= 0) {
      index = next_.gather ? after / 2 : units_.lead + after / 2;
    }
    next_.kv_head = index % launch.num_kv_heads;
    CopyAsync16(SharedAddress(&next_.work), launch.work + index / launch.num_kv_heads);
  }
  __device__ __forceinline__ void Wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

 private:
  const PropUnits& units_;
  Unit& next_;
  int number_;
};

// What an (item, key/value head) has behind it: [0, splits): so many are scored; splits + 1: its draws are shared among
// the tiles; then the gathers are counted.
__device__ __forceinline__ unsigned* TicketOf(const DecodeLaunch& launch, const Unit& unit) {
  return launch.tickets + 2 * (unit.work.item * launch.num_kv_heads + unit.kv_head);
}

// One query head's softmax, and each tile's draws. A warp calls it. Not inlined: it is long, and the same for every
// kernel.
__device__ __noinline__ void ShareHead(const PropLaunch& launch, int number, int head) {
  const DeviceItem& item = launch.decode.items[number];
  const StoredView stored(launch.decode, item, launch.stored[number]);
  WarpTeam team;
  const int tiles = stored.lines.num_blocks;
  const float* own_max = stored.arrays.own_max(head);
  const uint64_t* own_mass = stored.arrays.own_mass(head);
  const Shares shares = {.num_lines = tiles, .draws = item.sample_count, .count = stored.arrays.count(head)};
  float max = kNegativeInfinity;
#pragma unroll 4
  for (int tile = team.thread(); tile < tiles; tile += 32) max = Larger<true>(max, __ldcg(own_max + tile));
  max = team.Reduce(max, Larger<true>);
  float sum = 0;
#pragma unroll 4
  for (int tile = team.thread(); tile < tiles; tile += 32) {
    sum += Rescale(__ldcg(own_max + tile), max) * (static_cast<float>(__ldcg(own_mass + tile)) / sampling::kMassOne);
  }
  sum = team.Reduce(sum, [](float a, float b) { return a + b; });
  if (team.thread() == 0) WriteHeadSum(stored.arrays.head_sum(head), item, head, max, sum);
  if (max != max) {  // so is the sum, and whatever is divided by it
    for (int tile = team.thread(); tile < tiles; tile += 32) shares.count[tile] = 0;
    return;
  }
  const sampling::RandomStream stream =
      sampling::MakeRandomStream(item.seed, item.sampling_key, item.layer_index, item.position, head);
  const auto weight = [&](int tile) {
    return sampling::TileMass(__ldcg(own_mass + tile), Rescale(__ldcg(own_max + tile), max));
  };
  ShareSystematically(team, shares, stream, weight);
}

// Counts a split as scored; the last one of its (item, head) shares the draws. All threads call it.
template <int kWarps>
__device__ __forceinline__ void CountScored(const PropLaunch& launch, const Unit& unit, const DeviceItem& item) {
  __threadfence();
  __syncthreads();
  bool last = false;
  unsigned* ticket = TicketOf(launch.decode, unit);
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1) + 1 == item.num_splits;
  if (!__syncthreads_or(last)) return;
  __threadfence();
  const int group_size = launch.decode.group_size;
#pragma unroll 1
  for (int head = threadIdx.x / 32; head < group_size; head += kWarps) {
    ShareHead(launch, unit.work.item, unit.kv_head * group_size + head);
    __syncwarp();  // its lanes come back one after another, and barriers count warps
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) StoreRelease(ticket, item.num_splits + 1);
}

template <typename Kv, int D, int kHeads>
__device__ __forceinline__ void ScoreSplit(const PropLaunch& launch, const Unit& unit, UnitTaker& taker,
                                           Shared<Kv, D, kHeads>& shared) {
  constexpr int kBlocks = kHeads > 8 ? 2 : 1, kWarps = kWarpsOf<Kv, D, kHeads>, kLanes = TileMemory<kHeads>::kLanes;
  const DeviceItem& item = launch.decode.items[unit.work.item];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  WarpMemory<Kv, D, kHeads>& mine = shared.warp[warp];
  const CacheView<Kv, D> view(launch.decode, item, unit.work, unit.kv_head);
  int tile = view.begin / kTileTokens + warp;
  KeyStream<Kv, D, kWarps, kSlabs<Kv, D>> keys(view, SharedAddress(mine.ring), tile, view.PageOf(tile * kTileTokens),
                                               lane);
  QueryFragment<D> q[kBlocks];
  LoadQueries<Kv, D, kBlocks>(q, launch.decode, item, unit.kv_head, lane);
  const Scorer scorer(item, unit.kv_head);
  const StoredView stored(launch.decode, item, launch.stored[unit.work.item]);
  const int group_size = launch.decode.group_size, first_head = unit.kv_head * group_size;
#pragma unroll 1
  for (; tile * kTileTokens < view.end; tile += kWarps) {
    const int block = tile - stored.lines.first_block;
    ScoreTile<Kv, D, kHeads, kBlocks>(mine.tile, keys, view, q, scorer, tile * kTileTokens, lane);
    float max;
    uint64_t mass = WeighRun<kHeads, true>(mine.tile, max, lane);
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) mass += __shfl_xor_sync(~0u, mass, step);
    if (lane % kLanes == 0 && lane / kLanes < group_size) {
      stored.arrays.own_max(first_head + lane / kLanes)[block] = max;
      stored.arrays.own_mass(first_head + lane / kLanes)[block] = mass;
    }
    __syncwarp();
    WriteTile<kHeads>(stored.arrays.scores(first_head, block), stored.lines.pitch(), mine.tile, group_size, lane);
    __syncwarp();
  }
  WaitCopies<0>();
  if (threadIdx.x == 0) taker.Look();
  CountScored<kWarps>(launch, unit, item);
}

template <int kHeads>
__device__ __forceinline__ uint64_t SumRun(const TileMemory<kHeads>& memory, int lane) {
  uint64_t sum = 0;
#pragma unroll 1
  for (int word = 0; word < DrawnMask<kHeads>::kWords; ++word) {
    const uint4* chunk = memory.Chunk(lane, word);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sum += static_cast<uint64_t>(chunk[i].x) + chunk[i].y;  // no two masses overflow 32 bits, but four may
      sum += static_cast<uint64_t>(chunk[i].z) + chunk[i].w;
    }
  }
  return sum;
}

template <typename Kv, int D, int kHeads>
__device__ __forceinline__ void GatherSplit(const PropLaunch& launch, const Unit& unit, UnitTaker& taker,
                                            Shared<Kv, D, kHeads>& shared) {
  constexpr int kBlocks = kHeads > 8 ? 2 : 1, kWarps = kWarpsOf<Kv, D, kHeads>, kLanes = TileMemory<kHeads>::kLanes;
  const DeviceItem& item = launch.decode.items[unit.work.item];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  WarpMemory<Kv, D, kHeads>& mine = shared.warp[warp];
  const CacheView<Kv, D> view(launch.decode, item, unit.work, unit.kv_head);
  const StoredView stored(launch.decode, item, launch.stored[unit.work.item]);
  const int group_size = launch.decode.group_size, first_head = unit.kv_head * group_size;
  const bool real = lane / kLanes < group_size;
  const int head = first_head + lane / kLanes;
  const sampling::RandomStream stream =
      sampling::MakeRandomStream(item.seed, item.sampling_key, item.layer_index, item.position, head);
  unsigned* ticket = TicketOf(launch.decode, unit);
  while (LoadAcquire(ticket) <= item.num_splits) __nanosleep(100);
  __syncwarp();

  OutputFragment<D> out[kBlocks] = {};
  const bool tells_error = item.relative_standard_error != nullptr;
  WarpErrors<kHeads> errors;
  unsigned rows_read = 0;
#pragma unroll 1
  for (int tile = view.begin / kTileTokens + warp; tile * kTileTokens < view.end; tile += kWarps) {
    const int block = tile - stored.lines.first_block;
    __syncwarp();
    ReadTile<kHeads>(mine.tile, stored.arrays.scores(first_head, block), stored.lines.pitch(), group_size, lane);
    const uint32_t draws = real ? __ldcg(stored.arrays.count(head) + block) : 0;
    float draws_per_mass = 0;  // near enough those of one draw over all tiles, for their budgets are one
    if (tells_error && real) {
      const HeadSum* sum = stored.arrays.head_sum(head);
      const float weight = Rescale(__ldcg(stored.arrays.own_max(head) + block), __ldcg(&sum->max)) / __ldcg(&sum->sum);
      draws_per_mass = static_cast<float>(item.sample_count) * weight / sampling::kMassOne;
    }
    WaitCopies<0>();
    for (int line = lane; line < 8 * group_size; line += 32) {
      DiscardLine(stored.arrays.scores(first_head + line / 8, block) + 32 * (line % 8));
    }
    if (!__any_sync(~0u, draws != 0)) continue;
    const uint64_t random = sampling::Random64(stream, sampling::Purpose::kTile, tile);
    uint64_t total;
    const uint32_t count_mask = ~0u >> __clz(draws | 1);
    const DrawnMask<kHeads> drawn = DrawMasses<kHeads, true>(mine.tile, SumRun<kHeads>(mine.tile, lane), draws, random,
                                                             total, tells_error ? ~count_mask : 0, lane);
    __syncwarp();
    const int listed = ListDrawn<kHeads>(mine.tile, drawn, lane);
    rows_read += listed;
    PairSums<Kv, D, kHeads> pairs;
    if (tells_error) {
      PairRows<kHeads>(mine.tile, drawn, mine.ring, MassChance{count_mask, draws_per_mass}, errors.of_rows, lane);
      pairs.Start(out, stream.key0 + tile, lane);
    }
    const SlabRing<kSlabs<Kv, D>> ring{SharedAddress(mine.ring)};
    GatherTile<Kv, D, kHeads, false>(out, pairs, tells_error, mine.tile, listed, ring, view, tile * kTileTokens, lane);
    if (tells_error) errors.AddSteps(pairs, out);
  }
  if (item.rows_read && lane == 0 && rows_read) atomicAdd(item.rows_read, static_cast<unsigned long long>(rows_read));

  WaitCopies<0>();
  if (threadIdx.x == 0) taker.Look();
  const HeadSum* sums = stored.arrays.head_sum(0);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    AddWarps<Kv, D, kWarps>(shared.sums, out[block], errors, launch.decode, item, sums, 0, unit.work.split,
                            unit.kv_head, block);
  }
  if (item.num_splits > 1) {
    AddSplits<D>(shared.answers, Partials(launch.decode), item, sums, 0, ticket, item.num_splits + 1, unit.kv_head);
  } else if (threadIdx.x == 0) {
    *ticket = 0;
  }
}

template <typename Kv, int D, int kHeads>
__global__ void __launch_bounds__(32 * kWarpsOf<Kv, D, kHeads>, kHeads <= 4 && D <= 128 ? 3 : 2)
    S2antaPropKernel(const __grid_constant__ PropUnits units) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  auto& shared = *reinterpret_cast<Shared<Kv, D, kHeads>*>(bytes);
  __shared__ Unit unit, next;
  LetLaterKernelStart();
  WaitForEarlierKernel();
  UnitTaker taker(units, next);
  if (threadIdx.x == 0) {
    taker.Ask();
    taker.Look();
  }
#pragma unroll 1
  for (;;) {
    if (threadIdx.x == 0) taker.Wait();
    __syncthreads();  // all are done with the last unit
    if (threadIdx.x == 0) unit = next;
    __syncthreads();
    if (!unit.any) break;
    if (threadIdx.x == 0) taker.Ask();
    if (unit.gather) {
      GatherSplit<Kv, D, kHeads>(units.launch, unit, taker, shared);
    } else {
      ScoreSplit<Kv, D, kHeads>(units.launch, unit, taker, shared);
    }
  }
}

struct Launcher {
  const PropLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    return DispatchHeads<Kv, D, kBlocks>(launch.decode.group_size, *this);
  }

  template <typename Kv, int D, int kHeads>
  cudaError_t RunHeads() const {
    constexpr int kThreads = 32 * kWarpsOf<Kv, D, kHeads>, kBytes = sizeof(Shared<Kv, D, kHeads>);
    auto* const kernel = S2antaPropKernel<Kv, D, kHeads>;
    static const int resident = ResidentBlocks(kernel, kThreads, kBytes);
    const int count = launch.decode.num_work * launch.decode.num_kv_heads;
    // Ahead by an item at least: a gather's item has been taken up before it. And by what runs at once: then it is
    // done.
    const int lead = std::min(count, launch.most_splits * launch.decode.num_kv_heads + resident);
    return LaunchOverlapping(kernel, PropUnits{launch, lead}, dim3(std::min(resident, 2 * count)), kThreads, kBytes,
                             stream);
  }
};

}  // namespace

cudaError_t LaunchS2antaProp(const PropLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
