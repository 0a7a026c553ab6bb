#include "kernels/cpu/group_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/row_list.h"

namespace santa::cpu {
namespace {

// Of the rows left to chance that many of a key/value head, spread over its units, are enough to tell how far apart
// neighbours are (the error to 4 % or so); a unit with more takes one of so many runs of kChainRun.
constexpr int64_t kChainRows = 256;
constexpr int kChainRun = 8;

// Numbers of a chunk's heads side by side: heads take the same steps. Of fewer than four heads the last lanes are other
// rows', and have no effect.
using Lanes = float __attribute__((vector_size(4 * kChunkHeads)));

Lanes LoadLanes(const float* numbers) {
  Lanes lanes;
  std::memcpy(&lanes, numbers, sizeof(lanes));
  return lanes;
}

// Exact scores of the rows read, as weights against the largest, which becomes the partial's.
void ScoreRows(const GroupUnit& group, const RowList& rows, ReadScratch& scratch) {
  const Unit& unit = group.unit;
  const DecodeContext& context = unit.context;
  const DecodeShape& shape = context.shape;
  const auto row_bytes = static_cast<int64_t>(context.cache.layout().row_bytes());
  uint8_t* gathered = scratch.gathered.AtLeast(kBatchRows * row_bytes + PageMemory::kReadableTail);
  HeadVector* max = unit.scratch.max.AtLeast(shape.num_chunks);
  std::fill_n(max, shape.num_chunks, kNoScore);
  for (int begin = 0; begin < rows.num_rows(); begin += kBatchRows) {
    const int count = std::min(kBatchRows, rows.num_rows() - begin);
    for (int i = 0; i < count; ++i) {
      FetchRow(rows.beside_keys()[begin + i], row_bytes);
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

// The sums over rows: of a row's value v, or with a value sketch of v~ and of the difference d = v - v~, so that
// nothing small is left of large numbers: with weights w = e / pi, w~ = e~ / pi and b = w - w~ (without a sketch w~ = 0
// and v~ = v) a row adds b to the mass, and a = w v - w~ v~ = b v~ + w d to the sum.
class RowSums {
 public:
  RowSums(const GroupUnit& group, const RowList& rows, ReadScratch& scratch)
      : group_(group),
        rows_(rows),
        shape_(group.unit.context.shape),
        kernels_(group.unit.context.kernels),
        scratch_(scratch),
        corrects_(group.item.corrects()) {}

  void Add() {
    if (corrects_) ReadSketches();
    for (int chunk = 0; chunk < shape_.num_chunks; ++chunk) Weigh(chunk);
    // In batches, so that rows are in the L1 cache for all but the first of the sums that they go into.
    for (int begin = 0; begin < rows_.num_rows(); begin += kBatchRows) {
      for (int chunk = 0; chunk < shape_.num_chunks; ++chunk) {
        AddValues(begin, std::min(kBatchRows, rows_.num_rows() - begin), chunk);
      }
    }
    if (group_.errors().numbers != nullptr) AddErrors();
  }

 private:
  // Products of the rows of the chain: of a row's v~ and d with themselves and with those of the row before.
  enum Product {
    kMain,
    kBefore,
    kMainDifference,
    kDifference,
    kMainBefore,
    kDifferenceBefore,
    kDifferences,
    kProducts
  };

  void ReadSketches() {
    const auto size = static_cast<size_t>(rows_.num_rows()) * shape_.padded_dim;
    sketched_values_ = scratch_.sketched_values.AtLeast(size);
    differences_ = scratch_.differences.AtLeast(size);
    for (int begin = 0; begin < rows_.num_rows(); begin += kBatchRows) {
      const int count = std::min(kBatchRows, rows_.num_rows() - begin);
      for (int i = begin; i < begin + count; ++i) FetchRow(rows_.beside_values()[i], rows_.row_bytes());
      const int64_t packed = int64_t{begin} * shape_.padded_dim;
      kernels_.sketch_rows({.rows = rows_.values() + begin,
                            .codes = rows_.codes() + begin,
                            .ranges = rows_.ranges() + begin,
                            .bits = ValueBits(group_.unit.context.cache.layout().sketch),
                            .num_rows = count,
                            .head_dim = shape_.head_dim,
                            .sketched = sketched_values_ + packed,
                            .differences = differences_ + packed});
    }
  }

  // b of a chunk's heads; w is rows_.weights.
  float* main_weights(int chunk) const { return corrects_ ? rows_.sketched_weights(chunk) : rows_.weights(chunk); }

  // Weights become w and b.
  void Weigh(int chunk) {
    const int pitch = shape_.pitch(chunk);
    const WeightUnits units = UnitsOf(group_, chunk);
    HeadVector mass = {};
    float* exact = rows_.weights(chunk);
    float* sketched = corrects_ ? rows_.sketched_weights(chunk) : nullptr;
    for (int row = 0; row < rows_.num_rows(); ++row) {
      const float inverse = 1 / rows_.chance(row);
      for (int lane = 0; lane < pitch; ++lane) {
        const int at = row * pitch + lane;
        const float w = exact[at] * units.exact.lane[lane] * inverse;
        const float b = corrects_ ? w - sketched[at] * units.sketched.lane[lane] * inverse : w;
        exact[at] = w;
        if (corrects_) sketched[at] = b;
        mass.lane[lane] += b;
      }
    }
    for (int lane = 0; lane < shape_.heads(chunk); ++lane) {
      group_.unit.partial.sum[chunk * kChunkHeads + lane] = mass.lane[lane];
    }
  }

  void AddValues(int begin, int count, int chunk) {
    AccumulateArgs args = {.num_rows = count,
                           .head_dim = shape_.head_dim,
                           .heads = shape_.heads(chunk),
                           .weights = main_weights(chunk) + begin * shape_.pitch(chunk),
                           .sums = group_.unit.output(chunk * kChunkHeads)};
    if (!corrects_) {
      args.row_pointers = rows_.values() + begin;
      args.beside = chunk == 0 ? rows_.beside_values() + begin : nullptr;
      return kernels_.accumulate(args);
    }
    args.head_dim = shape_.padded_dim;
    args.rows = reinterpret_cast<const uint8_t*>(sketched_values_ + int64_t{begin} * shape_.padded_dim);
    kernels_.accumulate_packed(args);
    args.rows = reinterpret_cast<const uint8_t*>(differences_ + int64_t{begin} * shape_.padded_dim);
    args.weights = rows_.weights(chunk) + begin * shape_.pitch(chunk);
    kernels_.accumulate_packed(args);
  }

  void AddErrors() {
    const GroupErrors errors = group_.errors();
    std::fill_n(errors.numbers, GroupErrors::NumbersSize(shape_), 0.0f);
    std::fill_n(errors.vectors, GroupErrors::VectorsSize(shape_), 0.0f);
    errors.numbers[0] = LinkChain();
    if (length_ == 0) return;
    FindProducts();
    for (int i = 0; i < length_; ++i) errors.numbers[1] += taus_[i];
    for (int chunk = 0; chunk < shape_.num_chunks; ++chunk) {
      corrects_ ? AddSteps<true>(errors, chunk) : AddSteps<false>(errors, chunk);
      if (group_.unit.plan.method == Method::kSketched) AddStepVectors(errors, chunk);
    }
  }

  // The rows left to chance, in order, or runs of them; returns the sum of t over all.
  float LinkChain() {
    const auto most = static_cast<size_t>(rows_.num_rows()) + 1;
    chain_ = scratch_.chain.AtLeast(most);
    taus_ = scratch_.taus.AtLeast(most);
    mains_ = scratch_.chain_rows.AtLeast(2 * most);
    chain_differences_ = mains_ + most;
    int all = 0;
    float sum = 0;
    for (int row = 0; row < rows_.num_rows(); ++row) {
      chain_[all] = row;
      all += static_cast<int>(rows_.chance(row) < 1);
      sum += 1 - rows_.chance(row);
    }
    const auto enough = static_cast<int>(std::max<int64_t>(kChainRun, kChainRows / group_.unit.plan.num_splits));
    const int stride = std::max(1, all / enough) * kChainRun;
    length_ = 0;
    for (int begin = 0; begin < all; begin += stride) {
      // Where all runs are taken, they are one.
      const int end = stride == kChainRun ? all : std::min(begin + kChainRun, all);
      for (int i = begin; i < end; ++i) Link(chain_[i], /*has_step=*/i > begin);
      if (end == all) break;
    }
    return sum;
  }

  // `row` is the next one of the chain.
  void Link(int row, bool has_step) {
    const int64_t packed = int64_t{row} * shape_.padded_dim;
    mains_[length_] = corrects_ ? reinterpret_cast<const uint8_t*>(sketched_values_ + packed) : rows_.values()[row];
    if (corrects_) chain_differences_[length_] = reinterpret_cast<const uint8_t*>(differences_ + packed);
    taus_[length_] = has_step ? 1 - (rows_.chance(row) + rows_.chance(chain_[length_ - 1])) / 2 : 0;
    chain_[length_++] = row;
  }

  float* products(Product product) const { return products_ + int64_t{product} * length_; }

  // Product i of kBefore and its like is that of row i + 1 with row i.
  void FindProducts() {
    products_ = scratch_.products.AtLeast(static_cast<size_t>(kProducts) * length_);
    const auto find = [this](Product product, const uint8_t* const* first, const uint8_t* const* second, int count) {
      const PairArgs args = {.first = first,
                             .second = second,
                             .num_pairs = count,
                             .head_dim = corrects_ ? shape_.padded_dim : shape_.head_dim,
                             .out = products(product)};
      (corrects_ ? kernels_.dots_packed : kernels_.dots)(args);
    };
    find(kMain, mains_, mains_, length_);
    find(kBefore, mains_ + 1, mains_, length_ - 1);
    if (!corrects_) return;
    find(kMainDifference, mains_, chain_differences_, length_);
    find(kDifference, chain_differences_, chain_differences_, length_);
    find(kMainBefore, mains_ + 1, chain_differences_, length_ - 1);
    find(kDifferenceBefore, chain_differences_ + 1, mains_, length_ - 1);
    find(kDifferences, chain_differences_ + 1, chain_differences_, length_ - 1);
  }

  // b and w of row i of the chain.
  Lanes MainWeights(int chunk, int i) const {
    return LoadLanes(main_weights(chunk) + int64_t{chain_[i]} * shape_.pitch(chunk));
  }
  Lanes Weights(int chunk, int i) const {
    return LoadLanes(rows_.weights(chunk) + int64_t{chain_[i]} * shape_.pitch(chunk));
  }

  // |a|^2 of row i of the chain, and a . a of rows i and i + 1.
  template <bool kCorrects>
  Lanes Square(int i, Lanes b, Lanes w) const {
    const Lanes square = b * b * products(kMain)[i];
    if constexpr (!kCorrects) return square;
    return square + 2 * b * w * products(kMainDifference)[i] + w * w * products(kDifference)[i];
  }
  template <bool kCorrects>
  Lanes Cross(int i, Lanes b, Lanes w, Lanes next_b, Lanes next_w) const {
    const Lanes cross = b * next_b * products(kBefore)[i];
    if constexpr (!kCorrects) return cross;
    return cross + next_b * w * products(kMainBefore)[i] + next_w * b * products(kDifferenceBefore)[i] +
           next_w * w * products(kDifferences)[i];
  }

  template <bool kCorrects>
  void AddSteps(const GroupErrors& errors, int chunk) {
    Lanes steps = {};
    Lanes mass_steps = {};
    Lanes last_b = MainWeights(chunk, 0);
    Lanes last_w = Weights(chunk, 0);
    Lanes last_square = Square<kCorrects>(0, last_b, last_w);
    for (int i = 1; i < length_; ++i) {
      const float tau = taus_[i];
      const Lanes b = MainWeights(chunk, i);
      const Lanes w = Weights(chunk, i);
      const Lanes square = Square<kCorrects>(i, b, w);
      const Lanes step = b - last_b;
      steps += tau * (square + last_square - 2 * Cross<kCorrects>(i - 1, last_b, last_w, b, w));
      mass_steps += tau * step * step;
      last_b = b;
      last_w = w;
      last_square = square;
    }
    for (int lane = 0; lane < shape_.heads(chunk); ++lane) {
      const int head = chunk * kChunkHeads + lane;
      errors.numbers[2 + 2 * head] = steps[lane];
      errors.numbers[2 + 2 * head + 1] = mass_steps[lane];
    }
  }

  // Weights with which rows of a add up to the sum over steps of tau (step of b) (step of a). A row's last lanes are
  // written over by the next one's.
  void WeighSteps(int chunk, float* of_mains, float* of_differences) const {
    const int pitch = shape_.pitch(chunk);
    Lanes last_step = {};  // into row i
    Lanes b = MainWeights(chunk, 0);
    for (int i = 0; i < length_; ++i) {
      const bool ends = i + 1 == length_;
      const Lanes next = MainWeights(chunk, ends ? i : i + 1);
      const Lanes step = (ends ? 0 : taus_[i + 1]) * (next - b);
      const Lanes of_main = (last_step - step) * b;
      std::memcpy(of_mains + int64_t{i} * pitch, &of_main, sizeof(of_main));
      if (corrects_) {
        const Lanes of_difference = (last_step - step) * Weights(chunk, i);
        std::memcpy(of_differences + int64_t{i} * pitch, &of_difference, sizeof(of_difference));
      }
      last_step = step;
      b = next;
    }
  }

  void AddStepVectors(const GroupErrors& errors, int chunk) {
    const int pitch = shape_.pitch(chunk);
    const int64_t size = int64_t{length_} * pitch + kChunkHeads;
    float* of_mains = scratch_.step_weights.AtLeast(2 * size);
    float* of_differences = of_mains + size;
    WeighSteps(chunk, of_mains, of_differences);
    AccumulateArgs args = {.row_pointers = mains_,
                           .num_rows = length_,
                           .head_dim = corrects_ ? shape_.padded_dim : shape_.head_dim,
                           .heads = shape_.heads(chunk),
                           .weights = of_mains,
                           .sums = errors.vectors + int64_t{chunk} * kChunkHeads * shape_.padded_dim};
    if (!corrects_) {
      args.beside = chunk == 0 ? rows_.beside_rest(length_) : nullptr;
      return kernels_.accumulate(args);
    }
    kernels_.accumulate_packed(args);
    args.row_pointers = chain_differences_;
    args.weights = of_differences;
    kernels_.accumulate_packed(args);
  }

  const GroupUnit& group_;
  const RowList& rows_;
  const DecodeShape& shape_;
  const RowKernels& kernels_;
  ReadScratch& scratch_;
  const bool corrects_;
  float* sketched_values_ = nullptr;
  float* differences_ = nullptr;
  int length_ = 0;  // of the chain
  int32_t* chain_ = nullptr;
  float* taus_ = nullptr;
  const uint8_t** mains_ = nullptr;
  const uint8_t** chain_differences_ = nullptr;
  float* products_ = nullptr;
};

}  // namespace

void ReadRows(GroupRun groups, ReadScratch& scratch) {
  RowList rows(groups, scratch);
  for (size_t u = 0; u < groups.size(); ++u) {
    const GroupUnit& group = groups[u];
    ClearPartial(group.unit);
    rows.Take(u);
    *group.unit.partial.rows = rows.num_rows();
    if (group.unit.plan.method == Method::kSketched) ScoreRows(group, rows, scratch);
    RowSums(group, rows, scratch).Add();
  }
}

}  // namespace santa::cpu
