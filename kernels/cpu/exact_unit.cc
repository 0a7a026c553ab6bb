// EXACT: blocked softmax with a running maximum.
#include <cstdint>

#include "kernels/cpu/unit.h"

namespace santa::cpu {
namespace {

// Scores of a block become weights against the new running maximum.
void WeighExactly(const Unit& unit, const BlockArrays& arrays, int num_rows, const HeadVector* max) {
  const DecodeShape& shape = unit.context.shape;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    RaiseMax(unit, chunk, max[chunk]);
    float* weights = arrays.chunk_scores(chunk);
    const HeadVector sum =
        unit.context.kernels.exponentials(weights, num_rows, shape.pitch(chunk), max[chunk], weights, {});
    for (int lane = 0; lane < shape.heads(chunk); ++lane) {
      unit.partial.sum[chunk * kChunkHeads + lane] += sum.lane[lane];
    }
  }
}

// Adds the block's value rows, times their weights, to the units' outputs.
void AddValues(UnitGroup units, const RunList& runs, const RunOrder& after, const BlockArrays* arrays) {
  const DecodeContext& context = units[0].context;
  const DecodeShape& shape = context.shape;
  const auto num_units = static_cast<int>(units.size());
  const RunOrder values = {context, runs, num_units, /*values=*/true};
  int row = 0;
  for (int index = 0; index < values.count(); ++index) {
    const int u = index % num_units;
    const int num_rows = runs.runs[index / num_units].num_rows;
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      context.kernels.accumulate({.rows = values.rows(index),
                                  .num_rows = num_rows,
                                  .head_dim = shape.head_dim,
                                  .heads = shape.heads(chunk),
                                  .weights = arrays[u].chunk_scores(chunk) + row * shape.pitch(chunk),
                                  .sums = units[u].output(chunk * kChunkHeads),
                                  .prefetch = chunk == 0 ? RowsAhead(values, after, index).begin : nullptr});
    }
    if (u == num_units - 1) row += num_rows;
  }
}

}  // namespace

void ExactUnits(UnitGroup units) {
  const Unit& first = units[0];
  const DecodeShape& shape = first.context.shape;
  const auto num_units = static_cast<int>(units.size());
  float* scores = first.scratch.scores.AtLeast(num_units * BlockArrays::ScoresSize(shape));
  BlockArrays* arrays = first.scratch.arrays.AtLeast(num_units);
  HeadVector* max = first.scratch.max.AtLeast(num_units * shape.num_chunks);
  for (int u = 0; u < num_units; ++u) {
    arrays[u] = {scores + u * BlockArrays::ScoresSize(shape), nullptr};
    ClearPartial(units[u]);
    *units[u].partial.rows = static_cast<int32_t>(first.end() - first.begin());
  }
  RunList next = first.Runs(first.begin(), BlockEnd(first.begin(), first.end()));
  for (int64_t begin = first.begin(); begin < first.end();) {
    const int64_t end = BlockEnd(begin, first.end());
    const RunList runs = next;
    next = end < first.end() ? first.Runs(end, BlockEnd(end, first.end())) : RunList();
    for (int u = 0; u < num_units; ++u) {
      for (int chunk = 0; chunk < shape.num_chunks; ++chunk) max[u * shape.num_chunks + chunk] = MaxOf(units[u], chunk);
    }
    ScoreBlock(units, runs, {first.context, runs, num_units, /*values=*/true}, arrays, max);
    for (int u = 0; u < num_units; ++u) WeighExactly(units[u], arrays[u], runs.num_rows, max + u * shape.num_chunks);
    AddValues(units, runs, {first.context, next, num_units, /*values=*/false}, arrays);
    begin = end;
  }
}

}  // namespace santa::cpu
