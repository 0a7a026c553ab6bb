#include "kernels/cpu/unit.h"

#include <algorithm>
#include <cmath>

#include "kernels/sampling/uniform.h"

namespace santa::cpu {

HeadVector MaxOf(const Unit& unit, int chunk) {
  const int pitch = unit.context.shape.pitch(chunk);
  const int heads = unit.context.shape.heads(chunk);
  HeadVector max = kNoScore;
  for (int lane = 0; lane < 4; ++lane) {
    if (lane % pitch < heads) max.lane[lane] = unit.partial.max[chunk * kChunkHeads + lane % pitch];
  }
  return max;
}

void ClearPartial(const Unit& unit) {
  const DecodeShape& shape = unit.context.shape;
  std::fill_n(unit.partial.max, shape.group, -std::numeric_limits<float>::infinity());
  std::fill_n(unit.partial.sum, shape.group, 0.0f);
  std::fill_n(unit.partial.output, static_cast<int64_t>(shape.group) * shape.padded_dim, 0.0f);
  *unit.partial.rows = 0;
}

void RaiseMax(const Unit& unit, int chunk, const HeadVector& new_max) {
  const DecodeShape& shape = unit.context.shape;
  for (int lane = 0; lane < shape.heads(chunk); ++lane) {
    const int head = chunk * kChunkHeads + lane;
    float& max = unit.partial.max[head];
    if (new_max.lane[lane] == max) continue;
    const float factor = std::exp(max - new_max.lane[lane]);
    unit.partial.sum[head] *= factor;
    unit.context.kernels.scale(unit.output(head), factor, shape.padded_dim);
    max = new_max.lane[lane];
  }
}

void WeighBlock(const DecodeContext& context, const BlockArrays& arrays, int num_rows, const HeadVector* max,
                HeadVector* sums) {
  const DecodeShape& shape = context.shape;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    float* weights = arrays.chunk_scores(chunk);
    const HeadVector sum = context.kernels.exponentials(weights, num_rows, shape.pitch(chunk), max[chunk], weights);
    for (int lane = 0; lane < 4; ++lane) sums[chunk].lane[lane] += sum.lane[lane];
    context.kernels.masses(weights, num_rows, shape.pitch(chunk), arrays.chunk_groups(chunk));
  }
}

uint64_t MassOfBlock(const DecodeShape& shape, const BlockArrays& arrays, int num_rows, int head) {
  const int chunk = head / kChunkHeads;
  const uint64_t* groups = arrays.chunk_groups(chunk) + head % kChunkHeads;
  uint64_t mass = 0;
  for (int group = 0; group * kRowGroup < num_rows; ++group) mass += groups[group * shape.pitch(chunk)];
  return mass;
}

void WeighTile(const Unit& unit, int64_t begin, int64_t end, const BlockArrays& first, HeadVector* max,
               HeadVector* sums) {
  const DecodeShape& shape = unit.context.shape;
  std::fill_n(max, shape.num_chunks, kNoScore);
  std::fill_n(sums, shape.num_chunks, HeadVector{});
  BlockArrays arrays = first;
  for (int64_t block = begin; block < end; arrays = arrays.Next(shape)) {
    const int64_t block_end = BlockEnd(block, end);
    // The next block's keys are fetched meanwhile, whichever tile it belongs to.
    const RunList next = block_end < unit.end() ? unit.Runs(block_end, BlockEnd(block_end, unit.end())) : RunList();
    ScoreBlock(unit.context, unit.plan, unit.queries, unit.Runs(block, block_end), Fetch::kKeys, next, arrays, max);
    block = block_end;
  }
  arrays = first;
  for (int64_t block = begin; block < end; arrays = arrays.Next(shape)) {
    const int64_t block_end = BlockEnd(block, end);
    WeighBlock(unit.context, arrays, static_cast<int>(block_end - block), max, sums);
    block = block_end;
  }
}

uint64_t MassOfTile(const DecodeShape& shape, const BlockArrays& first, int64_t begin, int64_t end, int head) {
  uint64_t mass = 0;
  BlockArrays arrays = first;
  for (int64_t block = begin; block < end; arrays = arrays.Next(shape)) {
    const int64_t block_end = BlockEnd(block, end);
    mass += MassOfBlock(shape, arrays, static_cast<int>(block_end - block), head);
    block = block_end;
  }
  return mass;
}

sampling::RandomStream StreamOf(const PlannedItem& plan, int head) {
  const DecodeItem& item = *plan.item;
  return sampling::MakeRandomStream(item.options.seed, item.sampling_key, item.layer, item.num_tokens - 1, head);
}

}  // namespace santa::cpu
