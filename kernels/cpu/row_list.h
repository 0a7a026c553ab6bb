// Which rows the units of a run read of those that their group drew, and where they lie.
#ifndef SANTA_KERNELS_CPU_ROW_LIST_H_
#define SANTA_KERNELS_CPU_ROW_LIST_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/group_draw.h"
#include "kernels/cpu/group_rows.h"
#include "kernels/sampling/inclusion.h"

namespace santa::cpu {

// Rows are at random addresses: each is fetched so many rows before its turn. A core has some 24 misses in flight.
inline constexpr int kRowsAhead = 24;

inline void FetchRow(const uint8_t* row, size_t row_bytes) {
  for (size_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
}

// Of [chunk][row][pitch] with room for `rows` rows.
inline int64_t FirstOf(int chunk, int64_t rows) { return DecodeShape::first_lane(chunk) * rows; }

// The rows that units read, in order. All are drawn at first, so that rows can be fetched across units; then they are
// taken unit by unit.
class RowList {
 public:
  // Of units of one key/value head, neighbours.
  RowList(GroupRun groups, ReadScratch& scratch) : groups_(groups), scratch_(scratch) {
    const GroupUnit& first = groups.front();
    scores_keys_ = first.unit.plan.method == Method::kSketched;
    const auto most = static_cast<size_t>(groups.back().unit.end() - first.unit.begin());
    rows_ = scratch.rows.AtLeast(most + kRowGroup);
    order_ = scratch.order.AtLeast((scores_keys_ ? 2 : 1) * most + kRowsAhead + kBatchRows);
    int32_t* firsts = scratch.first_rows.AtLeast(groups.size() + 1);
    firsts[0] = 0;
    int num_rows = 0;
    for (size_t u = 0; u < groups.size(); ++u) {
      num_rows += Draw(groups[u], rows_ + num_rows);
      firsts[u + 1] = num_rows;
    }
    first_rows_ = firsts;
    int count = 0;
    for (size_t u = 0; u < groups.size(); ++u)
      count = Locate(groups[u], rows_ + firsts[u], firsts[u + 1] - firsts[u], count);
    num_located_ = count;
    // The last rows fetch some that are there.
    std::fill_n(order_ + count, kRowsAhead + kBatchRows, order_[std::max(count - 1, 0)]);
    for (int i = 0; i < std::min(count, kRowsAhead); ++i) FetchRow(order_[i], row_bytes());
  }

  // From here on all is about this unit's rows. What scores chose with is known already, and copied: COORDINATED's
  // weights, as probabilities, and SKETCHED's by the sketch, in units of the unit's.
  void Take(size_t unit) {
    group_ = &groups_[unit];
    first_ = first_rows_[unit];
    num_rows_ = first_rows_[unit + 1] - first_;
    const auto most = static_cast<size_t>(num_rows_);
    chances_ = scratch_.chances.AtLeast(most);
    // As ScoreArgs::scores have room.
    capacity_ = static_cast<int64_t>(most + kRowGroup - 1) / kRowGroup * kRowGroup + kRowGroup;
    const auto weights = static_cast<size_t>(capacity_ * group_->unit.context.shape.pitch_sum);
    weights_ = scratch_.weights.AtLeast(weights);
    if (group_->item.corrects()) {
      codes_ = scratch_.codes.AtLeast(most);
      ranges_ = scratch_.ranges.AtLeast(most);
      sketched_weights_ = scratch_.sketched_weights.AtLeast(weights);
    }
    const int32_t* tokens = rows_ + first_;  // of the unit
    const int64_t unit_begin = group_->unit.begin();
    int from = 0;
    group_->ForEachBlock([&](int64_t begin, int64_t end, int64_t number, const BlockArrays& arrays) {
      const auto base = static_cast<int32_t>(begin - unit_begin);
      const int candidates = group_->Candidates(begin, end);
      const uint32_t* inclusions = group_->inclusions + number * kScoreRows;
      int drawn = from;
      for (; drawn < num_rows_ && tokens[drawn] < base + candidates; ++drawn) {
        chances_[drawn] = static_cast<float>(inclusions[tokens[drawn] - base]) * 0x1p-20f;
      }
      int to = drawn;
      for (; to < num_rows_ && tokens[to] < end - unit_begin; ++to) chances_[to] = 1;
      const HeadVector* max = group_->block_max + number * group_->unit.context.shape.num_chunks;
      const BlockRows rows = {tokens, base, from, drawn, to};
      if (group_->item.corrects()) {
        LocateSketches(begin, rows);
        CopySketchedWeights(arrays, max, rows);
      } else if (!scores_keys_) {
        CopyWeights(arrays, max, rows);
      }
      from = to;
    });
  }

  int num_rows() const { return num_rows_; }
  size_t row_bytes() const { return groups_.front().unit.context.cache.layout().row_bytes(); }
  const uint8_t* const* keys() const { return order_ + 2 * int64_t{first_}; }
  const uint8_t* const* values() const {
    return scores_keys_ ? order_ + 2 * int64_t{first_} + num_rows_ : order_ + first_;
  }
  // What to fetch when the key, or value, of a row has its turn.
  const uint8_t* const* beside_keys() const { return keys() + kRowsAhead; }
  const uint8_t* const* beside_values() const { return values() + kRowsAhead; }
  // While `rows` more are worked on between this unit and the next: so many rows of the next one, or null.
  const uint8_t* const* beside_rest(int rows) const {
    const uint8_t* const* next = beside_values() + num_rows_;
    return next + rows <= order_ + num_located_ ? next : nullptr;
  }
  // Of the values, by their sketch; a row that has none: null.
  const uint8_t* const* codes() const { return codes_; }
  const uint16_t* const* ranges() const { return ranges_; }
  float chance(int row) const { return chances_[row]; }
  // [row][pitch]
  float* weights(int chunk) const { return weights_ + FirstOf(chunk, capacity_); }
  float* sketched_weights(int chunk) const { return sketched_weights_ + FirstOf(chunk, capacity_); }

 private:
  // Of one block: rows [from, drawn) of the list were drawn, [drawn, to) are always read and have no sketch.
  struct BlockRows {
    const int32_t* tokens;  // of the unit
    int32_t base;           // the block's first
    int from;
    int drawn;
    int to;
  };

  // Walks the line of inclusions of a unit; writes its tokens, from its first one on, and returns how many.
  static int Draw(const GroupUnit& group, int32_t* tokens) {
    const sampling::RandomStream stream = StreamOf(group.unit.plan, group.unit.kv_head);
    uint64_t line = sampling::InclusionOffset(stream, group.solution().pilot ? 1 : 0);
    for (int64_t before = group.unit.kv_head * group.unit.plan.num_splits; before < group.index(); ++before) {
      line += group.item.totals[before];
    }
    auto past = static_cast<uint32_t>(line & (sampling::kCertain - 1));
    int count = 0;
    int32_t first = 0;
    group.ForEachBlock([&](int64_t begin, int64_t end, int64_t number, const BlockArrays& /*arrays*/) {
      const int candidates = group.Candidates(begin, end);
      const auto block_rows = static_cast<int>(end - begin);
      count += group.unit.context.kernels.draw_rows(group.inclusions + number * kScoreRows, candidates, first, &past,
                                                    tokens + count);
      for (int row = candidates; row < block_rows; ++row) tokens[count++] = first + row;
      first += block_rows;
    });
    return count;
  }

  // Where a unit's rows lie: their keys, if those are scored, and then their values, from order_[first] on. Returns
  // one past the last.
  int Locate(const GroupUnit& group, const int32_t* tokens, int count, int first) {
    const KvLayout& layout = group.unit.context.cache.layout();
    const DecodeItem& item = *group.unit.plan.item;
    const int64_t value_offset = group.unit.context.cache.value_offset();
    const int page_bits = std::countr_zero(static_cast<uint32_t>(layout.page_size));
    const auto bytes = static_cast<int64_t>(layout.row_bytes());
    const uint8_t** keys = order_ + first;
    const uint8_t** values = scores_keys_ ? keys + count : keys;
    for (int i = 0; i < count; ++i) {
      const int64_t token = group.unit.begin() + tokens[i];
      const uint8_t* page =
          group.unit.context.cache.KeyRows(item.layer, item.page_table[token >> page_bits], group.unit.kv_head);
      // (Feature-major keys have no rows; SKETCHED alone asks for them.)
      const uint8_t* key = page + (token & (layout.page_size - 1)) * bytes;
      keys[i] = key;
      values[i] = key + value_offset;
    }
    return first + (scores_keys_ ? 2 : 1) * count;
  }

  void LocateSketches(int64_t begin, const BlockRows& rows) {
    const KvLayout& layout = group_->unit.context.cache.layout();
    const DecodeItem& item = *group_->unit.plan.item;
    const int64_t row_bytes = static_cast<int64_t>(layout.head_dim) * ValueBits(layout.sketch) / 8;
    for (int i = rows.from; i < rows.drawn; ++i) {
      const int64_t token = begin + rows.tokens[i] - rows.base;
      const SketchView page = group_->unit.context.cache.sketches().Values(
          item.layer, item.page_table[token / layout.page_size], group_->unit.kv_head);
      codes_[i] = page.codes + token % layout.page_size * row_bytes;
      ranges_[i] = page.low;
    }
    std::fill(codes_ + rows.drawn, codes_ + rows.to, nullptr);
    std::fill(ranges_ + rows.drawn, ranges_ + rows.to, nullptr);
  }

  void CopyWeights(const BlockArrays& arrays, const HeadVector* max, const BlockRows& rows) {
    const DecodeShape& shape = group_->unit.context.shape;
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const HeadVector factors = group_->FactorsOf(max[chunk], chunk);
      CopyRows(arrays.chunk_scores(chunk), shape.pitch(chunk), factors, rows, rows.to, weights(chunk));
    }
  }

  void CopySketchedWeights(const BlockArrays& arrays, const HeadVector* max, const BlockRows& rows) {
    const DecodeShape& shape = group_->unit.context.shape;
    const Partial sketch = group_->sketch();
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const int pitch = shape.pitch(chunk);
      HeadVector factors = {};
      for (int lane = 0; lane < shape.heads(chunk); ++lane) {
        factors.lane[lane] = std::exp(max[chunk].lane[lane] - sketch.max[chunk * kChunkHeads + lane]);
      }
      CopyRows(arrays.chunk_scores(chunk), pitch, factors, rows, rows.drawn, sketched_weights(chunk));
      std::fill(sketched_weights(chunk) + rows.drawn * pitch, sketched_weights(chunk) + rows.to * pitch, 0.0f);
    }
  }

  static void CopyRows(const float* from_block, int pitch, const HeadVector& factors, const BlockRows& rows, int to,
                       float* weights) {
    for (int i = rows.from; i < to; ++i) {
      const float* of_row = from_block + (rows.tokens[i] - rows.base) * pitch;
      for (int lane = 0; lane < pitch; ++lane) weights[i * pitch + lane] = of_row[lane] * factors.lane[lane];
    }
  }

  GroupRun groups_;
  ReadScratch& scratch_;
  bool scores_keys_ = false;
  int32_t* rows_ = nullptr;  // of all units, tokens from a unit's first on
  const uint8_t** order_ = nullptr;
  int num_located_ = 0;                  // in order_
  const int32_t* first_rows_ = nullptr;  // [unit]
  // The unit that was taken.
  const GroupUnit* group_ = nullptr;
  int first_ = 0;
  int num_rows_ = 0;
  const uint8_t** codes_ = nullptr;
  const uint16_t** ranges_ = nullptr;
  float* chances_ = nullptr;
  float* weights_ = nullptr;
  float* sketched_weights_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_ROW_LIST_H_
