// Which rows a unit reads of those that its group drew, and where they lie.
#ifndef SANTA_KERNELS_CPU_ROW_LIST_H_
#define SANTA_KERNELS_CPU_ROW_LIST_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/group_draw.h"
#include "kernels/cpu/group_rows.h"
#include "kernels/sampling/inclusion.h"

namespace santa::cpu {

// Rows are at random addresses. Of those that a unit reads first (keys; COORDINATED: values) as many as the L2 cache
// has room for are fetched as they are drawn, the others so many rows ahead.
inline constexpr int kRowsFetched = 512;
inline constexpr int kRowsAhead = 16;

inline void FetchRow(const uint8_t* row, size_t row_bytes) {
  for (size_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
}

// Of [chunk][row][pitch] with room for `rows` rows.
inline int64_t FirstOf(int chunk, int64_t rows) { return DecodeShape::first_lane(chunk) * rows; }

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
    // Past the last multiple of kCertain; no row is longer than that, so that each passes the next once at most.
    auto past = static_cast<uint32_t>(line & (sampling::kCertain - 1));
    group_.ForEachBlock([&](int64_t begin, int64_t end, int64_t number, const BlockArrays& arrays) {
      const int count = num_rows_;
      const int candidates = group_.Candidates(begin, end);
      const uint32_t* inclusions = group_.inclusions + number * kScoreRows;
      int rows[kBlockRows];
      for (int row = 0; row < candidates; ++row) {
        past += inclusions[row];
        if (past < sampling::kCertain) continue;  // most rows
        past -= sampling::kCertain;
        rows[num_rows_ - count] = row;
        chances_[num_rows_++] = static_cast<float>(inclusions[row]) * 0x1p-20f;
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
    const bool scores_keys = group_.unit.plan.method == Method::kSketched;
    for (int i = from; i < num_rows_; ++i) {
      const int64_t token = begin + rows[i - from];
      const uint8_t* page =
          group_.unit.context.cache.KeyRows(item.layer, item.page_table[token / layout.page_size], group_.unit.kv_head);
      // (Feature-major keys have no rows; SKETCHED alone asks for them.)
      keys_[i] = page + token % layout.page_size * layout.row_bytes();
      values_[i] = keys_[i] + value_offset;
      if (i < kRowsFetched) FetchRow(scores_keys ? keys_[i] : values_[i], layout.row_bytes());
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

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_ROW_LIST_H_
