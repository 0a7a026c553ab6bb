#include "kernels/sampling/ternary_query.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace santa::sampling {
namespace {

constexpr int32_t kDim = 16;

float Largest(const std::vector<float>& q) {
  float largest = 0;
  for (const float x : q) largest = std::fmax(largest, std::fabs(x));
  return largest;
}

// How often each feature of a query is taken.
std::vector<uint32_t> Taken(const std::vector<float>& q, uint64_t seed, uint32_t draws) {
  const RandomStream stream = MakeRandomStream(seed, 1, 2, 3, 4);
  std::vector<uint32_t> taken(q.size(), 0);
  for (uint32_t draw = 0; draw < draws; ++draw) {
    for (int32_t quad = 0; quad < kDim / 4; ++quad) {
      const ScoreUniforms uniforms = DrawScoreUniforms(stream, kDim, draw, quad);
      for (int32_t i = 0; i < 4; ++i) {
        taken[4 * quad + i] += uniforms.of_feature[i] < ScoreThreshold(q[4 * quad + i], Largest(q));
      }
    }
  }
  return taken;
}

std::vector<float> Query() {
  std::vector<float> q(kDim);
  for (int32_t j = 0; j < kDim; ++j) q[j] = (j % 2 == 0 ? 0.37f : -0.21f) * static_cast<float>(j);
  return q;  // from 0 to the largest, 5.18
}

TEST(TernaryQueryTest, ThresholdsSpanTheUniforms) {
  EXPECT_EQ(ScoreThreshold(0, 3), 0u);
  EXPECT_EQ(ScoreThreshold(-0.0f, 3), 0u);
  EXPECT_EQ(ScoreThreshold(1.5f, 3), uint64_t{1} << 31);
  EXPECT_EQ(ScoreThreshold(-1.5f, 3), uint64_t{1} << 31);
  for (const float largest : {1e-45f, 1e-38f, 0.3f, 7.0f, std::numeric_limits<float>::max()}) {
    EXPECT_EQ(ScoreThreshold(largest, largest), uint64_t{1} << 32);
    EXPECT_EQ(ScoreThreshold(-largest, largest), uint64_t{1} << 32);
  }
}

// A query of zeros, and one that is not a number, take nothing.
TEST(TernaryQueryTest, WhatHasNoProbabilityIsNotTaken) {
  EXPECT_EQ(ScoreThreshold(0, 0), 0u);
  EXPECT_EQ(ScoreThreshold(std::numeric_limits<float>::quiet_NaN(), 1), 0u);
  EXPECT_EQ(ScoreThreshold(std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()), 0u);
  for (const uint32_t taken : Taken(std::vector<float>(kDim, 0.0f), 1, 64)) EXPECT_EQ(taken, 0u);
}

TEST(TernaryQueryTest, TheLargestFeatureIsTakenInEveryDrawAndAZeroInNone) {
  std::vector<float> q = Query();
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<uint32_t> taken = Taken(q, seed, 5);
    EXPECT_EQ(taken[0], 0u);
    EXPECT_EQ(taken[14], 5u);
  }
  // Features that are all as large lose nothing.
  q.assign(kDim, -2.5f);
  for (const uint32_t taken : Taken(q, 1, 7)) EXPECT_EQ(DrawnFeature(-2.5f, 2.5f, taken, 7), -2.5f);
}

// z-tests: of 16 means a z of 6 is exceeded with probability 3e-8; variances, in 40,000 binomial numbers, are known to
// within 1 % and more.
TEST(TernaryQueryTest, MeansAndVariancesAreTheClosedForms) {
  const std::vector<float> q = Query();
  const double a = Largest(q);
  constexpr int kSeeds = 40000;
  for (const uint32_t draws : {1u, 3u}) {
    std::vector<double> sum(kDim, 0.0);
    std::vector<double> squares(kDim, 0.0);
    double product = 0;  // of the errors of two features
    for (int seed = 0; seed < kSeeds; ++seed) {
      const std::vector<uint32_t> taken = Taken(q, static_cast<uint64_t>(seed), draws);
      std::vector<double> error(kDim);
      for (int32_t j = 0; j < kDim; ++j) {
        const float drawn = DrawnFeature(q[j], static_cast<float>(a), taken[j], draws);
        error[j] = drawn - q[j];
        sum[j] += error[j] / kSeeds;
        squares[j] += error[j] * error[j] / kSeeds;
      }
      product += error[5] * error[6] / kSeeds;
    }
    const auto variance = [&](int32_t j) {
      const double size = std::fabs(q[j]);
      return (a * size - size * size) / draws;
    };
    for (int32_t j = 0; j < kDim; ++j) {
      EXPECT_NEAR(sum[j], 0, 6 * std::sqrt(variance(j) / kSeeds) + 1e-6) << "feature " << j;
      EXPECT_NEAR(squares[j], variance(j), 0.05 * variance(j) + 1e-9) << "feature " << j;
    }
    // Neighbours in one quad are independent.
    EXPECT_NEAR(product, 0, 6 * std::sqrt(variance(5) * variance(6) / kSeeds));
  }
}

TEST(TernaryQueryTest, DrawsAndQuadsHaveUniformsOfTheirOwn) {
  const RandomStream stream = MakeRandomStream(1, 2, 3, 4, 5);
  std::vector<uint32_t> all;
  for (uint32_t draw = 0; draw < 1024; ++draw) {
    for (int32_t quad = 0; quad < 2; ++quad) {
      const ScoreUniforms uniforms = DrawScoreUniforms(stream, 8, draw, quad);
      all.insert(all.end(), uniforms.of_feature, uniforms.of_feature + 4);
    }
  }
  std::sort(all.begin(), all.end());
  // 8,192 numbers of 32 bits: 0.008 pairs that are equal by chance.
  EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
}

TEST(TernaryQueryTest, HugeQueriesStayFinite) {
  const float most = std::numeric_limits<float>::max();
  EXPECT_EQ(DrawnFeature(-most, most, 1024, 1024), -most);
  EXPECT_TRUE(std::isfinite(DrawnFeature(most, most, 1023, 1024)));
}

}  // namespace
}  // namespace santa::sampling
