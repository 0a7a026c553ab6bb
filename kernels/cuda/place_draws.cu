// Where each head's draws lie: the softmax's sum, the lines' budgets, and a record for each block of 256 tokens from
// which its draws follow.
//
// Grid: (query head, item). Sums of masses are whole numbers, so that their order is free; the one sum in floating
// point has the same order whatever the batch.
#include <cstdint>

#include "kernels/cuda/line_draws.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/sampling/tile_budgets.h"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Sums over the block's threads. Every thread calls them.
struct BlockSums {
  uint64_t of_warp[kWarps];
  float of_warp_float[kWarps];

  // The sum of the threads before this one; all threads' to `total`.
  __device__ uint64_t Before(uint64_t value, uint64_t& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t through = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, through, step);
      if (lane >= step) through += other;
    }
    __syncthreads();  // the last call's sums have been read
    if (lane == 31) of_warp[warp] = through;
    __syncthreads();
    uint64_t before = through - value;
    total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += of_warp[w];
      total += of_warp[w];
    }
    return before;
  }
  __device__ uint64_t Total(uint64_t value) {
    uint64_t total;
    Before(value, total);
    return total;
  }
  template <typename Combine>
  __device__ float Reduce(float value, const Combine& combine) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) value = combine(value, __shfl_xor_sync(~0u, value, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp_float[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warp_float[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) value = combine(value, of_warp_float[w]);
    return value;
  }
};

// One query head of one item.
class HeadPlacer {
 public:
  __device__ HeadPlacer(const DeviceItem& item, const StoredItem& stored, const StoredView& view, int head,
                        BlockSums& sums)
      : item_(item),
        stored_(stored),
        lines_(view.lines),
        arrays_(view.arrays),
        head_(head),
        sums_(sums),
        stream_(sampling::MakeRandomStream(item.seed, item.sampling_key, item.layer_index, item.position, head)),
        draws_(item.sample_count),
        own_max_(arrays_.own_max(head)),
        line_max_(lines_.line_blocks == 1 ? own_max_ : arrays_.line_max(head)),
        before_(arrays_.before(head)),
        count_(arrays_.count(head)) {}

  __device__ void Run() {
    if (!MergeBlocks()) {
      for (int block = threadIdx.x; block < lines_.num_blocks; block += kThreads) arrays_.records(head_)[block] = {};
      return;
    }
    SumMasses();
    switch (stored_.method) {
      case Method::kSanta:
        PlaceIndependent();
        break;
      case Method::kS2antaFlash:
        for (int line = threadIdx.x; line < lines_.num_lines; line += kThreads) {
          const sampling::Tiling tiling = sampling::MakeTiling(item_.begin, item_.end, draws_);
          count_[line] = sampling::FlashBudget(tiling, line, draws_);
        }
        break;
      case Method::kS2antaProp:
        if (stored_.budget_rounding == BudgetRounding::kSystematic) {
          ShareSystematically();
        } else {
          ShareByRemainder();
        }
        break;
      default:
        break;
    }
    __syncthreads();
    for (int block = threadIdx.x; block < lines_.num_blocks; block += kThreads) {
      arrays_.records(head_)[block] = stored_.method == Method::kSanta ? IndependentRecord(block) : Record(block);
    }
  }

 private:
  // The head's largest score and sum; false: a score is NaN, and so then is the sum.
  __device__ bool MergeBlocks() {
    const uint64_t* mass = arrays_.own_mass(head_);
    float max = kNegativeInfinity;
    bool with_nan = false;
    for (int block = threadIdx.x; block < lines_.num_blocks; block += kThreads) {
      with_nan |= own_max_[block] != own_max_[block];
      max = fmaxf(max, own_max_[block]);
    }
    max_ = sums_.Reduce(max, [](float a, float b) { return fmaxf(a, b); });
    float sum = 0;
    for (int block = threadIdx.x; block < lines_.num_blocks; block += kThreads) {
      sum += Rescale(own_max_[block], max_) * (static_cast<float>(mass[block]) / sampling::kMassOne);
    }
    sum = sums_.Reduce(sum, [](float a, float b) { return a + b; });
    with_nan = __syncthreads_or(with_nan);
    if (with_nan) sum = NAN;
    if (threadIdx.x == 0) {
      const float sink = item_.sinks ? item_.sinks[head_] * kLog2E : kNegativeInfinity;
      const float max = fmaxf(max_, sink);
      const float of_tokens = Rescale(max_, max) * sum, of_all = of_tokens + Rescale(sink, max);
      item_.lse[head_] = (max + log2f(of_all)) / kLog2E;
      *arrays_.head_sum(head_) = {
          .max = max_, .sum = sum, .divisor = static_cast<float>(draws_) * (of_all / of_tokens)};
    }
    return !with_nan;
  }

  __device__ void SumMasses() {
    const uint64_t* mass = lines_.line_blocks == 1 ? arrays_.own_mass(head_) : arrays_.line_mass(head_);
    uint64_t below = 0;
    for (int first = 0; first < lines_.num_blocks; first += kThreads) {
      const int block = first + static_cast<int>(threadIdx.x);
      uint64_t total;
      const uint64_t before = sums_.Before(block < lines_.num_blocks ? mass[block] : 0, total);
      if (block < lines_.num_blocks) before_[block] = below + before;
      below += total;
    }
    if (threadIdx.x == 0) before_[lines_.num_blocks] = below;
    __syncthreads();
  }

  // A line's mass beside other lines.
  __device__ uint64_t Weight(int line) const {
    if (line >= lines_.num_lines) return 0;
    const int begin = lines_.Begin(line);
    return sampling::TileMass(before_[lines_.End(line)] - before_[begin], Rescale(line_max_[begin], max_));
  }

  __device__ uint64_t TotalWeight() {
    uint64_t weight = 0;
    for (int line = threadIdx.x; line < lines_.num_lines; line += kThreads) weight += Weight(line);
    return sums_.Total(weight);
  }

  // kernels/sampling/tile_budgets.h: SystematicBudgets.
  __device__ void ShareSystematically() {
    const uint64_t total = TotalWeight();
    const sampling::DrawGrid grid = sampling::MakeDrawGrid(total, draws_);
    const uint64_t offset = sampling::UniformBelow(sampling::Random64(stream_, sampling::Purpose::kBudget, 0), total);
    uint64_t below = 0;
    for (int first = 0; first < lines_.num_lines; first += kThreads) {
      const int line = first + static_cast<int>(threadIdx.x);
      const uint64_t weight = Weight(line);
      uint64_t of_all;
      const uint64_t before = below + sums_.Before(weight, of_all);
      if (line < lines_.num_lines) {
        count_[line] = sampling::SystematicDrawsBelow(grid, before + weight, offset) -
                       sampling::SystematicDrawsBelow(grid, before, offset);
      }
      below += of_all;
    }
  }

  // kernels/sampling/tile_budgets.h: LargestRemainderBudgets.
  __device__ void ShareByRemainder() {
    const uint64_t total = TotalWeight();
    uint64_t* remainder = arrays_.remainder(head_);
    uint64_t whole = 0;
    for (int line = threadIdx.x; line < lines_.num_lines; line += kThreads) {
      const unsigned __int128 share = static_cast<unsigned __int128>(Weight(line)) * draws_;
      count_[line] = static_cast<uint32_t>(share / total);
      remainder[line] = static_cast<uint64_t>(share % total);
      whole += count_[line];
    }
    const uint64_t left = draws_ - sums_.Total(whole);
    if (left == 0) return;
    // The largest threshold that at least `left` remainders reach.
    const auto reach = [&](uint64_t threshold) {
      uint64_t reached = 0;
      for (int line = threadIdx.x; line < lines_.num_lines; line += kThreads) reached += remainder[line] >= threshold;
      return sums_.Total(reached);
    };
    uint64_t low = 0;
    uint64_t high = total;
    while (high - low > 1) {
      const uint64_t middle = low + (high - low) / 2;
      (reach(middle) >= left ? low : high) = middle;
    }
    // All above it get one draw, and the first of those at it what is left.
    uint64_t at_it = left - reach(low + 1);
    for (int first = 0; first < lines_.num_lines; first += kThreads) {
      const int line = first + static_cast<int>(threadIdx.x);
      const bool real = line < lines_.num_lines;
      const bool equal = real && remainder[line] == low;
      uint64_t equals;
      const uint64_t before = sums_.Before(equal ? 1 : 0, equals);
      if (real && (remainder[line] > low || (equal && before < at_it))) ++count_[line];
      at_it -= equals < at_it ? equals : at_it;
    }
  }

  // SANTA's draws, brought to their blocks. Their order in a block differs from run to run, and does not matter.
  __device__ void PlaceIndependent() {
    for (int block = threadIdx.x; block < lines_.num_blocks; block += kThreads) count_[block] = 0;
    __syncthreads();
    ForEachDraw([&](int64_t block, uint64_t) { atomicAdd(count_ + block, 1u); });
    __syncthreads();
    uint64_t below = 0;
    for (int first = 0; first < lines_.num_blocks; first += kThreads) {
      const int block = first + static_cast<int>(threadIdx.x);
      uint64_t total;
      const uint64_t before = sums_.Before(block < lines_.num_blocks ? __ldcg(count_ + block) : 0, total);
      if (block < lines_.num_blocks) count_[block] = static_cast<uint32_t>(below + before);
      below += total;
    }
    __syncthreads();
    uint64_t* draws = arrays_.draws(head_);
    ForEachDraw(
        [&](int64_t block, uint64_t position) { draws[atomicAdd(count_ + block, 1u)] = position - before_[block]; });
  }

  template <typename Body>
  __device__ void ForEachDraw(const Body& body) const {
    const uint64_t total = before_[lines_.num_blocks];
    for (uint32_t pair = threadIdx.x; 2 * pair < draws_; pair += kThreads) {
      const sampling::Random64Pair random = sampling::RandomPair(stream_, sampling::Purpose::kDraw, pair);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (2 * pair + i >= draws_) break;
        const uint64_t position = sampling::UniformBelow(random.value[i], total);
        body(sampling::RowAt(before_ + 1, lines_.num_blocks, position), position);
      }
    }
  }

  __device__ BlockDraws IndependentRecord(int block) const {
    const uint32_t begin = block == 0 ? 0 : __ldcg(count_ + block - 1);
    return {.before = before_[block],
            .total = before_[lines_.num_blocks],
            .offset = begin,
            .max = max_,
            .draws = __ldcg(count_ + block) - begin};
  }

  __device__ BlockDraws Record(int block) const {
    const bool tiles = DrawsOnTiles(stored_.method);
    const int line = lines_.LineOf(block), begin = lines_.Begin(line);
    BlockDraws record = {.before = before_[block] - before_[begin],
                         .total = before_[lines_.End(line)] - before_[begin],
                         .offset = 0,
                         .max = line_max_[block],
                         .draws = tiles ? count_[line] : draws_};
    if (record.draws == 0) return record;
    const uint64_t through = record.before + before_[block + 1] - before_[block];
    const sampling::DrawGrid grid = sampling::MakeDrawGrid(record.total, record.draws);
    uint32_t here;
    if (stored_.method == Method::kStratified) {
      here =
          StratifiedCounter(stream_, grid, through).drawn() - StratifiedCounter(stream_, grid, record.before).drawn();
    } else {
      const uint64_t random = tiles ? sampling::Random64(stream_, sampling::Purpose::kTile, lines_.first_line + line)
                                    : sampling::Random64(stream_, sampling::Purpose::kDraw, 0);
      record.offset = sampling::UniformBelow(random, record.total);
      here = sampling::SystematicDrawsBelow(grid, through, record.offset) -
             sampling::SystematicDrawsBelow(grid, record.before, record.offset);
    }
    if (here == 0) record.draws = 0;
    return record;
  }

  const DeviceItem& item_;
  const StoredItem& stored_;
  const StoredLines lines_;
  const StoredArrays arrays_;
  const int head_;
  BlockSums& sums_;
  const sampling::RandomStream stream_;
  const uint32_t draws_;
  const float* const own_max_;
  const float* const line_max_;
  uint64_t* const before_;
  uint32_t* const count_;
  float max_ = 0;
};

__global__ void __launch_bounds__(kThreads) PlaceDrawsKernel(const __grid_constant__ StoredLaunch launch) {
  __shared__ BlockSums sums;
  LetLaterKernelStart();
  const int number = launch.numbers[blockIdx.y];
  const DeviceItem& item = launch.decode.items[number];
  const StoredItem& stored = launch.stored[number];
  const StoredView view(launch, item, stored);
  WaitForEarlierKernel();
  HeadPlacer(item, stored, view, blockIdx.x, sums).Run();
}

}  // namespace

cudaError_t LaunchPlaceDraws(const StoredLaunch& launch, cudaStream_t stream) {
  const dim3 grid(launch.decode.num_kv_heads * launch.decode.group_size, launch.num_items);
  return LaunchStored(PlaceDrawsKernel, launch, grid, kThreads, 0, stream);
}

}  // namespace santa::cuda
