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
  if (unit.partial.errors != nullptr) std::fill_n(unit.partial.errors, shape.group, sampling::StepSums{});
}

void RaiseMax(const Unit& unit, int chunk, const HeadVector& new_max) {
  const DecodeShape& shape = unit.context.shape;
  for (int lane = 0; lane < shape.heads(chunk); ++lane) {
    const int head = chunk * kChunkHeads + lane;
    float& max = unit.partial.max[head];
    if (new_max.lane[lane] == max) continue;
    const float factor = std::exp(max - new_max.lane[lane]);
    unit.partial.sum[head] *= factor;
    if (unit.partial.errors != nullptr) unit.partial.errors[head].steps *= factor * factor;
    unit.context.kernels.scale(unit.output(head), factor, shape.padded_dim);
    max = new_max.lane[lane];
  }
}

namespace {

// The dot products of a block; arguments as of ScoreBlock.
void MultiplyRows(UnitGroup units, const RunList& runs, const RunOrder& after, const BlockArrays* arrays,
                  KeyFetcher* fetcher) {
  const DecodeContext& context = units[0].context;
  const DecodeShape& shape = context.shape;
  const auto num_units = static_cast<int>(units.size());
  const RunOrder keys = {context, runs, num_units, /*values=*/false};
  const auto row_bytes = static_cast<int64_t>(context.cache.layout().row_bytes());
  int row = 0;
  for (int index = 0; index < keys.count(); ++index) {
    const int u = index % num_units;
    const int num_rows = runs.runs[index / num_units].num_rows;
    const Ahead ahead =
        fetcher != nullptr ? fetcher->WhileScoring(num_rows * row_bytes) : RowsAhead(keys, after, index);
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const int64_t first_query = static_cast<int64_t>(chunk) * kChunkHeads * shape.padded_dim;
      const uint16_t* bf16_queries = units[u].bf16_queries;
      context.kernels.score({.rows = keys.rows(index),
                             .num_rows = num_rows,
                             .head_dim = shape.head_dim,
                             .heads = shape.heads(chunk),
                             .queries = units[u].queries + first_query,
                             .bf16_queries = bf16_queries == nullptr ? nullptr : bf16_queries + first_query,
                             .scores = arrays[u].chunk_scores(chunk) + row * shape.pitch(chunk),
                             .ahead = chunk == 0 ? ahead : Ahead{}});
    }
    if (u == num_units - 1) row += num_rows;
  }
}

// Likewise with feature-major keys. Ahead is fetched what the next run has of the same head's features: those of its
// neighbours are others.
void MultiplyFeatures(UnitGroup units, const RunList& runs, const RunOrder* after, const BlockArrays* arrays) {
  const DecodeContext& context = units[0].context;
  const DecodeShape& shape = context.shape;
  const KvLayout& layout = context.cache.layout();
  const auto num_units = static_cast<int>(units.size());
  const RunOrder keys = {context, runs, num_units, /*values=*/false};
  int row = 0;
  for (int index = 0; index < keys.count(); ++index) {
    const int u = index % num_units;
    const FeatureList& features = units[u].features;
    const int next = index + num_units;
    const uint8_t* ahead = next < keys.count() ? keys.rows(next) : after != nullptr ? after->rows(u) : nullptr;
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      context.kernels.score_features(
          {.keys = keys.rows(index),
           .stride = static_cast<int64_t>(layout.page_size * SizeOf(layout.dtype)),
           .num_rows = runs.runs[index / num_units].num_rows,
           .features = features.features,
           .num_features = features.count,
           .heads = shape.heads(chunk),
           .queries = units[u].queries + int64_t{chunk} * kChunkHeads * features.count,
           .scores = arrays[u].chunk_scores(chunk) + static_cast<int64_t>(row) * shape.pitch(chunk),
           .ahead = chunk == 0 ? ahead : nullptr});
    }
    if (u == num_units - 1) row += runs.runs[index / num_units].num_rows;
  }
}

}  // namespace

void ScoreBlock(UnitGroup units, const RunList& runs, const RunOrder& after, const BlockArrays* arrays, HeadVector* max,
                KeyFetcher* fetcher) {
  const DecodeContext& context = units[0].context;
  const DecodeShape& shape = context.shape;
  const auto num_units = static_cast<int>(units.size());
  if (context.cache.layout().key_order == KeyOrder::kFeatureMajor) {
    MultiplyFeatures(units, runs, fetcher != nullptr || after.values ? nullptr : &after, arrays);
  } else {
    MultiplyRows(units, runs, after, arrays, fetcher);
  }
  for (int u = 0; u < num_units; ++u) {
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      context.kernels.finish_scores(arrays[u].chunk_scores(chunk), runs.num_rows, shape.pitch(chunk),
                                    units[u].plan.scale, units[u].plan.item->options.soft_cap,
                                    &max[u * shape.num_chunks + chunk]);
    }
  }
}

void WeighBlock(const DecodeContext& context, const BlockArrays& arrays, int num_rows, const HeadVector* max,
                HeadVector* sums, KeyFetcher* fetcher) {
  const DecodeShape& shape = context.shape;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    float* weights = arrays.chunk_scores(chunk);
    const Ahead ahead = fetcher != nullptr ? fetcher->Beside(kBytesBesideRow * num_rows) : Ahead{};
    const HeadVector sum =
        context.kernels.exponentials(weights, num_rows, shape.pitch(chunk), max[chunk], weights, ahead);
    for (int lane = 0; lane < 4; ++lane) sums[chunk].lane[lane] += sum.lane[lane];
    context.kernels.masses(weights, num_rows, shape.pitch(chunk), arrays.chunk_groups(chunk));
  }
}

void WeighTile(UnitGroup units, int64_t begin, int64_t end, const BlockArrays* first, HeadVector* max,
               HeadVector* sums) {
  const Unit& unit = units[0];
  const DecodeShape& shape = unit.context.shape;
  const auto num_units = static_cast<int>(units.size());
  std::fill_n(max, num_units * shape.num_chunks, kNoScore);
  std::fill_n(sums, num_units * shape.num_chunks, HeadVector{});
  BlockArrays* arrays = unit.scratch.arrays.AtLeast(num_units);
  std::copy_n(first, num_units, arrays);
  for (int64_t block = begin; block < end;) {
    const int64_t block_end = BlockEnd(block, end);
    const RunList runs = unit.Runs(block, block_end);
    ScoreBlock(units, runs, {unit.context, runs, num_units, /*values=*/false}, arrays, max, &unit.scratch.fetcher);
    for (int u = 0; u < num_units; ++u) arrays[u] = arrays[u].Next(shape);
    block = block_end;
  }
  for (int u = 0; u < num_units; ++u) {
    BlockArrays of_block = first[u];
    for (int64_t block = begin; block < end; of_block = of_block.Next(shape)) {
      const int64_t block_end = BlockEnd(block, end);
      WeighBlock(unit.context, of_block, static_cast<int>(block_end - block), max + u * shape.num_chunks,
                 sums + u * shape.num_chunks, &unit.scratch.fetcher);
      block = block_end;
    }
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
