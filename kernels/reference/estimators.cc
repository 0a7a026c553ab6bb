#include "kernels/reference/estimators.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/group_draw.h"
#include "kernels/reference/head.h"
#include "kernels/reference/ternary_query.h"

namespace santa::reference {
namespace {

// A distribution over rows: S times its cumulative sums, the last exactly S.
Vector ScaledCumulative(const Vector& p, double draws) {
  Vector sums(p.size());
  std::partial_sum(p.begin(), p.end(), sums.begin());
  const double total = sums.back();
  for (double& sum : sums) sum *= draws / total;
  sums.back() = draws;
  return sums;
}

size_t RowOf(const Vector& scaled_cumulative, double x) {
  const auto at = std::upper_bound(scaled_cumulative.begin(), scaled_cumulative.end() - 1, x);
  return at - scaled_cumulative.begin();
}

// floor(S C_i + U) - floor(S C_{i-1} + U) for every row.
std::vector<int64_t> SystematicCounts(const Vector& p, int64_t draws, double uniform) {
  const Vector sums = ScaledCumulative(p, static_cast<double>(draws));
  std::vector<int64_t> counts;
  double before = 0;  // floor(U)
  for (const double sum : sums) {
    const double now = std::floor(sum + uniform);
    counts.push_back(static_cast<int64_t>(now - before));
    before = now;
  }
  return counts;
}

// Variance of (1 / S) sum_i count_i v_i over U. As U grows from 0 to 1, floor(S C_i + U) steps up once, at
// U = 1 - frac(S C_i), and one draw moves from row i + 1 to row i. Between the steps the estimate is constant.
Vector SystematicVariance(const Vector& p, const Rows& v, int64_t draws) {
  const size_t dims = v[0].size();
  const Vector sums = ScaledCumulative(p, static_cast<double>(draws));
  std::vector<std::pair<double, size_t>> steps;
  for (size_t i = 0; i + 1 < p.size(); ++i) steps.emplace_back(1 - (sums[i] - std::floor(sums[i])), i);
  std::sort(steps.begin(), steps.end());
  const std::vector<int64_t> counts = SystematicCounts(p, draws, 0);
  const Vector mean = Mean(p, v);
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  Vector error(dims);  // the estimate less its mean
  for (size_t d = 0; d < dims; ++d) error[d] = -mean[d] / total;
  for (size_t i = 0; i < p.size(); ++i) {
    for (size_t d = 0; d < dims; ++d) error[d] += static_cast<double>(counts[i]) / static_cast<double>(draws) * v[i][d];
  }
  Vector variance(dims, 0.0);
  double from = 0;
  for (const auto& [at, i] : steps) {
    for (size_t d = 0; d < dims; ++d) {
      variance[d] += (at - from) * error[d] * error[d];
      error[d] += (v[i][d] - v[i + 1][d]) / static_cast<double>(draws);
    }
    from = at;
  }
  for (size_t d = 0; d < dims; ++d) variance[d] += (1 - from) * error[d] * error[d];
  return variance;
}

Vector IndependentVariance(const Vector& p, const Rows& v, double draws) {
  const Vector mean = Mean(p, v);
  Vector variance(mean.size(), 0.0);
  for (size_t i = 0; i < p.size(); ++i) {
    for (size_t d = 0; d < mean.size(); ++d) variance[d] += p[i] * std::pow(v[i][d] - mean[d], 2) / draws;
  }
  return variance;
}

Vector StratifiedVariance(const Vector& p, const Rows& v, int64_t draws) {
  const size_t dims = v[0].size();
  const Vector sums = ScaledCumulative(p, static_cast<double>(draws));
  Vector variance(dims, 0.0);
  for (int64_t j = 0; j < draws; ++j) {
    // The rows of stratum [j, j + 1) with their shares of it.
    Vector shares;
    Rows rows;
    for (size_t i = RowOf(sums, static_cast<double>(j)); i < p.size(); ++i) {
      const double low = std::max<double>(i == 0 ? 0 : sums[i - 1], static_cast<double>(j));
      const double high = std::min<double>(sums[i], static_cast<double>(j + 1));
      if (high > low) {
        shares.push_back(high - low);
        rows.push_back(v[i]);
      }
      if (sums[i] >= static_cast<double>(j + 1)) break;
    }
    const Vector inside = IndependentVariance(shares, rows, 1);
    for (size_t d = 0; d < dims; ++d) variance[d] += inside[d] / static_cast<double>(draws * draws);
  }
  return variance;
}

// A tile of S2ANTA_FLASH or S2ANTA_PROP.
struct Tile {
  double mass;  // P_t
  Vector p;     // its own softmax
  Rows v;
};

std::vector<Tile> MakeTiles(const Head& head, int64_t draws) {
  const auto last = head.first + static_cast<int64_t>(head.p.size()) - 1;
  int64_t size = 256;
  while (last / size - head.first / size + 1 > draws) size *= 2;
  std::vector<Tile> tiles;
  int64_t number = -1;
  for (size_t i = 0; i < head.p.size(); ++i) {
    const int64_t of_row = (head.first + static_cast<int64_t>(i)) / size;
    if (of_row != number) tiles.push_back({.mass = 0, .p = {}, .v = {}});
    number = of_row;
    tiles.back().mass += head.p[i];
    tiles.back().p.push_back(head.p[i]);
    tiles.back().v.push_back(head.v[i]);
  }
  for (Tile& tile : tiles) {
    // Only a tile whose every probability underflows has no mass; it is then never drawn by weight.
    for (double& p : tile.p) p = tile.mass > 0 ? p / tile.mass : 1.0 / static_cast<double>(tile.p.size());
  }
  return tiles;
}

// Equal ones; a remainder is spread evenly.
std::vector<int64_t> FlashBudgets(const std::vector<Tile>& tiles, int64_t draws) {
  const auto count = static_cast<int64_t>(tiles.size());
  std::vector<int64_t> budgets;
  for (int64_t t = 0; t < count; ++t) budgets.push_back((t + 1) * draws / count - t * draws / count);
  return budgets;
}

Vector Masses(const std::vector<Tile>& tiles) {
  Vector masses;
  for (const Tile& tile : tiles) masses.push_back(tile.mass);
  return masses;
}

std::vector<int64_t> LargestRemainder(const std::vector<Tile>& tiles, int64_t draws) {
  std::vector<int64_t> budgets;
  std::vector<std::pair<double, size_t>> order;
  int64_t left = draws;
  for (const Tile& tile : tiles) {
    const double share = static_cast<double>(draws) * tile.mass;
    order.emplace_back(-(share - std::floor(share)), order.size());
    budgets.push_back(static_cast<int64_t>(share));
    left -= budgets.back();
  }
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < left; ++i) ++budgets[order[i].second];
  return budgets;
}

void AddRows(const std::vector<int64_t>& counts, const Rows& v, double weight, Vector& sum) {
  for (size_t i = 0; i < counts.size(); ++i) {
    for (size_t d = 0; d < sum.size(); ++d) sum[d] += weight * static_cast<double>(counts[i]) * v[i][d];
  }
}

// An estimate of sum_i p_i v_i.
Vector EstimateHead(const Head& head, const AttentionOptions& options, std::mt19937_64& random) {
  const int64_t draws = options.sample_count;
  const auto s = static_cast<double>(draws);
  Vector sum(head.v[0].size(), 0.0);
  switch (options.method) {
    case Method::kExact:
    case Method::kBernoulliQk:
    case Method::kCoordinated:  // see GroupDraw
    case Method::kSketched:
      return Mean(head.p, head.v);
    case Method::kSanta:
    case Method::kStratified: {
      const Vector sums = ScaledCumulative(head.p, s);
      std::vector<int64_t> counts(head.p.size(), 0);
      for (int64_t j = 0; j < draws; ++j) {
        const double uniform = Uniform(random);
        ++counts[RowOf(sums, options.method == Method::kSanta ? s * uniform : static_cast<double>(j) + uniform)];
      }
      AddRows(counts, head.v, 1 / s, sum);
      return sum;
    }
    case Method::kSystematic:
      AddRows(SystematicCounts(head.p, draws, Uniform(random)), head.v, 1 / s, sum);
      return sum;
    case Method::kS2antaFlash: {
      const std::vector<Tile> tiles = MakeTiles(head, draws);
      const std::vector<int64_t> budgets = FlashBudgets(tiles, draws);
      for (size_t t = 0; t < tiles.size(); ++t) {
        AddRows(SystematicCounts(tiles[t].p, budgets[t], Uniform(random)), tiles[t].v,
                tiles[t].mass / static_cast<double>(budgets[t]), sum);
      }
      return sum;
    }
    case Method::kS2antaProp: {
      const std::vector<Tile> tiles = MakeTiles(head, draws);
      const std::vector<int64_t> budgets = options.budget_rounding == BudgetRounding::kSystematic
                                               ? SystematicCounts(Masses(tiles), draws, Uniform(random))
                                               : LargestRemainder(tiles, draws);
      for (size_t t = 0; t < tiles.size(); ++t) {
        if (budgets[t] == 0) continue;
        AddRows(SystematicCounts(tiles[t].p, budgets[t], Uniform(random)), tiles[t].v, 1 / s, sum);
      }
      return sum;
    }
  }
  return sum;
}

struct HeadMoments {
  Vector mean;
  Vector variance;
};

HeadMoments FlashMoments(const Head& head, int64_t draws) {
  HeadMoments moments{Mean(head.p, head.v), Vector(head.v[0].size(), 0.0)};
  const std::vector<Tile> tiles = MakeTiles(head, draws);
  const std::vector<int64_t> budgets = FlashBudgets(tiles, draws);
  for (size_t t = 0; t < tiles.size(); ++t) {
    const Vector inside = SystematicVariance(tiles[t].p, tiles[t].v, budgets[t]);
    for (size_t d = 0; d < inside.size(); ++d) moments.variance[d] += tiles[t].mass * tiles[t].mass * inside[d];
  }
  return moments;
}

HeadMoments PropMoments(const Head& head, int64_t draws, BudgetRounding rounding) {
  const auto s = static_cast<double>(draws);
  const std::vector<Tile> tiles = MakeTiles(head, draws);
  Rows means;
  for (const Tile& tile : tiles) means.push_back(Mean(tile.p, tile.v));
  HeadMoments moments{Mean(head.p, head.v), Vector(head.v[0].size(), 0.0)};
  const auto add = [&](const Tile& tile, double probability, int64_t budget) {
    if (budget == 0 || probability == 0) return;
    const Vector inside = SystematicVariance(tile.p, tile.v, budget);
    const double share = static_cast<double>(budget) / s;
    for (size_t d = 0; d < inside.size(); ++d) moments.variance[d] += probability * share * share * inside[d];
  };
  if (rounding == BudgetRounding::kSystematic) {
    moments.variance = SystematicVariance(Masses(tiles), means, draws);
    for (const Tile& tile : tiles) {
      const double share = s * tile.mass;
      const double low = std::floor(share);
      add(tile, 1 - (share - low), static_cast<int64_t>(low));
      add(tile, share - low, static_cast<int64_t>(low) + 1);
    }
  } else {
    const std::vector<int64_t> budgets = LargestRemainder(tiles, draws);
    std::fill(moments.mean.begin(), moments.mean.end(), 0.0);
    for (size_t t = 0; t < tiles.size(); ++t) {
      add(tiles[t], 1, budgets[t]);
      for (size_t d = 0; d < moments.mean.size(); ++d) {
        moments.mean[d] += static_cast<double>(budgets[t]) / s * means[t][d];
      }
    }
  }
  return moments;
}

HeadMoments MomentsOfHead(const Head& head, const AttentionOptions& options) {
  const int64_t draws = options.sample_count;
  const Vector mean = Mean(head.p, head.v);
  switch (options.method) {
    case Method::kExact:
    case Method::kBernoulliQk:
    case Method::kCoordinated:  // see GroupDraw
    case Method::kSketched:
      break;
    case Method::kSanta:
      return {mean, IndependentVariance(head.p, head.v, static_cast<double>(draws))};
    case Method::kStratified:
      return {mean, StratifiedVariance(head.p, head.v, draws)};
    case Method::kSystematic:
      return {mean, SystematicVariance(head.p, head.v, draws)};
    case Method::kS2antaFlash:
      return FlashMoments(head, draws);
    case Method::kS2antaProp:
      return PropMoments(head, draws, options.budget_rounding);
  }
  return {mean, Vector(mean.size(), 0.0)};
}

// S at or above the visible tokens gives the exact answer.
AttentionOptions EffectiveOptions(const AttentionOptions& options, const Head& head) {
  AttentionOptions effective = options;
  if (options.sample_count >= head.p.size()) effective.method = Method::kExact;
  return effective;
}

}  // namespace

Output Exact(const Step& step) {
  Output output;
  for (int32_t h = 0; h < step.num_query_heads; ++h) {
    const Head head = MakeHead(step, h);
    for (const double mean : Mean(head.p, head.v)) output.o.push_back(head.sink_free * mean);
    output.lse.push_back(head.lse);
  }
  return output;
}

Output Estimate(const Step& step, std::mt19937_64& random) {
  if (step.options.score_draws > 0) {
    Step drawn = step;
    drawn.q = DrawTernaryQuery(step, random);
    drawn.options.score_draws = 0;
    return Estimate(drawn, random);
  }
  Output output;
  if (DrawsForGroups(step)) {
    for (int32_t kv_head = 0; kv_head < step.num_kv_heads; ++kv_head) {
      GroupDraw(step, kv_head).Estimate(random, output);
    }
    return output;
  }
  for (int32_t h = 0; h < step.num_query_heads; ++h) {
    const Head head = MakeHead(step, h);
    for (const double x : EstimateHead(head, EffectiveOptions(step.options, head), random)) {
      output.o.push_back(head.sink_free * x);
    }
    output.lse.push_back(head.lse);
  }
  return output;
}

Moments MomentsOf(const Step& step) {
  Moments moments;
  if (DrawsForGroups(step)) {
    for (int32_t kv_head = 0; kv_head < step.num_kv_heads; ++kv_head) GroupDraw(step, kv_head).AddMoments(moments);
    return moments;
  }
  for (int32_t h = 0; h < step.num_query_heads; ++h) {
    const Head head = MakeHead(step, h);
    const HeadMoments of_head = MomentsOfHead(head, EffectiveOptions(step.options, head));
    for (const double mean : of_head.mean) moments.mean.push_back(head.sink_free * mean);
    for (const double variance : of_head.variance) {
      moments.variance.push_back(head.sink_free * head.sink_free * variance);
    }
    moments.mass_variance.push_back(0);
  }
  moments.error = moments.variance;
  return moments;
}

}  // namespace santa::reference
