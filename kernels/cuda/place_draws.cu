// Where each head's draws lie: the softmax's sum, the lines' budgets, and a record for each block of 256 tokens from
// which its draws follow.
//
// Grid: (query head, item). Sums of masses are whole numbers, so that their order is free; the one sum in floating
// point has the same order whatever the batch.
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/line_draws.cuh"
#include "kernels/cuda/share_draws.cuh"
#include "kernels/cuda/split_sums.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/sampling/tile_budgets.h"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

using Team = BlockTeam<kWarps>;

// One query head of one item.
class HeadPlacer {
 public:
  __device__ HeadPlacer(const DeviceItem& item, const StoredItem& stored, const StoredView& view, int head, Team team)
      : item_(item),
        stored_(stored),
        lines_(view.lines),
        arrays_(view.arrays),
        head_(head),
        team_(team),
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
        ShareAmongLines();
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
    max_ = team_.Reduce(max, [](float a, float b) { return fmaxf(a, b); });
    float sum = 0;
    for (int block = threadIdx.x; block < lines_.num_blocks; block += kThreads) {
      sum += Rescale(own_max_[block], max_) * (static_cast<float>(mass[block]) / sampling::kMassOne);
    }
    sum = team_.Reduce(sum, [](float a, float b) { return a + b; });
    with_nan = __syncthreads_or(with_nan);
    if (with_nan) sum = NAN;
    if (threadIdx.x == 0) WriteHeadSum(arrays_.head_sum(head_), item_, head_, max_, sum);
    return !with_nan;
  }

  __device__ void SumMasses() {
    const uint64_t* mass = lines_.line_blocks == 1 ? arrays_.own_mass(head_) : arrays_.line_mass(head_);
    uint64_t below = 0;
    for (int first = 0; first < lines_.num_blocks; first += kThreads) {
      const int block = first + static_cast<int>(threadIdx.x);
      uint64_t total;
      const uint64_t before = team_.Before(block < lines_.num_blocks ? mass[block] : 0, total);
      if (block < lines_.num_blocks) before_[block] = below + before;
      below += total;
    }
    if (threadIdx.x == 0) before_[lines_.num_blocks] = below;
    __syncthreads();
  }

  // A line's mass beside other lines.
  __device__ uint64_t Weight(int line) const {
    const int begin = lines_.Begin(line);
    return sampling::TileMass(before_[lines_.End(line)] - before_[begin], Rescale(line_max_[begin], max_));
  }

  __device__ void ShareAmongLines() {
    const Shares shares = {.num_lines = lines_.num_lines, .draws = draws_, .count = count_};
    const auto weight = [this](int line) { return Weight(line); };
    if (stored_.budget_rounding == BudgetRounding::kSystematic) {
      ShareSystematically(team_, shares, stream_, weight);
    } else {
      ShareByRemainder(team_, shares, arrays_.remainder(head_), weight);
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
      const uint64_t before = team_.Before(block < lines_.num_blocks ? __ldcg(count_ + block) : 0, total);
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
  Team team_;
  const sampling::RandomStream stream_;
  const uint32_t draws_;
  const float* const own_max_;
  const float* const line_max_;
  uint64_t* const before_;
  uint32_t* const count_;
  float max_ = 0;
};

__global__ void __launch_bounds__(kThreads) PlaceDrawsKernel(const __grid_constant__ StoredLaunch launch) {
  __shared__ Team::Shared shared;
  LetLaterKernelStart();
  const int number = launch.numbers[blockIdx.y];
  const DeviceItem& item = launch.decode.items[number];
  const StoredItem& stored = launch.stored[number];
  const StoredView view(launch.decode, item, stored);
  WaitForEarlierKernel();
  HeadPlacer(item, stored, view, blockIdx.x, Team(shared)).Run();
}

}  // namespace

cudaError_t LaunchPlaceDraws(const StoredLaunch& launch, cudaStream_t stream) {
  const dim3 grid(launch.decode.num_kv_heads * launch.decode.group_size, launch.num_items);
  return LaunchOverlapping(PlaceDrawsKernel, launch, grid, kThreads, 0, stream);
}

}  // namespace santa::cuda
