#include "kernels/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/reference/number_format.h"
#include "kernels/sampling/draws.h"
#include "kernels/sampling/mass.h"
#include "kernels/sampling/score.h"
#include "kernels/sampling/tile_budgets.h"
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

// The rows that one query head takes, and with what weight each: o = sum_i weight_i v_i over the visible tokens.
class RowWeights {
 public:
  RowWeights(const AttentionOptions& options, const sampling::RandomStream& stream, int64_t first,
             std::vector<float> scores)
      : options_(options), stream_(stream), first_(first), scores_(std::move(scores)), weights_(scores_.size(), 0.0) {
    largest_ = *std::max_element(scores_.begin(), scores_.end());
    for (const float score : scores_) sum_ += std::exp(static_cast<double>(score) - largest_);
    // A NaN score is a row read by mistake: let it show in every output.
    if (std::any_of(scores_.begin(), scores_.end(), [](float s) { return std::isnan(s); })) sum_ = std::nan("");
    Choose();
  }

  double lse() const { return largest_ + std::log(sum_); }
  const std::vector<double>& weights() const { return weights_; }

 private:
  void Choose() {
    const auto rows = static_cast<int64_t>(scores_.size());
    if (options_.method == Method::kExact || options_.sample_count >= rows) {
      for (int64_t i = 0; i < rows; ++i) weights_[i] = std::exp(static_cast<double>(scores_[i]) - largest_) / sum_;
      return;
    }
    switch (options_.method) {
      case Method::kExact:
        return;
      case Method::kSanta:
      case Method::kStratified:
        return DrawEach();
      case Method::kSystematic:
        return DrawSystematic(0, rows, options_.sample_count, sampling::Random64(stream_, sampling::Purpose::kDraw, 0),
                              1.0 / options_.sample_count);
      case Method::kS2antaFlash:
      case Method::kS2antaProp:
        return DrawTiles();
    }
  }

  // Inclusive sums of the masses of rows [begin, end), against their own largest score.
  std::vector<uint64_t> Cumulative(int64_t begin, int64_t end) const {
    const float largest = *std::max_element(scores_.begin() + begin, scores_.begin() + end);
    std::vector<uint64_t> sums;
    uint64_t sum = 0;
    for (int64_t i = begin; i < end; ++i) sums.push_back(sum += sampling::RowMass(std::exp(scores_[i] - largest)));
    return sums;
  }

  void DrawEach() {
    const std::vector<uint64_t> sums = Cumulative(0, static_cast<int64_t>(scores_.size()));
    const sampling::DrawGrid grid = sampling::MakeDrawGrid(sums.back(), options_.sample_count);
    for (uint32_t draw = 0; draw < grid.draws; ++draw) {
      const uint64_t random = sampling::Random64(stream_, sampling::Purpose::kDraw, draw);
      const uint64_t offset = sampling::UniformBelow(random, grid.total);
      const uint64_t position = options_.method == Method::kSanta ? offset : sampling::DrawPosition(grid, draw, offset);
      weights_[sampling::RowAt(sums.data(), static_cast<int64_t>(sums.size()), position)] += 1.0 / grid.draws;
    }
  }

  void DrawSystematic(int64_t begin, int64_t end, uint32_t draws, uint64_t random, double weight) {
    const std::vector<uint64_t> sums = Cumulative(begin, end);
    const sampling::DrawGrid grid = sampling::MakeDrawGrid(sums.back(), draws);
    sampling::SystematicCursor cursor(grid, sampling::UniformBelow(random, grid.total));
    for (int64_t i = begin; i < end; ++i) {
      for (; cursor.position() < sums[i - begin]; cursor.Advance()) weights_[i] += weight;
    }
  }

  void DrawTiles() {
    const uint32_t draws = options_.sample_count;
    const sampling::Tiling tiling = sampling::MakeTiling(first_, first_ + static_cast<int64_t>(scores_.size()), draws);
    std::vector<uint64_t> masses;
    for (int64_t t = 0; t < tiling.count; ++t) {
      const int64_t begin = sampling::TileBegin(tiling, t) - first_;
      const int64_t end = sampling::TileEnd(tiling, t) - first_;
      const float largest = *std::max_element(scores_.begin() + begin, scores_.begin() + end);
      masses.push_back(sampling::TileMass(Cumulative(begin, end).back(), std::exp(largest - largest_)));
    }
    const uint64_t total = std::accumulate(masses.begin(), masses.end(), uint64_t{0});
    std::vector<uint32_t> budgets(masses.size());
    if (options_.method == Method::kS2antaFlash) {
      for (int64_t t = 0; t < tiling.count; ++t) budgets[t] = sampling::FlashBudget(tiling, t, draws);
    } else if (options_.budget_rounding == BudgetRounding::kLargestRemainder) {
      std::vector<uint64_t> scratch(masses.size());
      sampling::LargestRemainderBudgets(masses.data(), tiling.count, total, draws, budgets.data(), scratch.data());
    } else {
      const uint64_t random = sampling::Random64(stream_, sampling::Purpose::kBudget, 0);
      sampling::SystematicBudgets(masses.data(), tiling.count, sampling::MakeDrawGrid(total, draws),
                                  sampling::UniformBelow(random, total), budgets.data());
    }
    for (int64_t t = 0; t < tiling.count; ++t) {
      if (budgets[t] == 0 || masses[t] == 0) continue;
      const double weight = options_.method == Method::kS2antaFlash
                                ? static_cast<double>(masses[t]) / static_cast<double>(total) / budgets[t]
                                : 1.0 / draws;
      const auto number = static_cast<uint32_t>(tiling.first + t);
      DrawSystematic(sampling::TileBegin(tiling, t) - first_, sampling::TileEnd(tiling, t) - first_, budgets[t],
                     sampling::Random64(stream_, sampling::Purpose::kTile, number), weight);
    }
  }

  const AttentionOptions& options_;
  const sampling::RandomStream stream_;
  const int64_t first_;
  const std::vector<float> scores_;
  std::vector<double> weights_;
  float largest_ = 0;
  double sum_ = 0;
};

class ReferenceBackend : public Backend {
 public:
  ReferenceBackend(const KvLayout& layout, int32_t num_pages, KvScales scales)
      : layout_(layout),
        num_pages_(num_pages),
        scales_(std::move(scales)),
        memory_(static_cast<size_t>(num_pages) * layout.page_bytes() / SizeOf(layout.dtype), 0.0f) {}

  std::string_view name() const override { return "reference"; }
  std::string device() const override { return "plain loops on one thread"; }
  const KvLayout& layout() const override { return layout_; }
  int32_t num_pages() const override { return num_pages_; }

  absl::Status Append(std::span<const KvAppend> appends) override {
    for (const KvAppend& append : appends) {
      ForEach(append, [](float& stored, float value) { stored = value; });
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
        std::copy_n(memory_.begin() + (pages + copy.from) * size, size, memory_.begin() + (pages + copy.to) * size);
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

  void DecodeOne(const DecodeItem& item) {
    const int64_t first = sampling::VisibleBegin(item.num_tokens, item.options.window);
    const int64_t visible = item.num_tokens - first;
    int64_t rows_read = 0;
    for (int32_t kv_head = 0; kv_head < layout_.num_kv_heads; ++kv_head) {
      std::vector<bool> read(visible, false);
      for (int32_t h = kv_head * layout_.group_size(); h < (kv_head + 1) * layout_.group_size(); ++h) {
        DecodeHead(item, kv_head, h, first, read);
      }
      rows_read += std::count(read.begin(), read.end(), true);
    }
    if (item.statistics != nullptr) {
      const auto row = static_cast<int64_t>(layout_.row_bytes());
      const int64_t all = visible * layout_.num_kv_heads;
      *item.statistics = {.visible_tokens = visible,
                          .value_rows_read = rows_read,
                          .kv_bytes_read = (all + rows_read) * row,
                          .dense_kv_bytes = 2 * all * row};
    }
  }

  void DecodeHead(const DecodeItem& item, int32_t kv_head, int32_t h, int64_t first, std::vector<bool>& read) {
    const int32_t dims = layout_.head_dim;
    const float scale = sampling::EffectiveScale(item.options.scale, dims);
    std::vector<double> q(dims);
    for (int32_t d = 0; d < dims; ++d) q[d] = Load(item.io_dtype, item.q, static_cast<size_t>(h) * dims + d);
    const double k_scale = Scale(scales_.k, item.layer, kv_head);
    std::vector<float> scores;
    for (int64_t i = first; i < item.num_tokens; ++i) {
      const float* k = &memory_[RowIndex(item.layer, item.page_table, i, false, kv_head)];
      double dot = 0;
      for (int32_t d = 0; d < dims; ++d) dot += q[d] * k[d];
      scores.push_back(sampling::Score(static_cast<float>(dot * k_scale), scale, item.options.soft_cap));
    }
    const RowWeights rows(
        item.options,
        sampling::MakeRandomStream(item.options.seed, item.sampling_key, item.layer, item.num_tokens - 1, h), first,
        std::move(scores));
    double lse = rows.lse();
    if (item.sink_logits != nullptr) {
      const double sink = item.sink_logits[h];
      const double most = std::max(lse, sink);
      lse = most + std::log(std::exp(lse - most) + std::exp(sink - most));
    }
    std::vector<double> o(dims, 0.0);
    const bool exact = item.options.method == Method::kExact || item.options.sample_count >= read.size();
    for (size_t i = 0; i < read.size(); ++i) {
      const double weight = rows.weights()[i];
      if (weight == 0 && !exact) continue;
      read[i] = true;
      const float* v = &memory_[RowIndex(item.layer, item.page_table, first + static_cast<int64_t>(i), true, kv_head)];
      for (int32_t d = 0; d < dims; ++d) o[d] += weight * v[d];
    }
    const double factor = std::exp(rows.lse() - lse) * Scale(scales_.v, item.layer, kv_head);
    for (int32_t d = 0; d < dims; ++d) {
      Store(item.io_dtype, item.o, static_cast<size_t>(h) * dims + d, factor * o[d]);
    }
    item.lse[h] = static_cast<float>(lse);
  }

  const KvLayout layout_;
  const int32_t num_pages_;
  const KvScales scales_;
  std::vector<float> memory_;  // as stored: every storage type's numbers are floats
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
