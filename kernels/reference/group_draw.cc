#include "kernels/reference/group_draw.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/number_format.h"
#include "kernels/sampling/pilot.h"

namespace santa::reference {
namespace {

constexpr double kEvenShare = 1.0 / 16;
constexpr double kLeastSquare = 0x1p-58;

// The upper edge of the bin that a^2 falls into, as a: sixteen to an octave of the square, evenly.
double UpperEdge(double a) {
  const double square = std::max(a * a, kLeastSquare);
  int exponent = 0;
  const double mantissa = std::frexp(square, &exponent);  // [0.5, 1)
  return std::sqrt(std::ldexp((std::floor(mantissa * 32) + 1) / 32, exponent));
}

// One column of a page, rounded to its sketch in place.
void Quantise(int bits, std::vector<double*>& column) {
  const auto [least, most] =
      std::minmax_element(column.begin(), column.end(), [](double* a, double* b) { return *a < *b; });
  const double low = Round(DType::kFloat16, std::clamp(**least, -65504.0, 65504.0));
  const double steps = (1 << bits) - 1;
  const double step = Round(DType::kFloat16, std::clamp((**most - low) / steps, 0x1p-14, 1024.0));
  for (double* x : column) *x = low + step * std::clamp(std::nearbyint((*x - low) / step), 0.0, steps);
}

// Every full page.
void QuantisePages(int bits, int64_t page_size, Rows& rows) {
  for (int64_t end = page_size; end <= static_cast<int64_t>(rows.size()); end += page_size) {
    for (size_t d = 0; d < rows[0].size(); ++d) {
      std::vector<double*> column;
      for (int64_t i = end - page_size; i < end; ++i) column.push_back(&rows[i][d]);
      Quantise(bits, column);
    }
  }
}

// Of all tokens, visible or not.
Rows RowsOf(const Step& step, const std::vector<double>& numbers, int32_t kv_head) {
  Rows rows;
  for (int64_t i = 0; i < step.num_tokens; ++i) {
    const auto row = numbers.begin() + (i * step.num_kv_heads + kv_head) * step.head_dim;
    rows.emplace_back(row, row + step.head_dim);
  }
  return rows;
}

int64_t Visible(const Step& step) {
  const int64_t window = step.options.window;
  return window > 0 ? std::min(window, step.num_tokens) : step.num_tokens;
}

}  // namespace

bool DrawsForGroups(const Step& step) {
  const bool draws = step.options.method == Method::kCoordinated || step.options.method == Method::kSketched;
  return draws && step.options.sample_count < Visible(step);
}

GroupDraw::GroupDraw(const Step& step, int32_t kv_head) : method_(step.options.method) {
  const int32_t group = step.num_query_heads / step.num_kv_heads;
  for (int32_t h = kv_head * group; h < (kv_head + 1) * group; ++h) heads_.push_back(MakeHead(step, h));
  candidate_.assign(heads_[0].p.size(), true);
  if (method_ == Method::kSketched) {
    const int64_t full = step.num_tokens / step.page_size * step.page_size;
    for (size_t i = 0; i < candidate_.size(); ++i) candidate_[i] = heads_[0].first + static_cast<int64_t>(i) < full;
    scored_p_ = SketchedMasses(step, kv_head);
    SketchValues(step, kv_head);
  } else {
    for (const Head& head : heads_) scored_p_.push_back(head.p);
  }
  const bool counts_sketch = method_ == Method::kCoordinated && step.pilot && step.sketch != Sketch::kNone;
  counted_p_ = counts_sketch ? SketchedMasses(step, kv_head) : scored_p_;
  ChooseRuns(step);
  ChooseProbabilities(step.options.sample_count);
}

void GroupDraw::ChooseRuns(const Step& step) {
  const size_t rows = candidate_.size();
  has_pilot_ = step.pilot;
  if (has_pilot_) {
    const int64_t run = sampling::PilotRunTokens(static_cast<int64_t>(rows)), first = heads_[0].first;
    for (int64_t end = (first / run + 1) * run - first; end < static_cast<int64_t>(rows); end += run) {
      run_ends_.push_back(static_cast<size_t>(end));
    }
  }
  run_ends_.push_back(rows);
}

std::vector<int64_t> GroupDraw::Counts(Vector& masses) const {
  const size_t rows = candidate_.size();
  std::vector<int64_t> counts(rows, has_pilot_ ? 0 : 1);
  const auto sum = [&] {
    masses.clear();
    for (const Vector& p : counted_p_) {
      masses.push_back(std::inner_product(counts.begin(), counts.end(), p.begin(), 0.0));
    }
  };
  sum();
  if (!has_pilot_) return counts;
  const int64_t begin = heads_[0].first, end = begin + static_cast<int64_t>(rows), size = sampling::kSliceTokens;
  const int64_t first = begin / size, slices = (end - 1) / size - first + 1;
  const auto weigh = [&](const auto& times_of) {
    for (int i = 0; i < sampling::kPilotSlices; ++i) {
      const auto [slice, stands_for] =
          sampling::MakePilotSlice(static_cast<int32_t>(first), static_cast<int32_t>(slices), i);
      const int64_t from = std::max(begin, slice * size) - begin, to = std::min(end, (slice + 1) * size) - begin;
      std::fill(counts.begin() + from, counts.begin() + to, times_of(stands_for, from, to));
    }
    sum();
  };
  weigh([](int32_t stands_for, int64_t, int64_t) { return stands_for; });
  weigh([this, all = masses](int32_t stands_for, int64_t from, int64_t to) {
    double share = 0;
    for (size_t h = 0; h < all.size(); ++h) {
      const Vector& p = counted_p_[h];
      share = std::max(share, std::accumulate(p.begin() + from, p.begin() + to, 0.0) / all[h]);
    }
    return sampling::PilotTimes(stands_for, static_cast<float>(share));
  });
  return counts;
}

Rows GroupDraw::SketchedMasses(const Step& step, int32_t kv_head) const {
  // The same heads over keys as the sketch has them. The last page, if it is not full, is left as it is.
  Step sketched = step;
  sketched.num_kv_heads = 1;
  sketched.num_query_heads = static_cast<int32_t>(heads_.size());
  const auto q = step.q.begin() + static_cast<int64_t>(kv_head * heads_.size()) * step.head_dim;
  sketched.q.assign(q, q + static_cast<int64_t>(heads_.size()) * step.head_dim);
  sketched.sink_logits.clear();
  Rows keys = RowsOf(step, step.k, kv_head);
  QuantisePages(KeyBits(step.sketch), step.page_size, keys);
  sketched.k.clear();
  for (const Vector& key : keys) sketched.k.insert(sketched.k.end(), key.begin(), key.end());
  sketched.v = sketched.k;  // of no account
  Rows masses;
  for (size_t h = 0; h < heads_.size(); ++h) {
    const Head of_sketch = MakeHead(sketched, static_cast<int32_t>(h));
    Vector of_head = of_sketch.p;
    for (double& p : of_head) p *= std::exp(of_sketch.lse - heads_[h].visible_lse);
    masses.push_back(std::move(of_head));
  }
  return masses;
}

void GroupDraw::SketchValues(const Step& step, int32_t kv_head) {
  corrects_values_ = ValueBits(step.sketch) > 0;
  if (!corrects_values_) return;
  sketched_v_ = RowsOf(step, step.v, kv_head);
  QuantisePages(ValueBits(step.sketch), step.page_size, sketched_v_);
  sketched_v_.erase(sketched_v_.begin(), sketched_v_.begin() + heads_[0].first);
}

// pi = min(1, kappa a + floor), kappa such that the pi of the bins' upper edges sum to S: every row that would be above
// certainty at that kappa, bin by bin from the top, is taken for certain. With a pilot all of this is of its rows, as
// often as they count, and a of every row is against their sums of exp(s).
void GroupDraw::ChooseProbabilities(uint32_t samples) {
  const size_t rows = candidate_.size();
  Vector masses;
  const std::vector<int64_t> counts = Counts(masses);
  const auto root_of_squares = [&masses](const Rows& p, size_t row) {
    double square = 0;
    for (size_t h = 0; h < masses.size(); ++h) square += std::pow(p[h][row] / masses[h], 2);
    return std::sqrt(square);
  };
  Vector a;
  std::vector<double> edges;
  for (size_t i = 0; i < rows; ++i) {
    a.push_back(root_of_squares(scored_p_, i));
    const double counted = root_of_squares(counted_p_, i);
    if (candidate_[i] && (counted > 0 || method_ == Method::kSketched)) {
      edges.insert(edges.end(), static_cast<size_t>(counts[i]), UpperEdge(counted));
    }
  }
  std::sort(edges.begin(), edges.end(), std::greater<>());
  const auto count = static_cast<double>(edges.size());
  const double floor = method_ == Method::kSketched ? kEvenShare * samples / count : 0;
  double tail = std::accumulate(edges.begin(), edges.end(), 0.0);
  double kappa = 0;
  for (size_t heavy = 0;; ++heavy) {
    const auto others = count - static_cast<double>(heavy);
    if (others == 0) {
      kappa = 0x1p100;
      break;
    }
    kappa = (samples - static_cast<double>(heavy) - floor * others) / tail;
    if (kappa * edges[heavy] + floor <= 1) break;
    tail -= edges[heavy];
  }
  for (size_t i = 0; i < rows; ++i) {
    pi_.push_back(candidate_[i] ? (a[i] > 0 ? std::min(1.0, kappa * a[i] + floor) : floor) : 1);
  }
}

GroupDraw::Sum GroupDraw::Numerator(size_t in_group) const {
  const Head& head = heads_[in_group];
  const size_t dims = head.v[0].size();
  Sum sum{.constant = Vector(dims, 0.0), .rows = Rows(pi_.size(), Vector(dims, 0.0))};
  for (size_t i = 0; i < pi_.size(); ++i) {
    for (size_t d = 0; d < dims; ++d) {
      sum.rows[i][d] = head.p[i] * head.v[i][d];
      if (!corrects_values_ || !candidate_[i]) continue;
      const double sketched = scored_p_[in_group][i] * sketched_v_[i][d];
      sum.constant[d] += sketched;
      sum.rows[i][d] -= sketched;
    }
  }
  return sum;
}

GroupDraw::Sum GroupDraw::Mass(size_t in_group) const {
  const Head& head = heads_[in_group];
  // A sink that leaves nothing makes every moment 0 below, whatever stands here.
  const double sink = head.sink_free > 0 ? (1 - head.sink_free) / head.sink_free : 0;
  if (method_ == Method::kCoordinated) return {.constant = {1 + sink}, .rows = Rows(pi_.size(), {0.0})};
  Sum sum{.constant = {sink}, .rows = {}};
  for (size_t i = 0; i < pi_.size(); ++i) {
    sum.rows.push_back({head.p[i]});
    if (!corrects_values_ || !candidate_[i]) continue;
    const double sketched = scored_p_[in_group][i];
    sum.constant[0] += sketched;
    sum.rows[i][0] -= sketched;
  }
  return sum;
}

GroupDraw::Sum GroupDraw::Residual(size_t in_group) const {
  const Head& head = heads_[in_group];
  const Vector o = Mean(head.p, head.v);
  const Sum mass = Mass(in_group);
  Sum sum = Numerator(in_group);
  for (size_t i = 0; i < pi_.size(); ++i) {
    for (size_t d = 0; d < o.size(); ++d) sum.rows[i][d] -= mass.rows[i][0] * head.sink_free * o[d];
  }
  return sum;
}

Vector GroupDraw::RunTotal(const Sum& sum, double offset, size_t from, size_t to) const {
  Vector total(sum.constant.size(), 0.0);
  double before = 0;
  for (size_t i = from; i < to; ++i) {
    // Rows that are read for certain take no part in the draw's chance.
    const bool read = pi_[i] >= 1 || std::floor(before + pi_[i] + offset) != std::floor(before + offset);
    if (pi_[i] < 1) before += pi_[i];
    for (size_t d = 0; read && d < total.size(); ++d) total[d] += sum.rows[i][d] / pi_[i];
  }
  return total;
}

Vector GroupDraw::Total(const Sum& sum, const Vector& offsets) const {
  Vector total = sum.constant;
  for (size_t run = 0; run < run_ends_.size(); ++run) {
    const Vector of_run = RunTotal(sum, offsets[run], run == 0 ? 0 : run_ends_[run - 1], run_ends_[run]);
    for (size_t d = 0; d < total.size(); ++d) total[d] += of_run[d];
  }
  return total;
}

// Exactly, over the offset U in [0, 1). As U grows the draw's marks move towards the first row: at U = 1 - frac(C_i) a
// mark passes from the row after i to row i, or comes in at the end.
Vector GroupDraw::RunVariance(const Sum& sum, size_t run_begin, size_t run_end) const {
  std::vector<size_t> drawn;
  std::vector<std::pair<double, size_t>> steps;  // U, index in drawn
  double end = 0;
  for (size_t i = run_begin; i < run_end; ++i) {
    if (pi_[i] <= 0 || pi_[i] >= 1) continue;
    end += pi_[i];
    steps.emplace_back(1 - (end - std::floor(end)), drawn.size());
    drawn.push_back(i);
  }
  std::sort(steps.begin(), steps.end());
  Vector error = RunTotal(sum, 0, run_begin, run_end);  // the estimate less its mean
  for (size_t d = 0; d < error.size(); ++d) {
    for (size_t i = run_begin; i < run_end; ++i) error[d] -= sum.rows[i][d];
  }
  Vector variance(error.size(), 0.0);
  double from = 0;
  for (const auto& [at, index] : steps) {
    for (size_t d = 0; d < error.size(); ++d) {
      variance[d] += (at - from) * error[d] * error[d];
      error[d] += sum.rows[drawn[index]][d] / pi_[drawn[index]];
      if (index + 1 < drawn.size()) error[d] -= sum.rows[drawn[index + 1]][d] / pi_[drawn[index + 1]];
    }
    from = at;
  }
  for (size_t d = 0; d < error.size(); ++d) variance[d] += (1 - from) * error[d] * error[d];
  return variance;
}

// Runs are independent.
Vector GroupDraw::Variance(const Sum& sum) const {
  Vector variance(sum.constant.size(), 0.0);
  for (size_t run = 0; run < run_ends_.size(); ++run) {
    const Vector of_run = RunVariance(sum, run == 0 ? 0 : run_ends_[run - 1], run_ends_[run]);
    for (size_t d = 0; d < variance.size(); ++d) variance[d] += of_run[d];
  }
  return variance;
}

void GroupDraw::Estimate(std::mt19937_64& random, Output& output) const {
  Vector offsets;
  for (size_t run = 0; run < run_ends_.size(); ++run) offsets.push_back(Uniform(random));
  for (size_t h = 0; h < heads_.size(); ++h) {
    const double mass = Total(Mass(h), offsets)[0];
    for (const double x : Total(Numerator(h), offsets)) output.o.push_back(x / mass);
    output.lse.push_back(heads_[h].lse + std::log(mass * heads_[h].sink_free));
  }
}

void GroupDraw::AddMoments(Moments& moments) const {
  moments.rows.push_back(std::accumulate(pi_.begin(), pi_.end(), 0.0));
  for (size_t h = 0; h < heads_.size(); ++h) {
    const double share = heads_[h].sink_free;
    for (const double x : Mean(heads_[h].p, heads_[h].v)) moments.mean.push_back(share * x);
    for (const double x : Variance(Numerator(h))) moments.variance.push_back(share * share * x);
    for (const double x : Variance(Residual(h))) moments.error.push_back(share * share * x);
    moments.mass_variance.push_back(share * share * Variance(Mass(h))[0]);
  }
}

}  // namespace santa::reference
