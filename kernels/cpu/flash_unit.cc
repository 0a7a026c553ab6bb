// S2ANTA_FLASH (arXiv 2605.01910): each tile's draws are made as soon as its scores are known, so that one pass over K
// does. A tile's contribution is exp(max_t) sum_t / S_t times its drawn value rows, merged like the blocks of EXACT.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/unit.h"
#include "kernels/sampling/standard_error.h"
#include "kernels/sampling/tile_budgets.h"
#include "kernels/sampling/tiles.h"
#include "kernels/sampling/uniform.h"

namespace santa::cpu {
namespace {

// What a tile adds to the partial: its sums of weights; and to each drawn row's count, its factor.
void AddTile(const Unit& unit, uint32_t budget, const HeadVector* tile_max, const HeadVector* tile_sums,
             HeadVector* factors) {
  const DecodeShape& shape = unit.context.shape;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    HeadVector max = MaxOf(unit, chunk);
    for (int lane = 0; lane < 4; ++lane) max.lane[lane] = std::max(max.lane[lane], tile_max[chunk].lane[lane]);
    RaiseMax(unit, chunk, max);
    factors[chunk] = HeadVector{};
    for (int lane = 0; lane < shape.heads(chunk); ++lane) {
      const float sum = std::exp(tile_max[chunk].lane[lane] - max.lane[lane]) * tile_sums[chunk].lane[lane];
      unit.partial.sum[chunk * kChunkHeads + lane] += sum;
      factors[chunk].lane[lane] = sum / static_cast<float>(budget);
    }
  }
}

// Adds what the rows drawn in a unit's last tile tell of their error to the partial. `sums` and `factors` (what a draw
// weighs), one a head, are the tile's.
void AddTileErrors(const Unit& unit, sampling::StepSums* sums, const float* factors) {
  for (int head = 0; head < unit.context.shape.group; ++head) {
    // A tile in which one row alone is left to chance is a tile in which little is.
    if (sums[head].pairs > 0) {
      unit.partial.errors[head].steps += factors[head] * factors[head] * sampling::SquaredError(sums[head]);
    }
    sums[head] = {};
  }
}

// Draws of one head group in one tile, and their rows. `first`: the tile's masses. tile_errors, tile_factors: of the
// unit's tile before, then of this one.
void DrawTile(const Unit& unit, int64_t tile, const BlockArrays& first, const HeadVector* tile_max,
              const HeadVector* tile_sums, sampling::StepSums* tile_errors, float* tile_factors) {
  const PlannedItem& plan = unit.plan;
  const DecodeShape& shape = unit.context.shape;
  WorkerScratch& scratch = unit.scratch;
  const int64_t begin = sampling::TileBegin(plan.tiling, tile);
  const int64_t end = sampling::TileEnd(plan.tiling, tile);
  const uint32_t budget = sampling::FlashBudget(plan.tiling, tile, plan.item->options.sample_count);
  HeadVector* factors = scratch.factors.AtLeast(shape.num_chunks);
  SystematicDraws* draws = scratch.draws.AtLeast(shape.group);
  double* draws_per_mass = scratch.draws_per_mass.AtLeast(shape.group);
  for (int head = 0; head < shape.group; ++head) {
    const uint64_t total = MassOfTile(shape, first, begin, end, head);
    const uint64_t random = sampling::Random64(StreamOf(plan, unit.first_head() + head), sampling::Purpose::kTile,
                                               static_cast<uint32_t>(plan.tiling.first + tile));
    draws[head] = {total, sampling::UniformBelow(random, total), 0, budget};
    draws_per_mass[head] = budget / static_cast<double>(total);
  }
  // What is queued belongs to sums that AddTile may scale.
  scratch.gatherer.Flush(unit.context, &scratch.fetcher);
  const bool tells_errors = unit.partial.errors != nullptr;
  if (tells_errors) AddTileErrors(unit, tile_errors, tile_factors);
  AddTile(unit, budget, tile_max, tile_sums, factors);
  for (int head = 0; head < shape.group; ++head) {
    tile_factors[head] = factors[head / kChunkHeads].lane[head % kChunkHeads];
  }
  scratch.gatherer.StartRun();
  const DrawErrors errors = {
      .design = DrawErrors::Design::kSystematic, .draws_per_mass = draws_per_mass, .sums = tile_errors};
  BlockArrays arrays = first;
  for (int64_t block = begin; block < end; arrays = arrays.Next(shape)) {
    const int64_t block_end = BlockEnd(block, end);
    scratch.gatherer.StartBlock(unit.context, unit.Runs(block, block_end));
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      scratch.gatherer.DrawSystematically(unit.context, arrays, chunk, draws + chunk * kChunkHeads,
                                          scratch.fetcher.Beside(kBytesBesideRow * (block_end - block)));
    }
    *unit.partial.rows +=
        scratch.gatherer.Queue(unit.context, factors, unit.partial.output, arrays, tells_errors ? &errors : nullptr);
    block = block_end;
  }
}

}  // namespace

void FlashUnits(UnitGroup units) {
  const Unit& unit = units[0];
  const PlannedItem& plan = unit.plan;
  const DecodeShape& shape = unit.context.shape;
  WorkerScratch& scratch = unit.scratch;
  const auto num_units = static_cast<int>(units.size());
  const int64_t tile_blocks = std::min(plan.tiling.size / kBlockRows, plan.blocks_per_split());
  const int64_t scores_size = tile_blocks * BlockArrays::ScoresSize(shape);
  const int64_t groups_size = tile_blocks * BlockArrays::GroupsSize(shape);
  float* scores = scratch.scores.AtLeast(num_units * scores_size);
  uint64_t* groups = scratch.group_masses.AtLeast(num_units * groups_size);
  BlockArrays* first = scratch.first.AtLeast(num_units);
  HeadVector* max = scratch.max.AtLeast(num_units * shape.num_chunks);
  HeadVector* sums = scratch.sums.AtLeast(num_units * shape.num_chunks);
  for (int u = 0; u < num_units; ++u) {
    first[u] = {scores + u * scores_size, groups + u * groups_size};
    ClearPartial(units[u]);
  }
  sampling::StepSums* tile_errors = scratch.tile_errors.AtLeast(num_units * shape.group);
  float* tile_factors = scratch.tile_factors.AtLeast(num_units * shape.group);
  std::fill_n(tile_errors, num_units * shape.group, sampling::StepSums{});
  std::fill_n(tile_factors, num_units * shape.group, 0.0f);
  scratch.gatherer.Begin(unit.context);
  scratch.fetcher.Begin(unit.context, *plan.item, unit.kv_head, num_units, unit.begin(), unit.end());
  for (int64_t begin = unit.begin(); begin < unit.end();) {
    const int64_t tile = begin / plan.tiling.size - plan.tiling.first;
    const int64_t end = sampling::TileEnd(plan.tiling, tile);
    WeighTile(units, begin, end, first, max, sums);
    for (int u = 0; u < num_units; ++u) {
      DrawTile(units[u], tile, first[u], max + u * shape.num_chunks, sums + u * shape.num_chunks,
               tile_errors + u * shape.group, tile_factors + u * shape.group);
    }
    begin = end;
  }
  scratch.gatherer.Flush(unit.context);
  if (unit.partial.errors == nullptr) return;
  for (int u = 0; u < num_units; ++u) {
    AddTileErrors(units[u], tile_errors + u * shape.group, tile_factors + u * shape.group);
  }
}

}  // namespace santa::cpu
