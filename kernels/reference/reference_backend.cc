#include "kernels/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/reference/drawn_queries.h"
#include "kernels/reference/group_rows.h"
#include "kernels/reference/number_format.h"
#include "kernels/reference/row_weights.h"
#include "kernels/sampling/inclusion.h"
#include "kernels/sampling/score.h"
#include "kernels/sampling/sketch.h"
#include "kernels/sampling/standard_error.h"
#include "kernels/sampling/tiles.h"
#include "kernels/sampling/uniform.h"

namespace santa::reference {
namespace {

double Load(DType dtype, const void* data, size_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  return Decode(dtype, static_cast<const uint16_t*>(data)[index]);
}

void Store(DType dtype, void* data, size_t index, double value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] = static_cast<float>(value);
  } else {
    static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(Encode(dtype, Round(dtype, value)));
  }
}

// Sums of one head, or one run of it, for its standard error.
class ErrorTerms {
 public:
  explicit ErrorTerms(size_t dims) : sum_(dims, 0.0) {}

  // Of the next row in order.
  void Add(float t, const std::vector<double>& z) {
    if (t == 0) return;
    if (steps_.t > 0) {
      const float tau = (t + last_t_) / 2;
      double step = 0;
      for (size_t d = 0; d < z.size(); ++d) step += (z[d] - last_[d]) * (z[d] - last_[d]);
      steps_.pairs += tau;
      steps_.steps += static_cast<float>(tau * step);
    }
    steps_.t += t;
    last_t_ = t;
    last_ = z;
    all_.t += t;
    all_.t_squared += t;  // of independent draws, of which a row's t are so many
    for (size_t d = 0; d < z.size(); ++d) {
      all_.z_squared += static_cast<float>(t * z[d] * z[d]);
      sum_[d] += t * z[d];
    }
  }

  bool IsOneRow() const { return steps_.t > 0 && steps_.pairs == 0; }
  double OfRowsInOrder() const { return sampling::SquaredError(steps_); }
  double OfIndependentDraws() const {
    double squared = 0;
    for (const double x : sum_) squared += x * x;
    return sampling::SquaredError(all_, static_cast<float>(squared));
  }

 private:
  sampling::StepSums steps_;
  float last_t_ = 0;
  std::vector<double> last_;
  sampling::ErrorSums all_;
  std::vector<double> sum_;
};

class ReferenceBackend : public Backend {
 public:
  ReferenceBackend(const KvLayout& layout, int32_t num_pages, KvScales scales)
      : layout_(layout),
        num_pages_(num_pages),
        scales_(std::move(scales)),
        memory_(static_cast<size_t>(num_pages) * layout.page_bytes() / SizeOf(layout.dtype), 0.0f),
        sketches_(layout.sketch == Sketch::kNone ? 0 : memory_.size(), 0.0f) {}

  std::string_view name() const override { return "reference"; }
  std::string device() const override { return "plain loops on one thread"; }
  const KvLayout& layout() const override { return layout_; }
  int32_t num_pages() const override { return num_pages_; }

  absl::Status Supports(const AttentionOptions& options, int64_t /*num_tokens*/) const override {
    if (options.target_relative_error > 0) {
      return absl::UnimplementedError("target_relative_error is set; the reference backend takes sample counts alone");
    }
    return SupportsLayout(options, layout_);
  }

  absl::Status Append(std::span<const KvAppend> appends) override {
    for (const KvAppend& append : appends) {
      ForEach(append, [](float& stored, float value) { stored = value; });
      SketchFullPages(append);
    }
    return absl::OkStatus();
  }

  absl::Status Compare(std::span<const KvAppend> appends, std::span<bool> matches) override {
    for (size_t i = 0; i < appends.size(); ++i) {
      bool match = true;
      ForEach(appends[i], [&match](float stored, float value) {
        match = match && Encode(DType::kFloat32, stored) == Encode(DType::kFloat32, value);
      });
      matches[i] = match;
    }
    return absl::OkStatus();
  }

  absl::Status CopyPages(std::span<const PageCopy> copies) override {
    const size_t size = layout_.layer_page_bytes() / SizeOf(layout_.dtype);
    for (const PageCopy& copy : copies) {
      for (int32_t layer = 0; layer < layout_.num_layers; ++layer) {
        const size_t pages = static_cast<size_t>(layer) * num_pages_;
        for (std::vector<float>* memory : {&memory_, &sketches_}) {
          if (memory->empty()) continue;
          std::copy_n(memory->begin() + (pages + copy.from) * size, size, memory->begin() + (pages + copy.to) * size);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Decode(std::span<const DecodeItem> items) override {
    for (const DecodeItem& item : items) DecodeOne(item);
    return absl::OkStatus();
  }

 private:
  // Where K (or V) of one head of one token lies: [layer][page][K|V][kv_head][token][D].
  size_t RowIndex(int32_t layer, const int32_t* page_table, int64_t token, bool value, int32_t kv_head) const {
    const size_t page = static_cast<size_t>(layer) * num_pages_ + page_table[token / layout_.page_size];
    return (((page * 2 + value) * layout_.num_kv_heads + kv_head) * layout_.page_size + token % layout_.page_size) *
           layout_.head_dim;
  }

  float Scale(const std::vector<float>& scales, int32_t layer, int32_t kv_head) const {
    return scales.empty() ? 1.0f : scales[static_cast<size_t>(layer) * layout_.num_kv_heads + kv_head];
  }

  // f(stored, rounded) for every number of the append.
  template <typename F>
  void ForEach(const KvAppend& append, F f) {
    size_t at = 0;
    for (int64_t token = append.position; token < append.position + append.num_tokens; ++token) {
      for (int32_t head = 0; head < layout_.num_kv_heads; ++head) {
        float* k = &memory_[RowIndex(append.layer, append.page_table, token, false, head)];
        float* v = &memory_[RowIndex(append.layer, append.page_table, token, true, head)];
        for (int32_t d = 0; d < layout_.head_dim; ++d, ++at) {
          const auto k_sent = static_cast<float>(Load(append.dtype, append.k, at));
          const auto v_sent = static_cast<float>(Load(append.dtype, append.v, at));
          f(k[d], static_cast<float>(Round(layout_.dtype, k_sent / Scale(scales_.k, append.layer, head))));
          f(v[d], static_cast<float>(Round(layout_.dtype, v_sent / Scale(scales_.v, append.layer, head))));
        }
      }
    }
  }

  // Of every page that the append fills: what the sketch makes of it, column by column.
  void SketchFullPages(const KvAppend& append) {
    if (sketches_.empty()) return;
    const int64_t end = append.position + append.num_tokens;
    for (int64_t page = append.position / layout_.page_size; (page + 1) * layout_.page_size <= end; ++page) {
      for (int32_t head = 0; head < layout_.num_kv_heads; ++head) {
        for (const bool value : {false, true}) {
          const int bits = value ? ValueBits(layout_.sketch) : KeyBits(layout_.sketch);
          if (bits == 0) continue;
          const size_t first = RowIndex(append.layer, append.page_table, page * layout_.page_size, value, head);
          for (int32_t d = 0; d < layout_.head_dim; ++d) SketchColumn(bits, first + d);
        }
      }
    }
  }

  void SketchColumn(int bits, size_t first) {
    float least = std::numeric_limits<float>::infinity();
    float most = -least;
    const auto at = [&](int64_t token) { return first + static_cast<size_t>(token) * layout_.head_dim; };
    for (int32_t t = 0; t < layout_.page_size; ++t) {
      least = std::fmin(least, memory_[at(t)]);
      most = std::fmax(most, memory_[at(t)]);
    }
    const sampling::ColumnRange range = sampling::RangeOf(least, most, bits);
    const auto low = static_cast<float>(Round(DType::kFloat16, range.low));
    const auto step = static_cast<float>(Round(DType::kFloat16, range.step));
    for (int32_t t = 0; t < layout_.page_size; ++t) {
      const uint32_t code = sampling::CodeOf(memory_[at(t)], low, 1 / step, bits);
      sketches_[at(t)] = low + step * static_cast<float>(code);
    }
  }

  void DecodeOne(const DecodeItem& item) {
    const int64_t first = sampling::VisibleBegin(item.num_tokens, item.options.window);
    const int64_t visible = item.num_tokens - first;
    const bool group = item.options.sample_count < visible &&
                       (item.options.method == Method::kCoordinated || item.options.method == Method::kSketched);
    int64_t rows_read = 0;
    int64_t features_read = 0;
    for (int32_t kv_head = 0; kv_head < layout_.num_kv_heads; ++kv_head) {
      std::vector<bool> read(visible, false);
      const std::vector<std::vector<double>> queries = Queries(item, kv_head, &features_read);
      if (group) {
        DecodeGroup(item, kv_head, queries, first, read);
      } else {
        for (int32_t g = 0; g < layout_.group_size(); ++g) {
          DecodeHead(item, kv_head, kv_head * layout_.group_size() + g, queries[g], first, read);
        }
      }
      rows_read += std::count(read.begin(), read.end(), true);
    }
    if (item.statistics == nullptr) return;
    *item.statistics = item.options.score_draws == 0 ? MakeStatistics(layout_, item, rows_read)
                                                     : MakeStatistics(layout_, item, rows_read, features_read);
  }

  // Of a group, as its scores are made with them; *features_read grows by those that score draws leave to be read.
  std::vector<std::vector<double>> Queries(const DecodeItem& item, int32_t kv_head, int64_t* features_read) const {
    std::vector<std::vector<double>> queries(layout_.group_size(), std::vector<double>(layout_.head_dim));
    size_t at = static_cast<size_t>(kv_head) * layout_.group_size() * layout_.head_dim;
    for (std::vector<double>& q : queries) {
      for (double& x : q) x = Load(item.io_dtype, item.q, at++);
    }
    if (item.options.score_draws > 0) {
      *features_read += DrawQueries(StreamOf(item, kv_head), item.options.score_draws, queries);
    }
    return queries;
  }

  static sampling::RandomStream StreamOf(const DecodeItem& item, int32_t head) {
    return sampling::MakeRandomStream(item.options.seed, item.sampling_key, item.layer, item.num_tokens - 1, head);
  }

  // The score of a token by its key, or by the key that `memory` has in its place.
  float ScoreOf(const DecodeItem& item, const std::vector<double>& q, const std::vector<float>& memory, int64_t token,
                int32_t kv_head) const {
    const float* k = &memory[RowIndex(item.layer, item.page_table, token, false, kv_head)];
    double dot = 0;
    for (int32_t d = 0; d < layout_.head_dim; ++d) {
      if (item.options.score_draws > 0 && q[d] == 0) continue;  // not read
      dot += q[d] * k[d];
    }
    const double k_scale = Scale(scales_.k, item.layer, kv_head);
    return sampling::Score(static_cast<float>(dot * k_scale),
                           sampling::EffectiveScale(item.options.scale, layout_.head_dim), item.options.soft_cap);
  }

  const float* ValueOf(const DecodeItem& item, const std::vector<float>& memory, int64_t token, int32_t kv_head) const {
    return &memory[RowIndex(item.layer, item.page_table, token, true, kv_head)];
  }

  // lse with the head's sink beside `lse`.
  static double WithSink(const DecodeItem& item, int32_t h, double lse) {
    if (item.sink_logits == nullptr) return lse;
    const double sink = item.sink_logits[h];
    const double most = std::max(lse, sink);
    return most + std::log(std::exp(lse - most) + std::exp(sink - most));
  }

  // o is without the values' scale.
  void Finish(const DecodeItem& item, int32_t kv_head, int32_t h, const std::vector<double>& o, double lse,
              double squared_error) const {
    const double scale = Scale(scales_.v, item.layer, kv_head);
    double norm = 0;
    for (size_t d = 0; d < o.size(); ++d) {
      Store(item.io_dtype, item.o, static_cast<size_t>(h) * o.size() + d, scale * o[d]);
      norm += o[d] * o[d];
    }
    item.lse[h] = static_cast<float>(lse);
    if (item.relative_standard_error != nullptr) {
      item.relative_standard_error[h] =
          item.options.score_draws > 0
              ? std::numeric_limits<float>::quiet_NaN()
              : sampling::RelativeError(static_cast<float>(squared_error), static_cast<float>(norm));
    }
  }

  void DecodeHead(const DecodeItem& item, int32_t kv_head, int32_t h, const std::vector<double>& q, int64_t first,
                  std::vector<bool>& read) {
    std::vector<float> scores;
    for (int64_t i = first; i < item.num_tokens; ++i) scores.push_back(ScoreOf(item, q, memory_, i, kv_head));
    const RowWeights rows(item.options, StreamOf(item, h), first, std::move(scores));
    const double lse = WithSink(item, h, rows.lse());
    const double share = std::exp(rows.lse() - lse);
    std::vector<double> o(layout_.head_dim, 0.0);
    const bool exact = ReadsAllValues(item);
    std::map<int64_t, ErrorTerms> errors;
    for (size_t i = 0; i < read.size(); ++i) {
      const double weight = rows.weights()[i];
      if (weight == 0 && !exact) continue;
      read[i] = true;
      const float* v = ValueOf(item, memory_, first + static_cast<int64_t>(i), kv_head);
      std::vector<double> z(o.size());
      const RowWeights::Chance& chance = rows.chances()[i];
      for (size_t d = 0; d < o.size(); ++d) {
        o[d] += share * weight * v[d];
        z[d] = share * chance.weight * v[d];
      }
      if (!exact) errors.try_emplace(chance.run, o.size()).first->second.Add(chance.fluctuation, z);
    }
    Finish(item, kv_head, h, o, lse, exact ? 0 : SquaredErrorOf(item, first, errors));
  }

  // Of one head, by the runs of rows that it was drawn from.
  static double SquaredErrorOf(const DecodeItem& item, int64_t first, const std::map<int64_t, ErrorTerms>& runs) {
    const Method method = item.options.method;
    const uint32_t draws = item.options.sample_count;
    // A single independent draw says nothing of its error.
    if (method == Method::kSanta && draws == 1) return std::nan("");
    if (method == Method::kS2antaFlash) {
      const sampling::Tiling tiling = sampling::MakeTiling(first, item.num_tokens, draws);
      if (draws / tiling.count < sampling::kLeastToldBudget) return std::nan("");
    }
    double error = 0;
    for (const auto& [run, terms] : runs) {
      // A tile in which one row alone is left to chance is a tile in which little is.
      if (method == Method::kS2antaFlash && terms.IsOneRow()) continue;
      error += method == Method::kSanta ? terms.OfIndependentDraws() : terms.OfRowsInOrder();
    }
    return error;
  }

  // A row that was read, for one head: o and the mass are sums of these.
  struct GroupTerm {
    double pi;
    double weight;           // e / pi, of the row itself
    double sketched_weight;  // e~ / pi, of the row in the sketch; 0 without a value sketch
    const float* v;
    const float* sketched_v;
  };

  void DecodeGroup(const DecodeItem& item, int32_t kv_head, const std::vector<std::vector<double>>& queries,
                   int64_t first, std::vector<bool>& read) {
    const bool sketched = item.options.method == Method::kSketched;
    const int64_t full = sketched ? item.num_tokens / layout_.page_size * layout_.page_size : item.num_tokens;
    const int32_t first_head = kv_head * layout_.group_size();
    GroupScores scores{.first = first, .exact = {}, .scored = {}, .candidate = {}};
    for (int64_t i = first; i < item.num_tokens; ++i) scores.candidate.push_back(i < full);
    for (const std::vector<double>& q : queries) {
      scores.exact.emplace_back();
      scores.scored.emplace_back();
      for (int64_t i = first; i < item.num_tokens; ++i) {
        scores.exact.back().push_back(ScoreOf(item, q, memory_, i, kv_head));
        scores.scored.back().push_back(sketched && i < full ? ScoreOf(item, q, sketches_, i, kv_head)
                                                            : scores.exact.back().back());
      }
    }
    const std::vector<uint32_t> inclusions = Inclusions(scores, item.options);
    read = RowsRead(scores, inclusions, StreamOf(item, kv_head));
    for (int32_t g = 0; g < layout_.group_size(); ++g) {
      FinishGroupHead(item, kv_head, first_head + g, scores, g, inclusions, read,
                      sketched && ValueBits(layout_.sketch) > 0);
    }
  }

  // The rows that were read, for one head, and in `sum` and `mass` what the sketch says of all candidates: both with
  // exp(unit) as 1.
  std::vector<GroupTerm> TermsOf(const DecodeItem& item, int32_t kv_head, const GroupScores& scores, int32_t in_group,
                                 const std::vector<uint32_t>& inclusions, const std::vector<bool>& read, bool corrects,
                                 double unit, std::vector<double>& sum, double& mass) const {
    std::vector<GroupTerm> terms;
    for (size_t i = 0; i < read.size(); ++i) {
      const int64_t token = scores.first + static_cast<int64_t>(i);
      const double scored = std::exp(scores.scored[in_group][i] - unit);
      const float* sketched_v = corrects && scores.candidate[i] ? ValueOf(item, sketches_, token, kv_head) : nullptr;
      if (sketched_v != nullptr) {
        mass += scored;
        for (size_t d = 0; d < sum.size(); ++d) sum[d] += scored * sketched_v[d];
      }
      if (!read[i]) continue;
      const double pi = inclusions[i] * 0x1p-20;
      terms.push_back({.pi = pi,
                       .weight = std::exp(scores.exact[in_group][i] - unit) / pi,
                       .sketched_weight = sketched_v != nullptr ? scored / pi : 0,
                       .v = ValueOf(item, memory_, token, kv_head),
                       .sketched_v = sketched_v});
    }
    return terms;
  }

  void FinishGroupHead(const DecodeItem& item, int32_t kv_head, int32_t h, const GroupScores& scores, int32_t in_group,
                       const std::vector<uint32_t>& inclusions, const std::vector<bool>& read, bool corrects) {
    const bool sketched = item.options.method == Method::kSketched;
    const double scored_lse = LogSumExp(scores.scored[in_group]);
    // Of the order of the largest weight, whatever the sketch thinks of it.
    double unit = sketched && !corrects ? -std::numeric_limits<double>::infinity() : scored_lse;
    for (size_t i = 0; sketched && i < read.size(); ++i) {
      if (read[i]) unit = std::fmax(unit, scores.exact[in_group][i]);
    }
    std::vector<double> sum(layout_.head_dim, 0.0);
    double mass = 0;
    std::vector<GroupTerm> terms =
        TermsOf(item, kv_head, scores, in_group, inclusions, read, corrects, unit, sum, mass);
    const double of_sketch = mass;
    for (const GroupTerm& term : terms) {
      mass += term.weight - term.sketched_weight;
      for (size_t d = 0; d < sum.size(); ++d) {
        sum[d] += term.weight * term.v[d] - (term.sketched_weight > 0 ? term.sketched_weight * term.sketched_v[d] : 0);
      }
    }
    if (corrects && mass < of_sketch * sampling::kLeastCorrectedMass) {
      return FinishGroupHead(item, kv_head, h, scores, in_group, inclusions, read, false);
    }
    // COORDINATED's scores are exact, hence its mass: all of it is there, whichever rows are read.
    if (!sketched) mass = 1 + 0 * scored_lse;
    if (terms.empty() && mass == 0) {  // no row was read
      unit = scored_lse;
      mass = 1;
    }
    const double lse = WithSink(item, h, unit + std::log(mass));
    const double share = std::exp(unit - lse);  // of a weight in the answer
    for (double& x : sum) x *= share;
    ErrorTerms errors(sum.size());
    for (const GroupTerm& term : terms) {
      std::vector<double> z(sum.size());
      for (size_t d = 0; d < z.size(); ++d) {
        const double o = sketched ? sum[d] : 0;
        z[d] = share * term.weight * (term.v[d] - o);
        if (term.sketched_weight > 0) z[d] -= share * term.sketched_weight * (term.sketched_v[d] - o);
      }
      errors.Add(static_cast<float>(1 - term.pi), z);
    }
    // Without a row there is no telling.
    Finish(item, kv_head, h, sum, lse, terms.empty() ? std::nan("") : errors.OfRowsInOrder());
  }

  const KvLayout layout_;
  const int32_t num_pages_;
  const KvScales scales_;
  std::vector<float> memory_;    // as stored: every storage type's numbers are floats
  std::vector<float> sketches_;  // what the sketches say of full pages, in the same places; empty without
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeReferenceBackend(const KvLayout& layout, int32_t num_pages) {
  return MakeScaledReferenceBackend(layout, num_pages, {});
}

absl::StatusOr<std::unique_ptr<Backend>> MakeScaledReferenceBackend(const KvLayout& layout, int32_t num_pages,
                                                                    const KvScales& scales) {
  if (absl::Status status = Validate(layout); !status.ok()) return status;
  if (absl::Status status = Validate(scales, layout); !status.ok()) return status;
  if (num_pages < 1) return absl::InvalidArgumentError("num_pages must be at least 1");
  return std::make_unique<ReferenceBackend>(layout, num_pages, scales);
}

}  // namespace santa::reference
