#include "kernels/reference/ternary_query.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>

namespace santa::reference {
namespace {

Step RandomStep(uint32_t score_draws) {
  Step step;
  step.num_query_heads = 6;
  step.num_kv_heads = 2;
  step.head_dim = 16;
  step.num_tokens = 20;
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  for (int i = 0; i < 6 * 16; ++i) step.q.push_back(normal(random));
  for (int i = 0; i < 20 * 2 * 16; ++i) step.k.push_back(normal(random));
  for (int i = 0; i < 20 * 2 * 16; ++i) step.v.push_back(normal(random));
  step.options = {.method = Method::kBernoulliQk, .score_draws = score_draws};
  return step;
}

// Closed forms against 20,000 draws, by z-tests: 12 dot products and 2 counts, of which a z of 6 has a false-alarm rate
// of 3e-8 in all; variances within 5 %, five of their own standard errors.
TEST(TernaryQueryTest, DrawsHaveTheirClosedForms) {
  constexpr int kDraws = 20000;
  for (const uint32_t score_draws : {1u, 4u}) {
    const Step step = RandomStep(score_draws);
    std::mt19937_64 random(2);
    Vector mean(6, 0.0);
    Vector squares(6, 0.0);
    Vector features(2, 0.0);
    const auto head = [](const Vector& all, int32_t h) {
      return Vector(all.begin() + h * 16, all.begin() + h * 16 + 16);
    };
    const auto key = [&](int32_t h) { return head(step.k, 2 * 7 + h / 3); };  // of token 7
    for (int i = 0; i < kDraws; ++i) {
      const Vector drawn = DrawTernaryQuery(step, random);
      for (int32_t h = 0; h < 6; ++h) {
        double error = 0;
        for (int32_t j = 0; j < 16; ++j) error += (drawn[h * 16 + j] - step.q[h * 16 + j]) * key(h)[j];
        mean[h] += error / kDraws;
        squares[h] += error * error / kDraws;
      }
      for (int32_t kv_head = 0; kv_head < 2; ++kv_head) {
        for (int32_t j = 0; j < 16; ++j) {
          bool read = false;
          for (int32_t h = 3 * kv_head; h < 3 * kv_head + 3; ++h) read = read || drawn[h * 16 + j] != 0;
          features[kv_head] += static_cast<double>(read) / kDraws;
        }
      }
    }
    for (int32_t h = 0; h < 6; ++h) {
      const double variance = DotVariance(head(step.q, h), key(h), score_draws);
      EXPECT_NEAR(mean[h], 0, 6 * std::sqrt(variance / kDraws)) << "head " << h;
      EXPECT_NEAR(squares[h] / variance, 1, 0.05) << "head " << h;
    }
    for (int32_t kv_head = 0; kv_head < 2; ++kv_head) {
      // A count of 16 has a deviation of 2 at most.
      EXPECT_NEAR(features[kv_head], ExpectedFeatures(step, kv_head), 6 * 2 / std::sqrt(kDraws));
    }
  }
}

// The more draws, the nearer is an estimate to the exact output, as 1 / sqrt(R); and lse is too large in the mean.
TEST(TernaryQueryTest, EstimatesApproachTheExactOutput) {
  constexpr int kEstimates = 400;
  std::mt19937_64 random(3);
  const Output exact = Exact(RandomStep(1));
  double errors[2] = {};
  double bias[2] = {};
  for (int i = 0; i < 2; ++i) {
    for (int estimate = 0; estimate < kEstimates; ++estimate) {
      const Output output = Estimate(RandomStep(i == 0 ? 16 : 256), random);
      for (size_t at = 0; at < exact.o.size(); ++at) errors[i] += std::pow(output.o[at] - exact.o[at], 2);
      for (size_t h = 0; h < exact.lse.size(); ++h) bias[i] += (output.lse[h] - exact.lse[h]) / kEstimates;
    }
  }
  EXPECT_NEAR(std::sqrt(errors[0] / errors[1]), 4, 1);
  EXPECT_GT(bias[0], 0);
  EXPECT_GT(bias[0], 4 * bias[1]);
}

}  // namespace
}  // namespace santa::reference
