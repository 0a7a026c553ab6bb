// The equation for kappa (kernels/sampling/inclusion.h), solved by the threads of a block.
#ifndef SANTA_KERNELS_CUDA_SOLVE_THRESHOLD_CUH_
#define SANTA_KERNELS_CUDA_SOLVE_THRESHOLD_CUH_

#include <cuda_runtime.h>

#include "kernels/sampling/inclusion.h"

namespace santa::cuda {

template <int kThreads>
struct SolveShared {
  unsigned long long warp_tail[kThreads / 32];
  unsigned warp_heavy[kThreads / 32];
  float kappa;
  int highest;
};

// The kappa of count_of(bin) rows in each bin, even: the rows that the floor shares out. All threads call it; thread t
// has bins [kInclusionBins / kThreads * t, ...).
template <int kThreads, typename CountOf>
__device__ sampling::InclusionThreshold SolveThreshold(SolveShared<kThreads>& shared, const CountOf& count_of,
                                                       double budget, double even) {
  constexpr int kBinsOfThread = sampling::kInclusionBins / kThreads;
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  unsigned count[kBinsOfThread], heavy = 0;         // heavy: rows of higher bins than the one at hand
  unsigned long long top[kBinsOfThread], tail = 0;  // tail: tops summed over rows of it and lower ones
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    count[i] = count_of(kBinsOfThread * t + i);
    top[i] = sampling::BinTop(kBinsOfThread * t + i);
    heavy += count[i];
    tail += count[i] * top[i];
  }
  // Inclusive sums over threads.
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned h = __shfl_up_sync(~0u, heavy, step);
    const unsigned long long s = __shfl_up_sync(~0u, tail, step);
    if (lane >= step) {
      heavy += h;
      tail += s;
    }
  }
  if (lane == 31) {
    shared.warp_heavy[warp] = heavy;
    shared.warp_tail[warp] = tail;
  }
  if (t == 0) shared.highest = -1;
  __syncthreads();
  unsigned rows = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) {
      heavy += shared.warp_heavy[w];
      tail += shared.warp_tail[w];
    }
    rows += shared.warp_heavy[w];
  }
  heavy = rows - heavy;  // rows of all bins above this thread's
  const double floor = rows == 0 ? 0 : even / rows;
  double kappa = 0;
  int mine = -1;  // the highest boundary below which all are below certainty
  const float share = static_cast<float>(1 - floor);
#pragma unroll
  for (int i = kBinsOfThread - 1; i >= 0; --i) {
    // As sampling::KappaFor and AllBelowCertain have it, but for the division; where that is about even, either will
    // do.
    const auto left = static_cast<float>(budget - heavy - floor * (rows - heavy));
    if (mine < 0 && tail > 0 && left * static_cast<float>(top[i]) <= share * static_cast<float>(tail)) {
      mine = kBinsOfThread * t + i + 1;
      kappa = sampling::KappaFor(budget, rows, floor, heavy, tail);
    }
    heavy += count[i];
    tail -= count[i] * top[i];
  }
  if (mine >= 0) atomicMax(&shared.highest, mine);
  __syncthreads();
  if (shared.highest < 0) return {static_cast<float>(sampling::kMostKappa), static_cast<float>(floor)};
  if (mine == shared.highest) shared.kappa = static_cast<float>(kappa);
  __syncthreads();
  return {shared.kappa, static_cast<float>(floor)};
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SOLVE_THRESHOLD_CUH_
