#include "kernels/cpu/group_draw.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/sampling/inclusion.h"
#include "kernels/sampling/target_error.h"

namespace santa::cpu {
namespace {

constexpr int kBatchRows = 64;  // rows of K that are gathered and scored together
constexpr int kPagesAhead = 2;  // how far ahead of their scoring sketches are fetched

// The unit's blocks as (first token, one past the last, its number in the unit, arrays).
template <typename Body>
void ForEachBlock(const GroupUnit& group, Body body) {
  const Unit& unit = group.unit;
  BlockArrays arrays = group.first;
  int64_t number = 0;
  for (int64_t begin = unit.begin(); begin < unit.end(); arrays = arrays.Next(unit.context.shape), ++number) {
    const int64_t end = BlockEnd(begin, unit.end());
    body(begin, end, number, arrays);
    begin = end;
  }
}

// The sketch of the keys of a page of the item.
Ahead SketchOf(const GroupUnit& group, int64_t page) {
  const DecodeItem& item = *group.unit.plan.item;
  const KvLayout& layout = group.unit.context.cache.layout();
  return {group.unit.context.cache.sketches().Keys(item.layer, item.page_table[page], group.unit.kv_head).codes,
          static_cast<int64_t>(layout.sketch_head_bytes(KeyBits(layout.sketch)))};
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
        const int64_t ahead = page + kPagesAhead;
        const bool fetches = chunk == 0 && (ahead + 1) * layout.page_size <= unit.plan.full;
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
                            .ahead = fetches ? SketchOf(group, ahead) : Ahead{}});
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

// exp(the block's largest score - lse) of a chunk's heads; 0 for a head that is not a number.
HeadVector FactorsOf(const GroupUnit& group, const HeadVector& max, int chunk) {
  const DecodeShape& shape = group.unit.context.shape;
  HeadVector factors = {};
  for (int lane = 0; lane < shape.heads(chunk); ++lane) {
    const float factor = std::exp(max.lane[lane] - group.lse()[chunk * kChunkHeads + lane]);
    factors.lane[lane] = std::isfinite(factor) ? factor : 0;
  }
  return factors;
}

// Of a block's rows those that take part in the draw.
int Candidates(const GroupUnit& group, int64_t begin, int64_t end) {
  return static_cast<int>(std::clamp<int64_t>(group.unit.plan.full - begin, 0, end - begin));
}

// Of a head's rows in a block the p^2, by the bins of a^2.
void AddSpreads(const GroupUnit& group, int64_t number, int candidates, const BlockArrays& arrays) {
  const DecodeShape& shape = group.unit.context.shape;
  const float* squares = group.squares + number * kScoreRows;
  float* spreads = group.item.spreads + group.index() * shape.group * sampling::kInclusionBins;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    const int pitch = shape.pitch(chunk);
    const HeadVector factors = FactorsOf(group, group.block_max[number * shape.num_chunks + chunk], chunk);
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

// The rows that a unit reads, in order.
class RowList {
 public:
  RowList(const GroupUnit& group, ReadScratch& scratch) : group_(group), scratch_(scratch) {
    const auto most = static_cast<size_t>(group.unit.end() - group.unit.begin());
    keys_ = scratch.keys.AtLeast(most);
    values_ = scratch.values.AtLeast(most);
    chances_ = scratch.chances.AtLeast(most);
    const DecodeShape& shape = group.unit.context.shape;
    // As ScoreArgs::scores have room.
    capacity_ = static_cast<int64_t>(most + kRowGroup - 1) / kRowGroup * kRowGroup + kRowGroup;
    weights_ = scratch.weights.AtLeast(3 * static_cast<size_t>(capacity_) * shape.pitch_sum);
  }

  // Walks the line of inclusions. COORDINATED's weights are known already: they are copied.
  void Draw(bool with_weights) {
    const Unit& unit = group_.unit;
    const sampling::RandomStream stream = StreamOf(unit.plan, unit.kv_head);
    uint64_t line = sampling::InclusionOffset(stream, group_.solution().pilot ? 1 : 0);
    for (int64_t before = unit.kv_head * unit.plan.num_splits; before < group_.index(); ++before) {
      line += group_.item.totals[before];
    }
    ForEachBlock(group_, [&](int64_t begin, int64_t end, int64_t number, const BlockArrays& arrays) {
      const int count = num_rows_;
      const int candidates = Candidates(group_, begin, end);
      const uint32_t* inclusions = group_.inclusions + number * kScoreRows;
      int rows[kBlockRows];
      for (int row = 0; row < candidates; ++row) {
        const uint64_t next = line + inclusions[row];
        // Whether the row is read is a matter of chance: no branch is asked to guess it.
        rows[num_rows_ - count] = row;
        chances_[num_rows_] = static_cast<float>(inclusions[row]) * 0x1p-20f;
        num_rows_ += static_cast<int>((next >> sampling::kInclusionBits) != (line >> sampling::kInclusionBits));
        line = next;
      }
      for (int row = candidates; row < end - begin; ++row) {
        rows[num_rows_ - count] = row;
        chances_[num_rows_++] = 1;
      }
      Locate(begin, rows, count);
      if (with_weights) CopyWeights(arrays, group_.block_max + number * unit.context.shape.num_chunks, rows, count);
    });
  }

  int num_rows() const { return num_rows_; }
  const uint8_t* const* keys() const { return keys_; }
  const uint8_t* const* values() const { return values_; }
  float chance(int row) const { return chances_[row]; }
  // kind 0: w, 1: t w, 2: t w^2, as [row][pitch].
  float* weights(int kind, int chunk) const {
    const DecodeShape& shape = group_.unit.context.shape;
    return weights_ + (int64_t{kind} * shape.pitch_sum + DecodeShape::first_lane(chunk)) * capacity_;
  }

 private:
  void Locate(int64_t begin, const int* rows, int from) {
    const KvLayout& layout = group_.unit.context.cache.layout();
    const DecodeItem& item = *group_.unit.plan.item;
    const int64_t value_offset = group_.unit.context.cache.value_offset();
    for (int i = from; i < num_rows_; ++i) {
      const int64_t token = begin + rows[i - from];
      const uint8_t* page =
          group_.unit.context.cache.KeyRows(item.layer, item.page_table[token / layout.page_size], group_.unit.kv_head);
      keys_[i] = page + token % layout.page_size * layout.row_bytes();
      values_[i] = keys_[i] + value_offset;
    }
  }

  void CopyWeights(const BlockArrays& arrays, const HeadVector* max, const int* rows, int from) {
    const DecodeShape& shape = group_.unit.context.shape;
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const int pitch = shape.pitch(chunk);
      const HeadVector factors = FactorsOf(group_, max[chunk], chunk);
      for (int i = from; i < num_rows_; ++i) {
        const float* of_row = arrays.chunk_scores(chunk) + rows[i - from] * pitch;
        for (int lane = 0; lane < shape.heads(chunk); ++lane) {
          weights(0, chunk)[i * pitch + lane] = of_row[lane] * factors.lane[lane];
        }
      }
    }
  }

  const GroupUnit& group_;
  ReadScratch& scratch_;
  const uint8_t** keys_;
  const uint8_t** values_;
  float* chances_;
  float* weights_;
  int64_t capacity_;
  int num_rows_ = 0;
};

// Exact scores of the rows read, as weights against the largest, which becomes the partial's.
void ScoreRows(const GroupUnit& group, const RowList& rows, ReadScratch& scratch) {
  const Unit& unit = group.unit;
  const DecodeContext& context = unit.context;
  const DecodeShape& shape = context.shape;
  const auto row_bytes = static_cast<int64_t>(context.cache.layout().row_bytes());
  constexpr int kAhead = 16;
  uint8_t* gathered = scratch.gathered.AtLeast(kBatchRows * row_bytes + PageMemory::kReadableTail);
  HeadVector* max = unit.scratch.max.AtLeast(shape.num_chunks);
  std::fill_n(max, shape.num_chunks, kNoScore);
  for (int begin = 0; begin < rows.num_rows(); begin += kBatchRows) {
    const int count = std::min(kBatchRows, rows.num_rows() - begin);
    for (int i = 0; i < count; ++i) {
      if (begin + i + kAhead < rows.num_rows()) {
        for (int64_t at = 0; at < row_bytes; at += 64) {
          __builtin_prefetch(rows.keys()[begin + i + kAhead] + at);
          __builtin_prefetch(rows.values()[begin + i + kAhead] + at, 0, 2);
        }
      }
      std::memcpy(gathered + i * row_bytes, rows.keys()[begin + i], row_bytes);
    }
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const int64_t query = static_cast<int64_t>(chunk) * kChunkHeads * shape.padded_dim;
      float* scores = rows.weights(0, chunk) + begin * shape.pitch(chunk);
      context.kernels.score({.rows = gathered,
                             .num_rows = count,
                             .head_dim = shape.head_dim,
                             .heads = shape.heads(chunk),
                             .queries = unit.queries + query,
                             .bf16_queries = unit.bf16_queries == nullptr ? nullptr : unit.bf16_queries + query,
                             .scores = scores});
      context.kernels.finish_scores(scores, count, shape.pitch(chunk), unit.plan.scale,
                                    unit.plan.item->options.soft_cap, &max[chunk]);
    }
  }
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    float* weights = rows.weights(0, chunk);
    context.kernels.exponentials(weights, rows.num_rows(), shape.pitch(chunk), max[chunk], weights, {});
    for (int lane = 0; lane < shape.heads(chunk); ++lane) {
      unit.partial.max[chunk * kChunkHeads + lane] = max[chunk].lane[lane];
    }
  }
}

// Weights over pi, their sums, and what the standard error needs.
void FinishWeights(const GroupUnit& group, const RowList& rows, const float* norms) {
  const Unit& unit = group.unit;
  const DecodeShape& shape = unit.context.shape;
  float* numbers = group.errors.numbers;
  if (numbers != nullptr) {
    std::fill_n(numbers, GroupErrors::NumbersSize(shape), 0.0f);
    for (int row = 0; row < rows.num_rows(); ++row) {
      const float t = 1 - rows.chance(row);
      numbers[0] += t;
      numbers[1] += t * t;
    }
  }
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    const int pitch = shape.pitch(chunk);
    HeadVector sums = {}, first = {}, second = {}, norm = {};
    float* weights = rows.weights(0, chunk);
    float* once = rows.weights(1, chunk);
    float* twice = rows.weights(2, chunk);
    for (int row = 0; row < rows.num_rows(); ++row) {
      const float inverse = 1 / rows.chance(row);
      const float t = 1 - rows.chance(row);
      for (int lane = 0; lane < pitch; ++lane) {
        const float w = weights[row * pitch + lane] * inverse;
        weights[row * pitch + lane] = w;
        sums.lane[lane] += w;
        if (numbers == nullptr) continue;
        once[row * pitch + lane] = t * w;
        twice[row * pitch + lane] = t * w * w;
        first.lane[lane] += t * w;
        second.lane[lane] += t * w * w;
        norm.lane[lane] += t * w * w * norms[row];
      }
    }
    for (int lane = 0; lane < shape.heads(chunk); ++lane) {
      const int head = chunk * kChunkHeads + lane;
      unit.partial.sum[head] = sums.lane[lane];
      if (numbers == nullptr) continue;
      numbers[2 + 3 * head] = first.lane[lane];
      numbers[2 + 3 * head + 1] = second.lane[lane];
      numbers[2 + 3 * head + 2] = norm.lane[lane];
    }
  }
}

void AddValues(const GroupUnit& group, const RowList& rows) {
  const Unit& unit = group.unit;
  const DecodeShape& shape = unit.context.shape;
  const bool errors = group.errors.vectors != nullptr;
  const bool ratio = unit.plan.method == Method::kSketched;
  if (errors) std::fill_n(group.errors.vectors, GroupErrors::VectorsSize(shape), 0.0f);
  // In batches, so that rows are in the L1 cache for all but the first of the sums that they go into.
  for (int begin = 0; begin < rows.num_rows(); begin += kBatchRows) {
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const int head = chunk * kChunkHeads;
      const auto add = [&](int kind, float* sums) {
        unit.context.kernels.accumulate({.row_pointers = rows.values() + begin,
                                         .num_rows = std::min(kBatchRows, rows.num_rows() - begin),
                                         .head_dim = shape.head_dim,
                                         .heads = shape.heads(chunk),
                                         .weights = rows.weights(kind, chunk) + begin * shape.pitch(chunk),
                                         .sums = sums});
      };
      add(0, unit.output(head));
      if (!errors) continue;
      add(1, group.errors.first(shape, head));
      if (ratio) add(2, group.errors.second(shape, head));
    }
  }
}

}  // namespace

void WeighGroup(const GroupUnit& group) {
  const Unit& unit = group.unit;
  const DecodeShape& shape = unit.context.shape;
  HeadVector* max = unit.scratch.max.AtLeast(shape.num_chunks);
  ClearPartial(unit);
  ForEachBlock(group, [&](int64_t begin, int64_t end, int64_t number, const BlockArrays& arrays) {
    std::fill_n(max, shape.num_chunks, kNoScore);
    if (unit.plan.method == Method::kSketched) {
      ScoreSketches(group, begin, end, arrays);
    } else {
      const RunList next = end < unit.end() ? unit.Runs(end, BlockEnd(end, unit.end())) : RunList();
      ScoreBlock({&unit, 1}, unit.Runs(begin, end), {unit.context, next, 1, /*values=*/false}, &arrays, max);
    }
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      float* weights = arrays.chunk_scores(chunk);
      const HeadVector sum = unit.context.kernels.exponentials(weights, static_cast<int>(end - begin),
                                                               shape.pitch(chunk), max[chunk], weights, {});
      group.block_max[number * shape.num_chunks + chunk] = max[chunk];
      for (int lane = 0; lane < shape.heads(chunk); ++lane) {
        float& largest = unit.partial.max[chunk * kChunkHeads + lane];
        float& total = unit.partial.sum[chunk * kChunkHeads + lane];
        const float raised = std::max(largest, max[chunk].lane[lane]);
        total = total * std::exp(largest - raised) + sum.lane[lane] * std::exp(max[chunk].lane[lane] - raised);
        largest = raised;
      }
    }
  });
}

void FindMass(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head) {
  const int group = context.shape.group;
  const int64_t first = kv_head * plan.num_splits * group;
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

void CountSquares(const GroupUnit& group) {
  const DecodeShape& shape = group.unit.context.shape;
  uint32_t* histogram = group.item.histograms + group.index() * sampling::kInclusionBins;
  std::fill_n(histogram, sampling::kInclusionBins, 0u);
  if (group.item.spreads != nullptr) {
    const int64_t size = static_cast<int64_t>(shape.group) * sampling::kInclusionBins;
    std::fill_n(group.item.spreads + group.index() * size, size, 0.0f);
  }
  const bool all = group.unit.plan.method == Method::kSketched;  // every candidate has a chance
  ForEachBlock(group, [&](int64_t begin, int64_t end, int64_t number, const BlockArrays& arrays) {
    const int candidates = Candidates(group, begin, end);
    float* squares = group.squares + number * kScoreRows;
    std::fill_n(squares, kScoreRows, 0.0f);
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const HeadVector factors = FactorsOf(group, group.block_max[number * shape.num_chunks + chunk], chunk);
      group.unit.context.kernels.add_squares(arrays.chunk_scores(chunk), candidates, shape.pitch(chunk), factors,
                                             squares);
    }
    for (int row = 0; row < candidates; ++row) {
      histogram[sampling::InclusionBin(squares[row])] += static_cast<uint32_t>(all || squares[row] > 0);
    }
    if (group.item.spreads != nullptr) AddSpreads(group, number, candidates, arrays);
  });
}

void SolveGroup(const PlannedItem& plan, const GroupItem& item, int kv_head) {
  uint32_t* sum = item.histograms + kv_head * plan.num_splits * sampling::kInclusionBins;
  for (int64_t split = 1; split < plan.num_splits; ++split) {
    const uint32_t* other = sum + split * sampling::kInclusionBins;
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
  ForEachBlock(group, [&](int64_t begin, int64_t end, int64_t number, const BlockArrays& /*arrays*/) {
    total +=
        group.unit.context.kernels.inclusions(threshold, group.squares + number * kScoreRows,
                                              Candidates(group, begin, end), group.inclusions + number * kScoreRows);
  });
  group.item.totals[group.index()] = total;
}

void ReadRows(const GroupUnit& group, ReadScratch& scratch) {
  const Unit& unit = group.unit;
  ClearPartial(unit);
  const bool sketched = unit.plan.method == Method::kSketched;
  RowList rows(group, scratch);
  rows.Draw(/*with_weights=*/!sketched);
  *unit.partial.rows = rows.num_rows();
  if (sketched) ScoreRows(group, rows, scratch);
  float* norms = nullptr;
  if (group.errors.numbers != nullptr) {
    norms = scratch.norms.AtLeast(rows.num_rows());
    unit.context.kernels.norms(rows.values(), rows.num_rows(), unit.context.shape.head_dim, norms);
  }
  FinishWeights(group, rows, norms);
  AddValues(group, rows);
}

}  // namespace santa::cpu
