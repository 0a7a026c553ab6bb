// How many of a head's S draws each tile gets, S_t, summing to S exactly. Inside a tile the S_t draws are systematic on
// the tile's own masses (Purpose::kTile, the tile's absolute number), so row i of tile t is drawn
//
//     E[c_i | S_t] = S_t * r_i,    r_i the row's share of its tile's mass,  p_i = P_t r_i,  P_t the tile's share
//
// times. The estimators, as the authors' kernels form them (github.com/OPUSLab/SANTA):
//
//     S2ANTA_FLASH   o = sum_t P_t / S_t * sum_i c_i v_i     the same S_t >= 1 for every tile, as published; unbiased,
//                    because each tile's mean is. Also for the sequence's last tile, however short: it holds the
//                    latest tokens, which language models attend to most.
//     S2ANTA_PROP    o = 1 / S * sum_t sum_i c_i v_i         a plain mean, no multiplication:
//                    E[o] = sum_i E[S_t] r_i v_i / S
//
// which for S2ANTA_PROP is exact where E[S_t] = S P_t: one systematic draw over the tile masses gives just that. With
// the largest remainder, as published, S_t is within 1 of S P_t but fixed: a bias of at most N / S times the largest
// |v_i|, and a tile rounded to 0 is never seen. Sinks scale o afterwards by exp(lse of the tokens - lse).
#ifndef SANTA_KERNELS_SAMPLING_TILE_BUDGETS_H_
#define SANTA_KERNELS_SAMPLING_TILE_BUDGETS_H_

#include <cstdint>

#include "kernels/sampling/draws.h"
#include "kernels/sampling/host_device.h"
#include "kernels/sampling/tiles.h"

namespace santa::sampling {

// S2ANTA_FLASH: S / N for each of the N tiles, whatever its tokens; a remainder is spread evenly.
SANTA_HOST_DEVICE uint32_t FlashBudget(const Tiling& tiling, int64_t tile, uint32_t draws) {
  const int64_t before = tile * static_cast<int64_t>(draws) / tiling.count;
  const int64_t through = (tile + 1) * static_cast<int64_t>(draws) / tiling.count;
  return static_cast<uint32_t>(through - before);
}

// S2ANTA_PROP, BudgetRounding::kSystematic: budgets[t] for masses[t] (TileMass), E[S_t] = S * masses[t] / total.
// grid: MakeDrawGrid(sum of masses, S); offset: UniformBelow(Random64(stream, Purpose::kBudget, 0), total).
SANTA_HOST_DEVICE void SystematicBudgets(const uint64_t* masses, int64_t num_tiles, const DrawGrid& grid,
                                         uint64_t offset, uint32_t* budgets) {
  SystematicCursor cursor(grid, offset);
  uint64_t cumulative = 0;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    cumulative += masses[tile];
    uint32_t count = 0;
    for (; cursor.position() < cumulative; cursor.Advance()) ++count;
    budgets[tile] = count;
  }
}

// S2ANTA_PROP, BudgetRounding::kLargestRemainder: floor(S P_t), and one more for the tiles with the largest fractions
// of S P_t, the lower index first among equals. total: sum of masses, [1, 2^62]; remainders: scratch [num_tiles].
SANTA_HOST_DEVICE void LargestRemainderBudgets(const uint64_t* masses, int64_t num_tiles, uint64_t total,
                                               uint32_t draws, uint32_t* budgets, uint64_t* remainders) {
  int64_t left = draws;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    const unsigned __int128 share = static_cast<unsigned __int128>(masses[tile]) * draws;
    budgets[tile] = static_cast<uint32_t>(share / total);
    remainders[tile] = static_cast<uint64_t>(share % total);
    left -= budgets[tile];
  }
  if (left == 0) return;
  // `left` is below the number of tiles with a remainder. Search for the largest threshold that at least `left`
  // remainders reach; all above it get one, and the first of those at it what is left.
  uint64_t low = 0;  // reached by at least `left`
  uint64_t high = total;
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    int64_t reached = 0;
    for (int64_t tile = 0; tile < num_tiles; ++tile) reached += remainders[tile] >= middle;
    if (reached >= left) {
      low = middle;
    } else {
      high = middle;
    }
  }
  for (int64_t tile = 0; tile < num_tiles; ++tile) left -= remainders[tile] > low;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    if (remainders[tile] > low) {
      ++budgets[tile];
    } else if (remainders[tile] == low && left > 0) {
      ++budgets[tile];
      --left;
    }
  }
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_TILE_BUDGETS_H_
