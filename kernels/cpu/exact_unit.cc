// EXACT: blocked softmax with a running maximum.
#include <cstdint>

#include "kernels/cpu/unit.h"

namespace santa::cpu {

void ExactUnit(const Unit& unit) {
  const DecodeContext& context = unit.context;
  const DecodeShape& shape = context.shape;
  const BlockArrays arrays = {unit.scratch.scores.AtLeast(BlockArrays::ScoresSize(shape)), nullptr};
  HeadVector* max = unit.scratch.max.AtLeast(shape.num_chunks);
  ClearPartial(unit);
  RunList next = unit.Runs(unit.begin(), BlockEnd(unit.begin(), unit.end()));
  for (int64_t begin = unit.begin(); begin < unit.end();) {
    const int64_t end = BlockEnd(begin, unit.end());
    const RunList runs = next;
    next = end < unit.end() ? unit.Runs(end, BlockEnd(end, unit.end())) : RunList();
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) max[chunk] = MaxOf(unit, chunk);
    ScoreBlock(context, unit.plan, unit.queries, runs, Fetch::kValues, runs, arrays, max);
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      RaiseMax(unit, chunk, max[chunk]);
      float* weights = arrays.chunk_scores(chunk);
      const HeadVector sum =
          context.kernels.exponentials(weights, runs.num_rows, shape.pitch(chunk), max[chunk], weights);
      for (int lane = 0; lane < shape.heads(chunk); ++lane) {
        unit.partial.sum[chunk * kChunkHeads + lane] += sum.lane[lane];
      }
    }
    int row = 0;
    for (int i = 0; i < runs.count; ++i) {
      for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
        context.kernels.accumulate({.rows = ValuesOf(context, runs, i),
                                    .num_rows = runs.runs[i].num_rows,
                                    .head_dim = shape.head_dim,
                                    .heads = shape.heads(chunk),
                                    .weights = arrays.chunk_scores(chunk) + row * shape.pitch(chunk),
                                    .sums = unit.output(chunk * kChunkHeads),
                                    .prefetch = chunk == 0 ? KeysOf(next, i) : nullptr});
      }
      row += runs.runs[i].num_rows;
    }
    begin = end;
  }
  *unit.partial.rows = static_cast<int32_t>(unit.end() - unit.begin());
}

}  // namespace santa::cpu
