// The draws of every block of 256 tokens: which rows some head drew, and with which weight each head counts them.
//
// Grid: (key/value head, work), as for the scores. A warp takes a block at a time; one that no head of the group drew
// from costs a look at its records.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/line_draws.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/cuda/tile_errors.cuh"
#include "kernels/cuda/tile_scratch.cuh"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;

template <int kHeads>
struct WarpMemory {
  TileMemory<kHeads> tile;
  uint8_t rows[kHeads][kTileTokens];
};

// What one draw of a head from the block counts; at the end the sum of all is divided by the number of draws.
__device__ __forceinline__ float WeightOf(const StoredArrays& arrays, Method method, const DeviceItem& item, int head,
                                          const BlockDraws& record) {
  if (method != Method::kS2antaFlash || record.draws == 0) return 1;
  // The tile's share of the mass over its share of the draws.
  const HeadSum& sum = *arrays.head_sum(head);
  const float mass = Rescale(record.max, sum.max) * (static_cast<float>(record.total) / sampling::kMassOne);
  return mass / sum.sum * (static_cast<float>(item.sample_count) / static_cast<float>(record.draws));
}

// How many draws of a head one unit of its block's masses gets on average. Of S2ANTA_PROP over all lines, near enough
// one draw, for their budgets are.
__device__ __forceinline__ float DrawsPerMass(const StoredArrays& arrays, Method method, const DeviceItem& item,
                                              int head, const BlockDraws& record) {
  if (method != Method::kS2antaProp) return static_cast<float>(record.draws) / static_cast<float>(record.total);
  const HeadSum& sum = *arrays.head_sum(head);
  return static_cast<float>(item.sample_count) * (Rescale(record.max, sum.max) / (sum.sum * sampling::kMassOne));
}

// Scores in memory.value to draw counts. record: of the lane's head. draws_per_mass: likewise, where a row's chances
// are to be told beside its count (ToldChance); else 0. SANTA's are its count.
template <int kHeads>
__device__ __forceinline__ DrawnMask<kHeads> DrawBlock(TileMemory<kHeads>& memory, const BlockDraws& record,
                                                       Method method, const sampling::RandomStream& stream,
                                                       const uint64_t* positions, uint32_t* counts,
                                                       float draws_per_mass, int lane) {
  constexpr int kLanes = TileMemory<kHeads>::kLanes;
  const uint64_t sum = WeighRunAgainst<kHeads>(memory, record.max, lane);
  uint64_t through = sum;  // of this lane's run and those before it
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, through, step, kLanes);
    if (lane % kLanes >= step) through += other;
  }
  if (method == Method::kSanta) {
    return CountIndependent<kHeads>(memory, positions + record.offset, record.draws, through, counts, lane);
  }
  if (record.draws == 0)
    return CountEach<kHeads>(
        memory, [](uint32_t) { return 0u; }, lane);
  const sampling::DrawGrid grid = sampling::MakeDrawGrid(record.total, record.draws);
  uint64_t cumulative = record.before + through - sum;
  if (method == Method::kStratified) {
    StratifiedCounter counter(stream, grid, cumulative);
    return CountOneByOne<kHeads>(
        memory,
        [&](uint32_t mass) {
          const uint64_t before = cumulative;
          const uint32_t count = counter.Take(cumulative += mass);
          if (draws_per_mass == 0 || count == 0) return count;
          const double begin = static_cast<double>(before) * (grid.draws / static_cast<double>(grid.total));
          return ToldChance::Tell(
              count, sampling::StratifiedFluctuation(static_cast<float>(begin - static_cast<int64_t>(begin)),
                                                     static_cast<float>(mass) * draws_per_mass));
        },
        lane);
  }
  SystematicCounter counter(grid, record.offset, sampling::SystematicDrawsBelow(grid, cumulative, record.offset));
  return CountEach<kHeads>(
      memory,
      [&](uint32_t mass) {
        const uint32_t count = counter.Take(cumulative += mass);
        if (draws_per_mass == 0 || count == 0) return count;
        return ToldChance::Tell(count, sampling::Fluctuation(static_cast<float>(mass) * draws_per_mass));
      },
      lane);
}

// Writes the listed tokens, and for each head of the group what it drew of them, where its scores were: of S2ANTA_FLASH
// the weights of its draws, of the others the tile's numbers.
template <int kHeads>
__device__ __forceinline__ void WriteDrawn(const StoredArrays& arrays, Method method, const TileMemory<kHeads>& memory,
                                           int first_head, int heads, int kv_head, int block, int listed, int lane) {
  uint8_t* list = arrays.list(kv_head, block);
  for (int entry = lane; entry < listed; entry += 32) list[entry] = memory.list[entry];
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    if (head >= heads) break;
    float* weights = arrays.scores(first_head + head, block);
    for (int entry = lane; entry < listed; entry += 32) {
      const uint32_t value = memory.value[head][TileMemory<kHeads>::Column(memory.list[entry])];
      weights[entry] =
          method == Method::kS2antaFlash ? memory.mass[head] * static_cast<float>(value) : __uint_as_float(value);
    }
  }
}

// The block's sums of t and pairs to the split's partial result, in a fixed order. `mine`: the lane's, of its head.
template <int kHeads>
__device__ __forceinline__ void WriteErrors(const DecodeLaunch& launch, const DeviceItem& item, int split, int kv_head,
                                            sampling::StepSums mine) {
  constexpr int kLanes = TileMemory<kHeads>::kLanes;
  __shared__ sampling::StepSums of_warp[kWarps][kHeads];
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    mine.t += __shfl_xor_sync(~0u, mine.t, step);
    mine.pairs += __shfl_xor_sync(~0u, mine.pairs, step);
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane % kLanes == 0) of_warp[warp][lane / kLanes] = mine;
  __syncthreads();
  const int head = threadIdx.x;
  if (head >= launch.group_size) return;
  sampling::StepSums sum;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    sum.t += of_warp[w][head].t;
    sum.pairs += of_warp[w][head].pairs;
  }
  launch.partial_errors[Partials(launch).Of(item, split, kv_head, head)] = sum;
}

template <int kHeads>
__global__ void __launch_bounds__(32 * kWarps, kHeads > 8 ? 2 : 4)
    DrawRowsKernel(const __grid_constant__ StoredLaunch launch) {
  constexpr int kLanes = TileMemory<kHeads>::kLanes;
  extern __shared__ __align__(1024) unsigned char bytes[];
  LetLaterKernelStart();
  const WorkUnit work = launch.decode.work[blockIdx.y];
  const DeviceItem& item = launch.decode.items[work.item];
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group_size = launch.decode.group_size, first_head = kv_head * group_size;
  WarpMemory<kHeads>& mine = reinterpret_cast<WarpMemory<kHeads>*>(bytes)[warp];
  TileMemory<kHeads>& memory = mine.tile;
  const Method method = launch.stored[work.item].method;
  const StoredView stored(launch.decode, item, launch.stored[work.item]);
  const int in_group = lane / kLanes, head = first_head + in_group;
  const bool real = in_group < group_size;
  const sampling::RandomStream stream =
      sampling::MakeRandomStream(item.seed, item.sampling_key, item.layer_index, item.position, head);
  // By pairs of rows; of independent draws the rows' norms are enough.
  const bool pairs_rows =
      item.relative_standard_error != nullptr && method != Method::kSanta && method != Method::kS2antaFlash;
  WaitForEarlierKernel();

  sampling::StepSums errors;
  unsigned rows_read = 0;
#pragma unroll 1
  for (int tile = work.begin / kTileTokens + warp; tile * kTileTokens < work.end; tile += kWarps) {
    const int block = tile - stored.lines.first_block;
    BlockDraws record = {};
    if (real) record = stored.arrays.records(head)[block];
    int listed = 0;
    if (__any_sync(~0u, record.draws != 0)) {
      __syncwarp();
      ReadTile<kHeads>(memory, stored.arrays.scores(first_head, block), stored.lines.pitch(), group_size, lane);
      if (lane % kLanes == 0) memory.mass[in_group] = real ? WeightOf(stored.arrays, method, item, head, record) : 0;
      WaitCopies<0>();
      // SANTA counts where the scores were.
      const bool told = pairs_rows && record.draws != 0;
      const DrawnMask<kHeads> drawn =
          DrawBlock<kHeads>(memory, record, method, stream, real ? stored.arrays.draws(head) : nullptr,
                            real ? reinterpret_cast<uint32_t*>(stored.arrays.scores(head, block)) : nullptr,
                            told ? DrawsPerMass(stored.arrays, method, item, head, record) : 0.0f, lane);
      listed = ListDrawn<kHeads>(memory, drawn, lane);
      if (pairs_rows) PairRows<kHeads>(memory, drawn, mine.rows[0], ToldChance(), errors, lane);
      WriteDrawn<kHeads>(stored.arrays, method, memory, first_head, group_size, kv_head, block, listed, lane);
      rows_read += listed;
    }
    if (lane == 0) stored.arrays.num_listed(kv_head)[block] = listed;
  }
  if (item.rows_read && lane == 0 && rows_read) atomicAdd(item.rows_read, static_cast<unsigned long long>(rows_read));
  if (pairs_rows) WriteErrors<kHeads>(launch.decode, item, work.split, kv_head, errors);
}

template <int kHeads>
cudaError_t Launch(const StoredLaunch& launch, cudaStream_t stream) {
  return LaunchOverlapping(DrawRowsKernel<kHeads>, launch, dim3(launch.decode.num_kv_heads, launch.decode.num_work),
                           32 * kWarps, kWarps * sizeof(WarpMemory<kHeads>), stream);
}

}  // namespace

cudaError_t LaunchDrawRows(const StoredLaunch& launch, cudaStream_t stream) {
  const int heads = launch.decode.group_size;
  if (heads < 1 || heads > 16) return cudaErrorNotSupported;
  return heads <= 4 ? Launch<4>(launch, stream) : heads <= 8 ? Launch<8>(launch, stream) : Launch<16>(launch, stream);
}

}  // namespace santa::cuda
