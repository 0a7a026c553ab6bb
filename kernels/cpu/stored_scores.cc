#include "kernels/cpu/stored_scores.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/sampling/draws.h"
#include "kernels/sampling/mass.h"
#include "kernels/sampling/tile_budgets.h"
#include "kernels/sampling/tiles.h"
#include "kernels/sampling/uniform.h"

namespace santa::cpu {
namespace {

constexpr uint64_t kNoMoreDraws = std::numeric_limits<uint64_t>::max();

// SANTA's draws of one head in ascending order.
class SortedCursor {
 public:
  SortedCursor(const uint64_t* next, const uint64_t* end) : next_(next), end_(end) {}
  uint64_t position() const { return next_ < end_ ? *next_ : kNoMoreDraws; }
  void Advance() { ++next_; }

 private:
  const uint64_t* next_;
  const uint64_t* end_;
};

// STRATIFIED's: one in each stratum, hence in ascending order.
class StratifiedCursor {
 public:
  StratifiedCursor(const sampling::RandomStream& stream, const sampling::DrawGrid& grid, uint32_t first_draw)
      : stream_(stream), grid_(grid), draw_(first_draw) {
    Place();
  }
  uint64_t position() const { return position_; }
  void Advance() {
    ++draw_;
    Place();
  }

 private:
  void Place() {
    if (draw_ >= grid_.draws) {
      position_ = kNoMoreDraws;
      return;
    }
    const uint64_t random = sampling::Random64(stream_, sampling::Purpose::kDraw, draw_);
    position_ = sampling::DrawPosition(grid_, draw_, sampling::UniformBelow(random, grid_.total));
  }

  sampling::RandomStream stream_;
  sampling::DrawGrid grid_;
  uint32_t draw_;
  uint64_t position_;
};

// SANTA's and STRATIFIED's draws of one head in a block, whose first row's masses lie above `below`: the cursor starts
// anew in each block, so that it needs no state but that.
void DrawOneByOne(const StoredUnit& stored, int head, uint64_t* below) {
  const Unit& unit = stored.unit;
  const DecodeShape& shape = unit.context.shape;
  const int query_head = unit.first_head() + head;
  const sampling::DrawGrid grid =
      sampling::MakeDrawGrid(stored.item.totals[query_head], unit.plan.item->options.sample_count);
  if (unit.plan.method == Method::kSanta) {
    const uint64_t* begin = stored.item.draws + static_cast<int64_t>(query_head) * grid.draws;
    const uint64_t* end = begin + grid.draws;
    SortedCursor cursor(std::lower_bound(begin, end, *below), end);
    return unit.scratch.gatherer.Draw(shape, head, below, cursor);
  }
  // The last draw of a stratum that begins below may still fall here.
  const uint32_t begun = sampling::SystematicDrawsBelow(grid, *below, 0);
  StratifiedCursor cursor(StreamOf(unit.plan, query_head), grid, begun == 0 ? 0 : begun - 1);
  if (cursor.position() < *below) cursor.Advance();
  unit.scratch.gatherer.Draw(shape, head, below, cursor);
}

// The blocks of the unit as (first token, one past the last, arrays).
template <typename Body>
void ForEachBlock(const StoredUnit& stored, Body body) {
  const Unit& unit = stored.unit;
  BlockArrays arrays = stored.first;
  for (int64_t begin = unit.begin(); begin < unit.end(); arrays = arrays.Next(unit.context.shape)) {
    const int64_t end = BlockEnd(begin, unit.end());
    body(begin, end, arrays);
    begin = end;
  }
}

// Keeps what ShareBudgets needs of a tile, whose masses begin at stored.first, and merges its sums into the partial.
void RecordTile(const StoredUnit& stored, int64_t tile, const HeadVector* max, const HeadVector* sums) {
  const Unit& unit = stored.unit;
  const DecodeShape& shape = unit.context.shape;
  const int64_t begin = sampling::TileBegin(unit.plan.tiling, tile);
  const int64_t end = sampling::TileEnd(unit.plan.tiling, tile);
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    HeadVector largest = MaxOf(unit, chunk);
    for (int lane = 0; lane < 4; ++lane) largest.lane[lane] = std::max(largest.lane[lane], max[chunk].lane[lane]);
    RaiseMax(unit, chunk, largest);
    for (int lane = 0; lane < shape.heads(chunk); ++lane) {
      const int head = chunk * kChunkHeads + lane;
      unit.partial.sum[head] += std::exp(max[chunk].lane[lane] - largest.lane[lane]) * sums[chunk].lane[lane];
      stored.tiles(head)[tile] = {MassOfTile(shape, stored.first, begin, end, head), max[chunk].lane[lane],
                                  sums[chunk].lane[lane], 0, 0};
    }
  }
}

void GatherBlock(const Unit& unit, const BlockArrays& arrays) {
  DrawErrors errors = {.design = DrawErrors::Design::kSystematic,
                       .draws_per_mass = unit.scratch.draws_per_mass.data(),
                       .sums = unit.partial.errors};
  if (unit.plan.method == Method::kStratified) errors.design = DrawErrors::Design::kStratified;
  if (unit.plan.method == Method::kSanta) errors.design = DrawErrors::Design::kIndependent;
  *unit.partial.rows += unit.scratch.gatherer.Queue(unit.context, unit.scratch.factors.data(), unit.partial.output,
                                                    arrays, errors.sums == nullptr ? nullptr : &errors);
}

void GatherTiles(const StoredUnit& stored) {
  const Unit& unit = stored.unit;
  const PlannedItem& plan = unit.plan;
  const DecodeShape& shape = unit.context.shape;
  Gatherer& gatherer = unit.scratch.gatherer;
  SystematicDraws* draws = unit.scratch.draws.AtLeast(shape.group);
  double* draws_per_mass = unit.scratch.draws_per_mass.AtLeast(shape.group);
  int64_t of_draws = -1;  // the tile that they belong to
  ForEachBlock(stored, [&](int64_t begin, int64_t end, const BlockArrays& arrays) {
    const int64_t tile = begin / plan.tiling.size - plan.tiling.first;
    if (tile != of_draws) {
      of_draws = tile;
      const auto number = static_cast<uint32_t>(plan.tiling.first + tile);
      for (int head = 0; head < shape.group; ++head) {
        const TileRecord& record = stored.tiles(head)[tile];
        const uint64_t random =
            sampling::Random64(StreamOf(plan, unit.first_head() + head), sampling::Purpose::kTile, number);
        draws[head] = {record.masses, sampling::UniformBelow(random, record.masses), 0, record.budget};
        draws_per_mass[head] = record.draws_per_mass;
      }
    }
    gatherer.StartBlock(unit.context, unit.Runs(begin, end));
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      gatherer.DrawSystematically(unit.context, arrays, chunk, draws + chunk * kChunkHeads);
    }
    GatherBlock(unit, arrays);
  });
}

void GatherLine(const StoredUnit& stored) {
  const Unit& unit = stored.unit;
  const DecodeShape& shape = unit.context.shape;
  Gatherer& gatherer = unit.scratch.gatherer;
  SystematicDraws* draws = unit.scratch.draws.AtLeast(shape.group);
  double* draws_per_mass = unit.scratch.draws_per_mass.AtLeast(shape.group);
  for (int head = 0; head < shape.group; ++head) {
    const uint64_t total = stored.item.totals[unit.first_head() + head];
    const uint64_t random =
        sampling::Random64(StreamOf(unit.plan, unit.first_head() + head), sampling::Purpose::kDraw, 0);
    draws[head] = {total, sampling::UniformBelow(random, total), stored.masses()[head],
                   unit.plan.item->options.sample_count};
    draws_per_mass[head] = unit.plan.item->options.sample_count / static_cast<double>(total);
  }
  ForEachBlock(stored, [&](int64_t begin, int64_t end, const BlockArrays& arrays) {
    gatherer.StartBlock(unit.context, unit.Runs(begin, end));
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      if (unit.plan.method == Method::kSystematic) {
        gatherer.DrawSystematically(unit.context, arrays, chunk, draws + chunk * kChunkHeads);
        continue;
      }
      gatherer.ClearChunk(unit.context, arrays, chunk);
      for (int lane = 0; lane < shape.heads(chunk); ++lane) {
        const int head = chunk * kChunkHeads + lane;
        DrawOneByOne(stored, head, &draws[head].below);
      }
    }
    GatherBlock(unit, arrays);
  });
}

}  // namespace

void StoreScores(UnitGroup units, const BlockArrays* first) {
  const Unit& unit = units[0];
  const DecodeShape& shape = unit.context.shape;
  const auto num_units = static_cast<int>(units.size());
  HeadVector* max = unit.scratch.max.AtLeast(num_units * shape.num_chunks);
  std::fill_n(max, num_units * shape.num_chunks, kNoScore);
  BlockArrays* arrays = unit.scratch.arrays.AtLeast(num_units);
  std::copy_n(first, num_units, arrays);
  for (int64_t begin = unit.begin(); begin < unit.end();) {
    const int64_t end = BlockEnd(begin, unit.end());
    const RunList next = end < unit.end() ? unit.Runs(end, BlockEnd(end, unit.end())) : RunList();
    ScoreBlock(units, unit.Runs(begin, end), {unit.context, next, num_units, /*values=*/false}, arrays, max);
    for (int u = 0; u < num_units; ++u) arrays[u] = arrays[u].Next(shape);
    begin = end;
  }
  for (int u = 0; u < num_units; ++u) {
    ClearPartial(units[u]);
    for (int head = 0; head < shape.group; ++head) {
      units[u].partial.max[head] = max[u * shape.num_chunks + head / kChunkHeads].lane[head % kChunkHeads];
    }
  }
}

void WeighHeads(const StoredUnit& stored) {
  const Unit& unit = stored.unit;
  const DecodeShape& shape = unit.context.shape;
  // The largest score of each head in all units of the item.
  HeadVector* max = unit.scratch.max.AtLeast(shape.num_chunks);
  HeadVector* sums = unit.scratch.sums.AtLeast(shape.num_chunks);
  std::fill_n(sums, shape.num_chunks, HeadVector{});
  const float* unit_max = stored.item.first_partial.max + unit.kv_head * unit.plan.num_splits * shape.group;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    for (int lane = 0; lane < 4; ++lane) {
      const int head = chunk * kChunkHeads + lane % shape.pitch(chunk);
      max[chunk].lane[lane] = 0;
      if (head >= shape.group) continue;
      float largest = unit_max[head];
      for (int64_t split = 1; split < unit.plan.num_splits; ++split) {
        largest = std::max(largest, unit_max[split * shape.group + head]);
      }
      max[chunk].lane[lane] = largest;
    }
  }
  std::fill_n(stored.masses(), shape.group, uint64_t{0});
  ForEachBlock(stored, [&](int64_t begin, int64_t end, const BlockArrays& arrays) {
    const int num_rows = static_cast<int>(end - begin);
    WeighBlock(unit.context, arrays, num_rows, max, sums);
    for (int head = 0; head < shape.group; ++head) {
      stored.masses()[head] += MassOfBlock(shape, arrays, num_rows, head);
    }
  });
  for (int head = 0; head < shape.group; ++head) {
    unit.partial.sum[head] = sums[head / kChunkHeads].lane[head % kChunkHeads];
  }
}

void PlaceDraws(const DecodeContext& context, const PlannedItem& plan, const StoredItem& item, int kv_head) {
  const DecodeShape& shape = context.shape;
  const uint32_t samples = plan.item->options.sample_count;
  uint64_t* masses = item.unit_masses + kv_head * plan.num_splits * shape.group;
  for (int in_group = 0; in_group < shape.group; ++in_group) {
    const int head = kv_head * shape.group + in_group;
    uint64_t total = 0;
    for (int64_t split = 0; split < plan.num_splits; ++split) {
      uint64_t& of_unit = masses[split * shape.group + in_group];
      const uint64_t below = total;
      total += of_unit;
      of_unit = below;
    }
    item.totals[head] = total;
    // The units' sums refer to the largest score of them all.
    float* max = item.first_partial.max + kv_head * plan.num_splits * shape.group + in_group;
    for (int64_t split = 1; split < plan.num_splits; ++split) max[0] = std::max(max[0], max[split * shape.group]);
    for (int64_t split = 1; split < plan.num_splits; ++split) max[split * shape.group] = max[0];
    if (plan.method != Method::kSanta) continue;
    const sampling::RandomStream stream = StreamOf(plan, head);
    uint64_t* draws = item.draws + static_cast<int64_t>(head) * samples;
    for (uint32_t draw = 0; draw < samples; draw += 2) {
      const sampling::Random64Pair pair = sampling::RandomPair(stream, sampling::Purpose::kDraw, draw / 2);
      draws[draw] = sampling::UniformBelow(pair.value[0], total);
      if (draw + 1 < samples) draws[draw + 1] = sampling::UniformBelow(pair.value[1], total);
    }
    std::sort(draws, draws + samples);
  }
}

void StoreTiles(UnitGroup units, const BlockArrays* first, const StoredItem& item) {
  const Unit& unit = units[0];
  const PlannedItem& plan = unit.plan;
  const DecodeShape& shape = unit.context.shape;
  const auto num_units = static_cast<int>(units.size());
  HeadVector* max = unit.scratch.max.AtLeast(num_units * shape.num_chunks);
  HeadVector* sums = unit.scratch.sums.AtLeast(num_units * shape.num_chunks);
  BlockArrays* of_tile = unit.scratch.first.AtLeast(num_units);
  std::copy_n(first, num_units, of_tile);
  for (const Unit& each : units) ClearPartial(each);
  unit.scratch.fetcher.Begin(unit.context, *plan.item, unit.kv_head, num_units, unit.begin(), unit.end());
  for (int64_t begin = unit.begin(); begin < unit.end();) {
    const int64_t tile = begin / plan.tiling.size - plan.tiling.first;
    const int64_t end = sampling::TileEnd(plan.tiling, tile);
    WeighTile(units, begin, end, of_tile, max, sums);
    for (int u = 0; u < num_units; ++u) {
      RecordTile({units[u], item, of_tile[u]}, tile, max + u * shape.num_chunks, sums + u * shape.num_chunks);
    }
    for (; begin < end; begin = BlockEnd(begin, end)) {
      for (int u = 0; u < num_units; ++u) of_tile[u] = of_tile[u].Next(shape);
    }
  }
}

void ShareBudgets(const DecodeContext& context, const PlannedItem& plan, const StoredItem& item, int kv_head,
                  BudgetScratch& scratch) {
  const uint32_t samples = plan.item->options.sample_count;
  const int64_t count = plan.tiling.count;
  uint64_t* masses = scratch.masses.AtLeast(count);
  uint32_t* budgets = scratch.budgets.AtLeast(count);
  for (int head = kv_head * context.shape.group; head < (kv_head + 1) * context.shape.group; ++head) {
    TileRecord* tiles = item.tiles + head * count;
    float largest = tiles[0].max;
    for (int64_t tile = 1; tile < count; ++tile) largest = std::max(largest, tiles[tile].max);
    uint64_t total = 0;
    for (int64_t tile = 0; tile < count; ++tile) {
      masses[tile] = sampling::TileMass(tiles[tile].masses, std::exp(tiles[tile].max - largest));
      total += masses[tile];
    }
    if (plan.item->options.budget_rounding == BudgetRounding::kLargestRemainder) {
      sampling::LargestRemainderBudgets(masses, count, total, samples, budgets, scratch.remainders.AtLeast(count));
    } else {
      const uint64_t random = sampling::Random64(StreamOf(plan, head), sampling::Purpose::kBudget, 0);
      sampling::SystematicBudgets(masses, count, sampling::MakeDrawGrid(total, samples),
                                  sampling::UniformBelow(random, total), budgets);
    }
    for (int64_t tile = 0; tile < count; ++tile) {
      tiles[tile].budget = budgets[tile];
      tiles[tile].draws_per_mass = static_cast<double>(samples) * static_cast<double>(masses[tile]) /
                                   static_cast<double>(total) / static_cast<double>(tiles[tile].masses);
    }
  }
}

void GatherDraws(const StoredUnit& stored) {
  const Unit& unit = stored.unit;
  const DecodeShape& shape = unit.context.shape;
  std::fill_n(unit.scratch.factors.AtLeast(shape.num_chunks), shape.num_chunks, HeadVector{{1, 1, 1, 1}});
  unit.scratch.gatherer.Begin(unit.context, /*independent=*/unit.plan.method == Method::kSanta);
  if (unit.partial.errors != nullptr) std::fill_n(unit.partial.errors, shape.group, sampling::StepSums{});
  // Plain sums of drawn rows: the maxima of the partials play no part in them.
  if (unit.plan.method == Method::kS2antaProp) {
    GatherTiles(stored);
  } else {
    GatherLine(stored);
  }
  unit.scratch.gatherer.Flush(unit.context);
}

}  // namespace santa::cpu
