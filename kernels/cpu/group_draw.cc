#include "kernels/cpu/group_draw.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/sampling/inclusion.h"
#include "kernels/sampling/target_error.h"

namespace santa::cpu {
namespace {

// Sketches are fetched a block ahead: so much of one (in quarters) beside the scores of a page, the rest beside their
// exponentials, which take a quarter of the time.
constexpr int64_t kShareBesideScores = 3;

// The sketches of a page of the item: of the keys, and behind them of the values.
Ahead SketchOf(const GroupUnit& group, int64_t page) {
  const DecodeItem& item = *group.unit.plan.item;
  const KvLayout& layout = group.unit.context.cache.layout();
  return {group.unit.context.cache.sketches().Keys(item.layer, item.page_table[page], group.unit.kv_head).codes,
          static_cast<int64_t>(layout.sketch_head_bytes(KeyBits(layout.sketch)) +
                               layout.sketch_head_bytes(ValueBits(layout.sketch)))};
}

// Of the sketch that is fetched beside a page of the item the part for its scores, or for its exponentials.
Ahead SketchBeside(const GroupUnit& group, int64_t page, bool scores) {
  const int page_size = group.unit.context.cache.layout().page_size;
  const int64_t ahead = page + kBlockRows / page_size;
  if ((ahead + 1) * page_size > group.unit.plan.full) return {};
  const Ahead sketch = SketchOf(group, ahead);
  const int64_t first = sketch.bytes * kShareBesideScores / 4 / 64 * 64;
  return scores ? Ahead{sketch.begin, first} : Ahead{sketch.begin + first, sketch.bytes - first};
}

// Scores of tokens [begin, end) of a block by their sketches; of those in a page that is not full, by their keys.
void ScoreSketches(const GroupUnit& group, int64_t begin, int64_t end, const BlockArrays& arrays) {
  const Unit& unit = group.unit;
  const DecodeContext& context = unit.context;
  const DecodeShape& shape = context.shape;
  const KvLayout& layout = context.cache.layout();
  for (int64_t token = begin; token < end;) {
    const int64_t page = token / layout.page_size;
    const int64_t page_end = std::min(end, (page + 1) * layout.page_size);
    const auto rows = static_cast<int>(page_end - token);
    const int32_t id = unit.plan.item->page_table[page];
    const auto first = static_cast<int>(token % layout.page_size);
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      float* scores = arrays.chunk_scores(chunk) + (token - begin) * shape.pitch(chunk);
      const int64_t head = static_cast<int64_t>(chunk) * kChunkHeads;
      if (token < unit.plan.full) {
        const SketchView keys = context.cache.sketches().Keys(unit.plan.item->layer, id, unit.kv_head);
        group.score_sketch({.codes = keys.codes,
                            .low = keys.low,
                            .step = keys.step,
                            .bits = KeyBits(layout.sketch),
                            .page_size = layout.page_size,
                            .first = first,
                            .num_rows = rows,
                            .head_dim = shape.head_dim,
                            .heads = shape.heads(chunk),
                            .queries = group.queries + head * shape.head_dim,
                            .scores = scores,
                            .ahead = chunk == 0 ? SketchBeside(group, page, /*scores=*/true) : Ahead{}});
        continue;
      }
      const uint8_t* keys = context.cache.KeyRows(unit.plan.item->layer, id, unit.kv_head) + first * layout.row_bytes();
      for (int done = 0; done < rows; done += kMaxRun) {
        context.kernels.score(
            {.rows = keys + done * layout.row_bytes(),
             .num_rows = std::min(rows - done, kMaxRun),
             .head_dim = shape.head_dim,
             .heads = shape.heads(chunk),
             .queries = unit.queries + head * shape.padded_dim,
             .bf16_queries = unit.bf16_queries == nullptr ? nullptr : unit.bf16_queries + head * shape.padded_dim,
             .scores = scores + done * shape.pitch(chunk)});
      }
    }
    token = page_end;
  }
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    HeadVector* max = group.unit.scratch.max.data() + chunk;
    context.kernels.finish_scores(arrays.chunk_scores(chunk), static_cast<int>(end - begin), shape.pitch(chunk),
                                  unit.plan.scale, unit.plan.item->options.soft_cap, max);
  }
}

// A chunk's scores of tokens [begin, end) become weights; returns their sums.
HeadVector Exponentiate(const GroupUnit& group, int64_t begin, int64_t end, int chunk, float* weights,
                        const HeadVector& max) {
  const RowKernels& kernels = group.unit.context.kernels;
  const int pitch = group.unit.context.shape.pitch(chunk);
  const int page_size = group.unit.context.cache.layout().page_size;
  const bool sketched = group.unit.plan.method == Method::kSketched;
  // COORDINATED's weights, and those of a value sketch, are in the answer.
  const auto exponentials = sketched && !group.item.corrects() ? kernels.rough_exponentials : kernels.exponentials;
  const bool fetches = chunk == 0 && sketched;
  // Page by page, where that leaves whole groups of rows.
  if (!fetches || begin % kRowGroup != 0) {
    return exponentials(weights, static_cast<int>(end - begin), pitch, max, weights, {});
  }
  HeadVector sums = {};
  for (int64_t token = begin; token < end;) {
    const int64_t page = token / page_size;
    const int64_t page_end = std::min(end, (page + 1) * page_size);
    float* of_page = weights + (token - begin) * pitch;
    const HeadVector sum = exponentials(of_page, static_cast<int>(page_end - token), pitch, max, of_page,
                                        SketchBeside(group, page, /*scores=*/false));
    for (int lane = 0; lane < kChunkHeads; ++lane) sums.lane[lane] += sum.lane[lane];
    token = page_end;
  }
  return sums;
}

// A unit's sums of what the sketches say: begun, brought to a larger maximum, packed.
void StartSketch(const GroupUnit& group) {
  const DecodeShape& shape = group.unit.context.shape;
  const int64_t size = int64_t{shape.group} * shape.head_dim;
  std::fill_n(group.unit.scratch.sketch_sums.AtLeast(size), size, 0.0f);
  std::fill_n(group.sketch().sum, shape.group, 0.0f);
}

void LowerSketch(const GroupUnit& group, int head, float factor) {
  const int head_dim = group.unit.context.shape.head_dim;
  float* sums = group.unit.scratch.sketch_sums.data() + int64_t{head} * head_dim;
  for (int d = 0; d < head_dim; ++d) sums[d] *= factor;
  group.sketch().sum[head] *= factor;
}

void FinishSketch(const GroupUnit& group) {
  const DecodeShape& shape = group.unit.context.shape;
  const Partial sketch = group.sketch();
  std::copy_n(group.unit.partial.max, shape.group, sketch.max);
  for (int head = 0; head < shape.group; ++head) {
    group.unit.context.kernels.pack(group.unit.scratch.sketch_sums.data() + int64_t{head} * shape.head_dim,
                                    shape.head_dim, sketch.output + int64_t{head} * shape.padded_dim);
  }
}

// Adds what the sketches say of the values of a block's candidates to the sums of the unit's scratch and to its sketch,
// whose weights are `factors` times what the partial has as 1.
void AddSketches(const GroupUnit& group, int64_t begin, int64_t end, const BlockArrays& arrays,
                 const HeadVector* factors) {
  const Unit& unit = group.unit;
  const DecodeShape& shape = unit.context.shape;
  const KvLayout& layout = unit.context.cache.layout();
  const int bits = ValueBits(layout.sketch);
  float* sums = unit.scratch.sketch_sums.data();
  const int64_t last = begin + group.Candidates(begin, end);
  for (int64_t token = begin; token < last;) {
    const int64_t page = token / layout.page_size;
    const int64_t page_end = std::min(last, (page + 1) * layout.page_size);
    const SketchView values =
        unit.context.cache.sketches().Values(unit.plan.item->layer, unit.plan.item->page_table[page], unit.kv_head);
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const int head = chunk * kChunkHeads;
      const HeadVector mass = unit.context.kernels.sketch_sums(
          {.codes = values.codes + token % layout.page_size * layout.head_dim * bits / 8,
           .low = values.low,
           .step = values.step,
           .bits = bits,
           .num_rows = static_cast<int>(page_end - token),
           .head_dim = shape.head_dim,
           .heads = shape.heads(chunk),
           .weights = arrays.chunk_scores(chunk) + (token - begin) * shape.pitch(chunk),
           .factors = factors[chunk],
           .sums = sums + int64_t{head} * shape.head_dim});
      for (int lane = 0; lane < shape.heads(chunk); ++lane) group.sketch().sum[head + lane] += mass.lane[lane];
    }
    token = page_end;
  }
}

// Of a head's rows in a block the p^2, by the bins of a^2.
void AddSpreads(const GroupUnit& group, int64_t number, int candidates, const BlockArrays& arrays) {
  const DecodeShape& shape = group.unit.context.shape;
  const float* squares = group.squares + number * kScoreRows;
  float* spreads = group.item.spreads + group.index() * shape.group * sampling::kInclusionBins;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    const int pitch = shape.pitch(chunk);
    const HeadVector factors = group.FactorsOf(group.block_max[number * shape.num_chunks + chunk], chunk);
    const float* weights = arrays.chunk_scores(chunk);
    for (int lane = 0; lane < shape.heads(chunk); ++lane) {
      if (factors.lane[lane] == 0) continue;
      float* of_head = spreads + (int64_t{chunk} * kChunkHeads + lane) * sampling::kInclusionBins;
      for (int row = 0; row < candidates; ++row) {
        const float p = weights[row * pitch + lane] * factors.lane[lane];
        of_head[sampling::InclusionBin(squares[row])] += p * p;
      }
    }
  }
}

}  // namespace

HeadVector GroupUnit::FactorsOf(const HeadVector& max, int chunk) const {
  const DecodeShape& shape = unit.context.shape;
  HeadVector factors = {};
  for (int lane = 0; lane < shape.heads(chunk); ++lane) {
    const float factor = std::exp(max.lane[lane] - lse()[chunk * kChunkHeads + lane]);
    factors.lane[lane] = std::isfinite(factor) ? factor : 0;
  }
  return factors;
}

void WeighGroup(const GroupUnit& group) {
  const Unit& unit = group.unit;
  const DecodeShape& shape = unit.context.shape;
  const bool sketches_values = group.item.corrects();
  HeadVector* max = unit.scratch.max.AtLeast(shape.num_chunks);
  HeadVector* factors = unit.scratch.factors.AtLeast(shape.num_chunks);
  ClearPartial(unit);
  if (sketches_values) StartSketch(group);
  group.ForEachBlock([&](int64_t begin, int64_t end, int64_t number, const BlockArrays& arrays) {
    std::fill_n(max, shape.num_chunks, kNoScore);
    if (unit.plan.method == Method::kSketched) {
      ScoreSketches(group, begin, end, arrays);
    } else {
      const RunList next = end < unit.end() ? unit.Runs(end, BlockEnd(end, unit.end())) : RunList();
      ScoreBlock({&unit, 1}, unit.Runs(begin, end), {unit.context, next, 1, /*values=*/false}, &arrays, max);
    }
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const HeadVector sum = Exponentiate(group, begin, end, chunk, arrays.chunk_scores(chunk), max[chunk]);
      group.block_max[number * shape.num_chunks + chunk] = max[chunk];
      for (int lane = 0; lane < shape.heads(chunk); ++lane) {
        const int head = chunk * kChunkHeads + lane;
        float& largest = unit.partial.max[head];
        const float raised = std::max(largest, max[chunk].lane[lane]);
        const float lowered = std::exp(largest - raised);
        factors[chunk].lane[lane] = std::exp(max[chunk].lane[lane] - raised);
        unit.partial.sum[head] = unit.partial.sum[head] * lowered + sum.lane[lane] * factors[chunk].lane[lane];
        largest = raised;
        if (sketches_values && lowered != 1) LowerSketch(group, head, lowered);
      }
    }
    if (sketches_values) AddSketches(group, begin, end, arrays, factors);
  });
  if (sketches_values) FinishSketch(group);
}

void FindMass(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head) {
  const int group = context.shape.group;
  const int64_t first = kv_head * plan.num_splits * group;
  if (item.corrects()) std::fill_n(item.corrected + kv_head * group, group, true);
  for (int head = 0; head < group; ++head) {
    const float* max = item.first_partial.max + first + head;
    const float* sum = item.first_partial.sum + first + head;
    float largest = max[0];
    for (int64_t split = 1; split < plan.num_splits; ++split) largest = std::max(largest, max[split * group]);
    double total = 0;
    for (int64_t split = 0; split < plan.num_splits; ++split) {
      total += std::exp(max[split * group] - largest) * sum[split * group];
    }
    item.lse[kv_head * group + head] = static_cast<float>(largest + std::log(total));
  }
}

void CountSquares(GroupRun groups) {
  const DecodeShape& shape = groups.front().unit.context.shape;
  uint32_t* histogram = groups.front().item.histograms + groups.front().index() * sampling::kInclusionBins;
  std::fill_n(histogram, sampling::kInclusionBins, 0u);
  for (const GroupUnit& group : groups) {
    if (group.item.spreads != nullptr) {
      const int64_t size = static_cast<int64_t>(shape.group) * sampling::kInclusionBins;
      std::fill_n(group.item.spreads + group.index() * size, size, 0.0f);
    }
    const bool all = group.unit.plan.method == Method::kSketched;  // every candidate has a chance
    group.ForEachBlock([&](int64_t begin, int64_t end, int64_t number, const BlockArrays& arrays) {
      const int candidates = group.Candidates(begin, end);
      float* squares = group.squares + number * kScoreRows;
      std::fill_n(squares, kScoreRows, 0.0f);
      for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
        const HeadVector factors = group.FactorsOf(group.block_max[number * shape.num_chunks + chunk], chunk);
        group.unit.context.kernels.add_squares(arrays.chunk_scores(chunk), candidates, shape.pitch(chunk), factors,
                                               squares);
      }
      group.unit.context.kernels.count_bins(squares, candidates, all, histogram);
      if (group.item.spreads != nullptr) AddSpreads(group, number, candidates, arrays);
    });
  }
}

void SolveGroup(const PlannedItem& plan, const GroupItem& item, int kv_head) {
  uint32_t* __restrict sum = item.histograms + kv_head * plan.num_splits * sampling::kInclusionBins;
  for (int64_t run = 1; run < item.runs_per_head; ++run) {
    const uint32_t* __restrict other = sum + run * sampling::kInclusionBins;
    for (int bin = 0; bin < sampling::kInclusionBins; ++bin) sum[bin] += other[bin];
  }
  GroupSolution& solution = item.solution[kv_head];
  solution = {};
  for (int bin = 0; bin < sampling::kInclusionBins; ++bin) solution.rows += sum[bin];
  solution.pilot = plan.has_target();
  if (solution.rows == 0) return;
  const uint32_t samples = solution.pilot ? sampling::kPilotSamples : plan.item->options.sample_count;
  const double floor =
      plan.method == Method::kSketched ? sampling::kEvenShare * samples / static_cast<double>(solution.rows) : 0;
  solution.threshold =
      sampling::SolveThreshold(sum, solution.rows, sampling::InclusionBudget(samples, solution.rows), floor);
}

void SolveTarget(const DecodeShape& shape, const PlannedItem& plan, const GroupItem& item, int kv_head,
                 const PilotHead* heads) {
  GroupSolution& solution = item.solution[kv_head];
  solution.pilot = false;
  const int64_t first = kv_head * plan.num_splits;
  const uint32_t* counts = item.histograms + first * sampling::kInclusionBins;
  const int64_t size = static_cast<int64_t>(shape.group) * sampling::kInclusionBins;
  float* spreads = item.spreads + first * size;
  for (int64_t split = 1; split < plan.num_splits; ++split) {
    for (int64_t i = 0; i < size; ++i) spreads[i] += spreads[split * size + i];
  }
  const double target = sampling::kTargetMargin * plan.item->options.target_relative_error;
  std::vector<double> limits(shape.group);
  solution.done = true;
  for (int head = 0; head < shape.group; ++head) {
    const PilotHead& pilot = heads[head];
    // What a noisy estimate adds to its own norm is taken off, but never all.
    const double norm = std::max(pilot.norm - pilot.squared_error, 0.05 * pilot.norm);
    const double allowed = target * target * norm;
    if (pilot.squared_error > allowed) solution.done = false;
    limits[head] = sampling::Spread(solution.threshold, counts, spreads + int64_t{head} * sampling::kInclusionBins) *
                   allowed / pilot.squared_error;
    // A pilot that could not tell: every row. (A head that is not a number has no say.)
    if (std::isnan(pilot.squared_error) && !std::isnan(pilot.norm)) {
      solution.done = false;
      limits[head] = 0;
    }
  }
  if (solution.done || solution.rows == 0) return;
  for (int64_t split = 0; split < plan.num_splits; ++split)
    solution.spent_rows += item.first_partial.rows[first + split];
  solution.threshold = sampling::SolveTarget(counts, solution.rows, spreads, shape.group, limits.data(),
                                             plan.method == Method::kSketched ? sampling::kEvenShare : 0);
}

void Include(const GroupUnit& group) {
  uint64_t total = 0;
  const sampling::InclusionThreshold& threshold = group.item.solution[group.unit.kv_head].threshold;
  group.ForEachBlock([&](int64_t begin, int64_t end, int64_t number, const BlockArrays& /*arrays*/) {
    total +=
        group.unit.context.kernels.inclusions(threshold, group.squares + number * kScoreRows,
                                              group.Candidates(begin, end), group.inclusions + number * kScoreRows);
  });
  group.item.totals[group.index()] = total;
}

}  // namespace santa::cpu
