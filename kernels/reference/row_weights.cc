#include "kernels/reference/row_weights.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/sampling/draws.h"
#include "kernels/sampling/mass.h"
#include "kernels/sampling/standard_error.h"
#include "kernels/sampling/tile_budgets.h"
#include "kernels/sampling/tiles.h"

namespace santa::reference {

RowWeights::RowWeights(const AttentionOptions& options, const sampling::RandomStream& stream, int64_t first,
                       std::vector<float> scores)
    : options_(options),
      stream_(stream),
      first_(first),
      scores_(std::move(scores)),
      weights_(scores_.size(), 0.0),
      chances_(scores_.size()) {
  largest_ = *std::max_element(scores_.begin(), scores_.end());
  for (const float score : scores_) sum_ += std::exp(static_cast<double>(score) - largest_);
  // A NaN score is a row read by mistake: let it show in every output.
  if (std::any_of(scores_.begin(), scores_.end(), [](float s) { return std::isnan(s); })) sum_ = std::nan("");
  Choose();
  if (options_.method != Method::kS2antaProp) return;
  // Near enough one draw over the whole line, for its budgets are too: what a row weighs is the same in every tile.
  const std::vector<uint64_t> sums = Cumulative(0, static_cast<int64_t>(scores_.size()));
  for (size_t i = 0; i < chances_.size(); ++i) {
    if (weights_[i] == 0 || chances_[i].weight == 0) continue;
    const uint64_t mass = sums[i] - (i == 0 ? 0 : sums[i - 1]);
    const double expected = static_cast<double>(mass) * options_.sample_count / static_cast<double>(sums.back());
    chances_[i] = {
        .fluctuation = sampling::Fluctuation(static_cast<float>(expected)), .weight = chances_[i].weight, .run = 0};
  }
}

double RowWeights::lse() const { return largest_ + std::log(sum_); }

void RowWeights::Choose() {
  const auto rows = static_cast<int64_t>(scores_.size());
  if (!DrawsValues(options_.method) || options_.sample_count >= rows) {
    for (int64_t i = 0; i < rows; ++i) weights_[i] = std::exp(static_cast<double>(scores_[i]) - largest_) / sum_;
    return;
  }
  switch (options_.method) {
    case Method::kExact:
    case Method::kBernoulliQk:
    case Method::kCoordinated:  // see group_rows.h
    case Method::kSketched:
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
std::vector<uint64_t> RowWeights::Cumulative(int64_t begin, int64_t end) const {
  const float largest = *std::max_element(scores_.begin() + begin, scores_.begin() + end);
  std::vector<uint64_t> sums;
  uint64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sums.push_back(sum += sampling::RowMass(std::exp(scores_[i] - largest)));
  return sums;
}

void RowWeights::DrawEach() {
  const std::vector<uint64_t> sums = Cumulative(0, static_cast<int64_t>(scores_.size()));
  const sampling::DrawGrid grid = sampling::MakeDrawGrid(sums.back(), options_.sample_count);
  for (uint32_t draw = 0; draw < grid.draws; ++draw) {
    const uint64_t random = sampling::Random64(stream_, sampling::Purpose::kDraw, draw);
    const uint64_t offset = sampling::UniformBelow(random, grid.total);
    const uint64_t position = options_.method == Method::kSanta ? offset : sampling::DrawPosition(grid, draw, offset);
    weights_[sampling::RowAt(sums.data(), static_cast<int64_t>(sums.size()), position)] += 1.0 / grid.draws;
  }
  const double strata = static_cast<double>(grid.draws) / static_cast<double>(grid.total);
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] == 0) continue;
    const uint64_t below = i == 0 ? 0 : sums[i - 1];
    const double begin = strata * static_cast<double>(below);
    const float fluctuation =
        options_.method == Method::kSanta
            ? static_cast<float>(weights_[i] * grid.draws)
            : sampling::StratifiedFluctuation(static_cast<float>(begin - std::floor(begin)),
                                              static_cast<float>(strata * static_cast<double>(sums[i] - below)));
    chances_[i] = {.fluctuation = fluctuation, .weight = 1.0 / grid.draws};
  }
}

void RowWeights::DrawSystematic(int64_t begin, int64_t end, uint32_t draws, uint64_t random, double weight) {
  const std::vector<uint64_t> sums = Cumulative(begin, end);
  const sampling::DrawGrid grid = sampling::MakeDrawGrid(sums.back(), draws);
  sampling::SystematicCursor cursor(grid, sampling::UniformBelow(random, grid.total));
  for (int64_t i = begin; i < end; ++i) {
    for (; cursor.position() < sums[i - begin]; cursor.Advance()) weights_[i] += weight;
    if (weights_[i] == 0) continue;
    const uint64_t mass = sums[i - begin] - (i == begin ? 0 : sums[i - begin - 1]);
    const double expected = static_cast<double>(mass) * draws / static_cast<double>(grid.total);
    chances_[i] = {.fluctuation = sampling::Fluctuation(static_cast<float>(expected)), .weight = weight, .run = begin};
  }
}

void RowWeights::DrawTiles() {
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

}  // namespace santa::reference
