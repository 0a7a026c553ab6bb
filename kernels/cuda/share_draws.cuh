// Threads that work on one query head together, and how they share its draws among its lines (a tile each, for
// S2ANTA_PROP): kernels/sampling/tile_budgets.h in parallel. Sums of masses are whole numbers, so that their order is
// free.
#ifndef SANTA_KERNELS_CUDA_SHARE_DRAWS_CUH_
#define SANTA_KERNELS_CUDA_SHARE_DRAWS_CUH_

#include <cstdint>

#include "kernels/sampling/draws.h"
#include "kernels/sampling/uniform.h"

namespace santa::cuda {

// A warp. Every lane calls what it has.
class WarpTeam {
 public:
  static constexpr int kThreads = 32;

  __device__ int thread() const { return threadIdx.x % 32; }
  // The sum of the threads before this one; all threads' to `total`.
  __device__ uint64_t Before(uint64_t value, uint64_t& total) {
    uint64_t through = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, through, step);
      if (thread() >= step) through += other;
    }
    total = __shfl_sync(~0u, through, 31);
    return through - value;
  }
  template <typename Combine>
  __device__ float Reduce(float value, const Combine& combine) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) value = combine(value, __shfl_xor_sync(~0u, value, step));
    return value;
  }
};

// A block of kWarps whole warps. Every thread calls what it has.
template <int kWarps>
class BlockTeam {
 public:
  static constexpr int kThreads = 32 * kWarps;
  struct Shared {
    uint64_t of_warp[kWarps];
    float of_warp_float[kWarps];
  };

  __device__ explicit BlockTeam(Shared& shared) : shared_(shared) {}

  __device__ int thread() const { return threadIdx.x; }
  __device__ uint64_t Before(uint64_t value, uint64_t& total) {
    uint64_t of_warp;
    uint64_t before = WarpTeam().Before(value, of_warp);
    const int warp = threadIdx.x / 32;
    __syncthreads();  // the last call's sums have been read
    if (threadIdx.x % 32 == 0) shared_.of_warp[warp] = of_warp;
    __syncthreads();
    total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += shared_.of_warp[w];
      total += shared_.of_warp[w];
    }
    return before;
  }
  template <typename Combine>
  __device__ float Reduce(float value, const Combine& combine) {
    value = WarpTeam().Reduce(value, combine);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared_.of_warp_float[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared_.of_warp_float[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) value = combine(value, shared_.of_warp_float[w]);
    return value;
  }

 private:
  Shared& shared_;
};

template <typename Team>
__device__ uint64_t TotalOf(Team& team, uint64_t value) {
  uint64_t total;
  team.Before(value, total);
  return total;
}

// S draws for lines of weight(line), the integer mass of each. count: [num_lines]; each thread writes its own, and
// nothing orders that against other threads' reads afterwards.
struct Shares {
  int num_lines;
  uint32_t draws;  // S
  uint32_t* count;
};

// One systematic draw over the lines' masses: SystematicBudgets.
template <typename Team, typename Weight>
__device__ void ShareSystematically(Team& team, const Shares& shares, const sampling::RandomStream& stream,
                                    const Weight& weight) {
  uint64_t mine = 0;
  for (int line = team.thread(); line < shares.num_lines; line += Team::kThreads) mine += weight(line);
  const uint64_t total = TotalOf(team, mine);
  const sampling::DrawGrid grid = sampling::MakeDrawGrid(total, shares.draws);
  const uint64_t offset = sampling::UniformBelow(sampling::Random64(stream, sampling::Purpose::kBudget, 0), total);
  uint64_t below = 0;
  for (int first = 0; first < shares.num_lines; first += Team::kThreads) {
    const int line = first + team.thread();
    const uint64_t own = line < shares.num_lines ? weight(line) : 0;
    uint64_t of_all;
    const uint64_t before = below + team.Before(own, of_all);
    if (line < shares.num_lines) {
      shares.count[line] = sampling::SystematicDrawsBelow(grid, before + own, offset) -
                           sampling::SystematicDrawsBelow(grid, before, offset);
    }
    below += of_all;
  }
}

// The largest remainder: LargestRemainderBudgets. remainder: scratch, [num_lines].
template <typename Team, typename Weight>
__device__ void ShareByRemainder(Team& team, const Shares& shares, uint64_t* remainder, const Weight& weight) {
  uint64_t mine = 0;
  for (int line = team.thread(); line < shares.num_lines; line += Team::kThreads) mine += weight(line);
  const uint64_t total = TotalOf(team, mine);
  uint64_t whole = 0;
  for (int line = team.thread(); line < shares.num_lines; line += Team::kThreads) {
    const unsigned __int128 share = static_cast<unsigned __int128>(weight(line)) * shares.draws;
    shares.count[line] = static_cast<uint32_t>(share / total);
    remainder[line] = static_cast<uint64_t>(share % total);
    whole += shares.count[line];
  }
  const uint64_t left = shares.draws - TotalOf(team, whole);
  if (left == 0) return;
  // The largest threshold that at least `left` remainders reach.
  const auto reach = [&](uint64_t threshold) {
    uint64_t reached = 0;
    for (int line = team.thread(); line < shares.num_lines; line += Team::kThreads) {
      reached += remainder[line] >= threshold;
    }
    return TotalOf(team, reached);
  };
  uint64_t low = 0;
  uint64_t high = total;
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    (reach(middle) >= left ? low : high) = middle;
  }
  // All above it get one draw, and the first of those at it what is left.
  uint64_t at_it = left - reach(low + 1);
  for (int first = 0; first < shares.num_lines; first += Team::kThreads) {
    const int line = first + team.thread();
    const bool real = line < shares.num_lines;
    const bool equal = real && remainder[line] == low;
    uint64_t equals;
    const uint64_t before = team.Before(equal ? 1 : 0, equals);
    if (real && (remainder[line] > low || (equal && before < at_it))) ++shares.count[line];
    at_it -= equals < at_it ? equals : at_it;
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SHARE_DRAWS_CUH_
