#include "kernels/reference/ternary_query.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>

namespace santa::reference {
namespace {

double Largest(const double* q, int32_t head_dim) {
  double largest = 0;
  for (int32_t j = 0; j < head_dim; ++j) largest = std::max(largest, std::abs(q[j]));
  return largest;
}

// |q_j| / a; a query of zeros has none.
double Probability(double q, double largest) { return largest > 0 ? std::abs(q) / largest : 0; }

}  // namespace

Vector DrawTernaryQuery(const Step& step, std::mt19937_64& random) {
  const int32_t group = step.num_query_heads / step.num_kv_heads;
  const int32_t dim = step.head_dim;
  const double draws = step.options.score_draws;
  Vector drawn(step.q.size(), 0.0);
  for (int32_t kv_head = 0; kv_head < step.num_kv_heads; ++kv_head) {
    for (uint32_t draw = 0; draw < step.options.score_draws; ++draw) {
      for (int32_t j = 0; j < dim; ++j) {
        const double uniform = Uniform(random);
        for (int32_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
          const double largest = Largest(&step.q[h * dim], dim);
          const double q = step.q[h * dim + j];
          if (uniform < Probability(q, largest)) drawn[h * dim + j] += std::copysign(largest, q) / draws;
        }
      }
    }
  }
  return drawn;
}

double DotVariance(const Vector& q, const Vector& k, uint32_t draws) {
  const double largest = Largest(q.data(), static_cast<int32_t>(q.size()));
  double variance = 0;
  for (size_t j = 0; j < q.size(); ++j) variance += (largest * std::abs(q[j]) - q[j] * q[j]) * k[j] * k[j] / draws;
  return variance;
}

double ExpectedMass(const Step& step, int32_t head) {
  const int32_t dim = step.head_dim;
  const int32_t kv_head = head / (step.num_query_heads / step.num_kv_heads);
  const Head of_head = MakeHead(step, head);
  const double* q = &step.q[head * dim];
  const double largest = Largest(q, dim);
  const double scale = step.options.scale > 0 ? static_cast<double>(step.options.scale) : 1 / std::sqrt(dim);
  double mass = 0;
  for (size_t i = 0; i < of_head.p.size(); ++i) {
    const double* k = &step.k[((of_head.first + static_cast<int64_t>(i)) * step.num_kv_heads + kv_head) * dim];
    double log_mean = 0;  // of exp(s^ - s)
    for (int32_t j = 0; j < dim; ++j) {
      const double c = scale * std::copysign(largest, q[j]) * k[j] / step.options.score_draws;
      const double p = Probability(q[j], largest);
      log_mean += step.options.score_draws * (std::log1p(p * std::expm1(c)) - p * c);
    }
    mass += of_head.p[i] * std::exp(log_mean);
  }
  return mass;
}

double ExpectedFeatures(const Step& step, int32_t kv_head) {
  const int32_t group = step.num_query_heads / step.num_kv_heads;
  const int32_t dim = step.head_dim;
  double expected = 0;
  for (int32_t j = 0; j < dim; ++j) {
    double most = 0;
    for (int32_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      most = std::max(most, Probability(step.q[h * dim + j], Largest(&step.q[h * dim], dim)));
    }
    expected += 1 - std::pow(1 - most, step.options.score_draws);
  }
  return expected;
}

}  // namespace santa::reference
