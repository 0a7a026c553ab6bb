#include "kernels/cpu/group_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/sampling/inclusion.h"

namespace santa::cpu {
namespace {

constexpr int kBatchRows = 64;  // rows that are gathered, scored and added up together: they stay in the L2 cache

// Of [chunk][row][pitch] with room for `rows` rows.
int64_t FirstOf(int chunk, int64_t rows) { return DecodeShape::first_lane(chunk) * rows; }

// The rows that a unit reads, in order.
class RowList {
 public:
  RowList(const GroupUnit& group, ReadScratch& scratch) : group_(group) {
    const auto most = static_cast<size_t>(group.unit.end() - group.unit.begin());
    keys_ = scratch.keys.AtLeast(most);
    values_ = scratch.values.AtLeast(most);
    chances_ = scratch.chances.AtLeast(most);
    // As ScoreArgs::scores have room.
    capacity_ = static_cast<int64_t>(most + kRowGroup - 1) / kRowGroup * kRowGroup + kRowGroup;
    const auto weights = static_cast<size_t>(capacity_ * group.unit.context.shape.pitch_sum);
    weights_ = scratch.weights.AtLeast(weights);
    if (!group.item.corrects()) return;
    codes_ = scratch.codes.AtLeast(most);
    ranges_ = scratch.ranges.AtLeast(most);
    sketched_weights_ = scratch.sketched_weights.AtLeast(weights);
  }

  // Walks the line of inclusions. What scores chose with is known already, and copied: COORDINATED's weights, as
  // probabilities, and SKETCHED's by the sketch, in units of the unit's.
  void Draw() {
    const Unit& unit = group_.unit;
    const sampling::RandomStream stream = StreamOf(unit.plan, unit.kv_head);
    uint64_t line = sampling::InclusionOffset(stream, group_.solution().pilot ? 1 : 0);
    for (int64_t before = unit.kv_head * unit.plan.num_splits; before < group_.index(); ++before) {
      line += group_.item.totals[before];
    }
    group_.ForEachBlock([&](int64_t begin, int64_t end, int64_t number, const BlockArrays& arrays) {
      const int count = num_rows_;
      const int candidates = group_.Candidates(begin, end);
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
      const int drawn = num_rows_;
      for (int row = candidates; row < end - begin; ++row) {
        rows[num_rows_ - count] = row;
        chances_[num_rows_++] = 1;
      }
      Locate(begin, rows, count);
      const HeadVector* max = group_.block_max + number * unit.context.shape.num_chunks;
      if (group_.item.corrects()) {
        LocateSketches(begin, rows, count, drawn);
        CopySketchedWeights(arrays, max, rows, count, drawn);
      } else if (unit.plan.method == Method::kCoordinated) {
        CopyWeights(arrays, max, rows, count);
      }
    });
  }

  int num_rows() const { return num_rows_; }
  const uint8_t* const* keys() const { return keys_; }
  const uint8_t* const* values() const { return values_; }
  // Of the values, by their sketch; a row that has none: null.
  const uint8_t* const* codes() const { return codes_; }
  const uint16_t* const* ranges() const { return ranges_; }
  float chance(int row) const { return chances_[row]; }
  // [row][pitch]
  float* weights(int chunk) const { return weights_ + FirstOf(chunk, capacity_); }
  float* sketched_weights(int chunk) const { return sketched_weights_ + FirstOf(chunk, capacity_); }

 private:
  // Rows [from, num_rows_) of the list are tokens begin + rows[0], ...
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

  // Rows from `drawn` on have no sketch.
  void LocateSketches(int64_t begin, const int* rows, int from, int drawn) {
    const KvLayout& layout = group_.unit.context.cache.layout();
    const DecodeItem& item = *group_.unit.plan.item;
    const int64_t row_bytes = static_cast<int64_t>(layout.head_dim) * ValueBits(layout.sketch) / 8;
    for (int i = from; i < drawn; ++i) {
      const int64_t token = begin + rows[i - from];
      const SketchView page = group_.unit.context.cache.sketches().Values(
          item.layer, item.page_table[token / layout.page_size], group_.unit.kv_head);
      codes_[i] = page.codes + token % layout.page_size * row_bytes;
      ranges_[i] = page.low;
    }
    std::fill(codes_ + drawn, codes_ + num_rows_, nullptr);
    std::fill(ranges_ + drawn, ranges_ + num_rows_, nullptr);
  }

  void CopyWeights(const BlockArrays& arrays, const HeadVector* max, const int* rows, int from) {
    const DecodeShape& shape = group_.unit.context.shape;
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const HeadVector factors = group_.FactorsOf(max[chunk], chunk);
      CopyRows(arrays.chunk_scores(chunk), shape.pitch(chunk), factors, rows, from, num_rows_, weights(chunk));
    }
  }

  void CopySketchedWeights(const BlockArrays& arrays, const HeadVector* max, const int* rows, int from, int drawn) {
    const DecodeShape& shape = group_.unit.context.shape;
    const Partial sketch = group_.sketch();
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const int pitch = shape.pitch(chunk);
      HeadVector factors = {};
      for (int lane = 0; lane < shape.heads(chunk); ++lane) {
        factors.lane[lane] = std::exp(max[chunk].lane[lane] - sketch.max[chunk * kChunkHeads + lane]);
      }
      CopyRows(arrays.chunk_scores(chunk), pitch, factors, rows, from, drawn, sketched_weights(chunk));
      std::fill(sketched_weights(chunk) + drawn * pitch, sketched_weights(chunk) + num_rows_ * pitch, 0.0f);
    }
  }

  static void CopyRows(const float* from_block, int pitch, const HeadVector& factors, const int* rows, int begin,
                       int end, float* weights) {
    for (int i = begin; i < end; ++i) {
      const float* of_row = from_block + rows[i - begin] * pitch;
      for (int lane = 0; lane < pitch; ++lane) weights[i * pitch + lane] = of_row[lane] * factors.lane[lane];
    }
  }

  const GroupUnit& group_;
  const uint8_t** keys_;
  const uint8_t** values_;
  const uint8_t** codes_ = nullptr;
  const uint16_t** ranges_ = nullptr;
  float* chances_;
  float* weights_;
  float* sketched_weights_ = nullptr;
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
      float* scores = rows.weights(chunk) + begin * shape.pitch(chunk);
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
    float* weights = rows.weights(chunk);
    context.kernels.exponentials(weights, rows.num_rows(), shape.pitch(chunk), max[chunk], weights, {});
    for (int lane = 0; lane < shape.heads(chunk); ++lane) {
      unit.partial.max[chunk * kChunkHeads + lane] = max[chunk].lane[lane];
    }
  }
}

// Raises the partial's maximum to the sketch's, where a head goes by that.
WeightUnits UnitsOf(const GroupUnit& group, int chunk) {
  WeightUnits units;
  if (!group.item.corrects()) return units;
  const Unit& unit = group.unit;
  const Partial sketch = group.sketch();
  for (int lane = 0; lane < unit.context.shape.heads(chunk); ++lane) {
    const int head = chunk * kChunkHeads + lane;
    if (!group.item.corrected[unit.first_head() + head]) continue;
    float& max = unit.partial.max[head];
    const float raised = std::max(max, sketch.max[head]);
    units.exact.lane[lane] = std::exp(max - raised);
    units.sketched.lane[lane] = std::exp(sketch.max[head] - raised);
    max = raised;
  }
  return units;
}

// The sums over rows, in batches: of a row's value v, or with a value sketch of v~ and of the difference d = v - v~,
// so that nothing small is left of large numbers: with weights w = e / pi, w~ = e~ / pi and b = w - w~ (without a
// sketch w~ = 0 and v~ = v) a row adds b to the mass, and a = w v - w~ v~ = b v~ + w d to the sum.
class RowSums {
 public:
  RowSums(const GroupUnit& group, const RowList& rows, ReadScratch& scratch)
      : group_(group),
        rows_(rows),
        shape_(group.unit.context.shape),
        errors_(group.errors()),
        corrects_(group.item.corrects()) {
    weights_ = scratch.batch_weights.AtLeast(static_cast<size_t>(kKinds) * kBatchRows * shape_.pitch_sum);
    products_ = scratch.products.AtLeast(3 * kBatchRows);
    units_ = scratch.units.AtLeast(shape_.num_chunks);
    for (int chunk = 0; chunk < shape_.num_chunks; ++chunk) units_[chunk] = UnitsOf(group, chunk);
    if (!corrects_) return;
    const auto size = static_cast<size_t>(kBatchRows) * shape_.padded_dim;
    sketched_values_ = scratch.sketched_values.AtLeast(size);
    differences_ = scratch.differences.AtLeast(size);
  }

  void Add() {
    if (errors_.numbers != nullptr) {
      std::fill_n(errors_.numbers, GroupErrors::NumbersSize(shape_), 0.0f);
      std::fill_n(errors_.vectors, GroupErrors::VectorsSize(shape_), 0.0f);
    }
    // In batches, so that rows are in the L1 cache for all but the first of the sums that they go into.
    for (int begin = 0; begin < rows_.num_rows(); begin += kBatchRows) {
      const int count = std::min(kBatchRows, rows_.num_rows() - begin);
      FindProducts(begin, count);
      for (int chunk = 0; chunk < shape_.num_chunks; ++chunk) {
        if (corrects_) {
          Weigh<true>(begin, count, chunk);
        } else {
          Weigh<false>(begin, count, chunk);
        }
        AddValues(begin, count, chunk);
      }
      for (int row = begin; row < begin + count && errors_.numbers != nullptr; ++row) {
        const float t = 1 - rows_.chance(row);
        errors_.numbers[0] += t;
        errors_.numbers[1] += t * t;
      }
    }
  }

 private:
  // Of v~ (or v) b, t b and t b^2; of d w, t w and t b w.
  enum Kind { kMain, kMainOnce, kMainTwice, kDifference, kDifferenceOnce, kDifferenceTwice, kKinds };

  float* weights(Kind kind, int chunk) const {
    return weights_ + int64_t{kind} * kBatchRows * shape_.pitch_sum + FirstOf(chunk, kBatchRows);
  }

  void FindProducts(int begin, int count) {
    const RowKernels& kernels = group_.unit.context.kernels;
    if (corrects_) {
      kernels.sketch_rows({.rows = rows_.values() + begin,
                           .codes = rows_.codes() + begin,
                           .ranges = rows_.ranges() + begin,
                           .bits = ValueBits(group_.unit.context.cache.layout().sketch),
                           .num_rows = count,
                           .head_dim = shape_.head_dim,
                           .sketched = sketched_values_,
                           .differences = differences_,
                           .products = products_});
    } else if (errors_.numbers != nullptr) {
      kernels.norms(rows_.values() + begin, count, shape_.head_dim, products_);
    }
  }

  template <bool kCorrects>
  void Weigh(int begin, int count, int chunk) {
    const int pitch = shape_.pitch(chunk);
    const WeightUnits& units = units_[chunk];
    const bool errors = errors_.numbers != nullptr;
    HeadVector mass = {}, once = {}, twice = {}, squares = {};
    const float* exact = rows_.weights(chunk) + begin * pitch;
    const float* sketched = kCorrects ? rows_.sketched_weights(chunk) + begin * pitch : nullptr;
    for (int row = 0; row < count; ++row) {
      const float chance = rows_.chance(begin + row);
      const float inverse = 1 / chance;
      const float t = 1 - chance;
      for (int lane = 0; lane < pitch; ++lane) {
        const int at = row * pitch + lane;
        const float w = exact[at] * units.exact.lane[lane] * inverse;
        const float b = kCorrects ? w - sketched[at] * units.sketched.lane[lane] * inverse : w;
        weights(kMain, chunk)[at] = b;
        if (kCorrects) weights(kDifference, chunk)[at] = w;
        mass.lane[lane] += b;
        if (!errors) continue;
        weights(kMainOnce, chunk)[at] = t * b;
        weights(kMainTwice, chunk)[at] = t * b * b;
        once.lane[lane] += t * b;
        twice.lane[lane] += t * b * b;
        if (kCorrects) {
          weights(kDifferenceOnce, chunk)[at] = t * w;
          weights(kDifferenceTwice, chunk)[at] = t * b * w;
          const float* products = products_ + 3 * row;
          squares.lane[lane] += t * (b * b * products[0] + 2 * b * w * products[1] + w * w * products[2]);
        } else {
          squares.lane[lane] += t * b * b * products_[row];
        }
      }
    }
    for (int lane = 0; lane < shape_.heads(chunk); ++lane) {
      const int head = chunk * kChunkHeads + lane;
      group_.unit.partial.sum[head] += mass.lane[lane];
      if (!errors) continue;
      errors_.numbers[2 + 3 * head] += once.lane[lane];
      errors_.numbers[2 + 3 * head + 1] += twice.lane[lane];
      errors_.numbers[2 + 3 * head + 2] += squares.lane[lane];
    }
  }

  void AddValues(int begin, int count, int chunk) {
    const Unit& unit = group_.unit;
    const RowKernels& kernels = unit.context.kernels;
    const int head = chunk * kChunkHeads;
    const auto add = [&](Kind main, Kind difference, float* sums) {
      AccumulateArgs args = {.num_rows = count,
                             .head_dim = shape_.head_dim,
                             .heads = shape_.heads(chunk),
                             .weights = weights(main, chunk),
                             .sums = sums};
      if (!corrects_) {
        args.row_pointers = rows_.values() + begin;
        return kernels.accumulate(args);
      }
      args.head_dim = shape_.padded_dim;
      args.rows = reinterpret_cast<const uint8_t*>(sketched_values_);
      kernels.accumulate_packed(args);
      args.rows = reinterpret_cast<const uint8_t*>(differences_);
      args.weights = weights(difference, chunk);
      kernels.accumulate_packed(args);
    };
    add(kMain, kDifference, unit.output(head));
    if (errors_.vectors == nullptr) return;
    add(kMainOnce, kDifferenceOnce, errors_.first(shape_, head));
    if (unit.plan.method == Method::kSketched) add(kMainTwice, kDifferenceTwice, errors_.second(shape_, head));
  }

  const GroupUnit& group_;
  const RowList& rows_;
  const DecodeShape& shape_;
  const GroupErrors errors_;
  const bool corrects_;
  WeightUnits* units_;  // [chunk]
  float* weights_;
  float* products_;  // corrected: [row][3]; else |v|^2 of each row
  float* sketched_values_ = nullptr;
  float* differences_ = nullptr;
};

}  // namespace

void ReadRows(const GroupUnit& group, ReadScratch& scratch) {
  ClearPartial(group.unit);
  RowList rows(group, scratch);
  rows.Draw();
  *group.unit.partial.rows = rows.num_rows();
  if (group.unit.plan.method == Method::kSketched) ScoreRows(group, rows, scratch);
  RowSums(group, rows, scratch).Add();
}

}  // namespace santa::cpu
