#include "kernels/sampling/standard_error.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace santa::sampling {
namespace {

TEST(StandardErrorTest, FluctuationIsTheVarianceOfACountOverItsChance) {
  EXPECT_FLOAT_EQ(Fluctuation(0.25f), 0.75f);  // 0.25 * 0.75 / 0.25
  EXPECT_FLOAT_EQ(Fluctuation(1), 0);
  EXPECT_FLOAT_EQ(Fluctuation(7.25f), 0.1875f);
}

// Against draws: a row that covers [begin, begin + expected) of strata of length 1.
TEST(StandardErrorTest, StratifiedFluctuationIsTheVarianceOfACountOverItsChance) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform;
  constexpr int kTrials = 200000;
  for (const auto& [begin, expected] :
       {std::pair{0.0, 0.3}, {0.8, 0.5}, {0.8, 0.15}, {0.4, 1.9}, {0.5, 0.5}, {0.9, 0.9}, {0.25, 3.0}}) {
    double squares = 0;
    double drawn = 0;
    for (int trial = 0; trial < kTrials; ++trial) {
      int count = 0;
      for (int stratum = 0; stratum < 5; ++stratum) {
        const double at = stratum + uniform(random);
        count += at >= begin && at < begin + expected;
      }
      squares += std::pow(count - expected, 2) / kTrials;
      drawn += (count > 0) / static_cast<double>(kTrials);
    }
    EXPECT_NEAR(StratifiedFluctuation(static_cast<float>(begin), static_cast<float>(expected)), squares / drawn, 0.01)
        << begin << " " << expected;
  }
}

// Equal chances for all: the variance of a mean of m of n numbers, drawn without replacement, from the numbers drawn.
TEST(StandardErrorTest, IsTheTextbookVarianceForEqualChances) {
  constexpr int kRows = 10;
  constexpr float kChance = 0.1f;
  ErrorSums sums;
  double sum = 0;
  double mean = 0;
  for (int i = 0; i < kRows; ++i) mean += i * i / static_cast<double>(kRows);
  double sample_variance = 0;
  for (int i = 0; i < kRows; ++i) {
    const float z = static_cast<float>(i * i) / kRows;
    const float t = 1 - kChance;
    sums.t += t;
    sums.t_squared += t * t;
    sums.z_squared += t * z * z;
    sum += t * z;
    sample_variance += std::pow(i * i - mean, 2) / (kRows - 1);
  }
  EXPECT_NEAR(SquaredError(sums, static_cast<float>(sum * sum)), (1 - kChance) * sample_variance / kRows, 1e-3);
}

// A systematic draw from a slope with noise on it: the slope is no part of its error, and not of what the steps tell.
TEST(StandardErrorTest, StepsTellTheErrorOfASystematicDrawFromRowsInOrder) {
  constexpr int kRows = 6000;
  constexpr int kEvery = 20;
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal;
  std::vector<double> values;
  double mean = 0;
  for (int i = 0; i < kRows; ++i) {
    values.push_back(10.0 * i / kRows + normal(random));
    mean += values.back() / kRows;
  }
  double found = 0;
  double by_steps = 0;
  double by_mean = 0;
  for (int offset = 0; offset < kEvery; ++offset) {
    const float t = 1 - 1.0f / kEvery;
    StepSums steps;
    ErrorSums all;
    double sum = 0;
    double estimate = 0;
    for (int i = offset; i < kRows; i += kEvery) {
      const auto z = static_cast<float>(values[i] * kEvery / kRows);
      estimate += z;
      steps.t += t;
      if (i > offset) {
        steps.pairs += t;
        steps.steps += t * std::pow(z - static_cast<float>(values[i - kEvery] * kEvery / kRows), 2.0f);
      }
      all.t += t;
      all.t_squared += t * t;
      all.z_squared += t * z * z;
      sum += t * z;
    }
    found += std::pow(estimate - mean, 2);
    by_steps += SquaredError(steps);
    by_mean += SquaredError(all, static_cast<float>(sum * sum));
  }
  // 20 offsets tell a variance to a third of it.
  EXPECT_GT(by_steps / found, 0.5);
  EXPECT_LT(by_steps / found, 2);
  EXPECT_GT(by_mean / by_steps, 5);
}

TEST(StandardErrorTest, NothingLeftToChanceIsNoErrorAndNanIsNan) {
  EXPECT_EQ(SquaredError(StepSums{}), 0);
  EXPECT_TRUE(std::isnan(SquaredError(StepSums{.t = 0.5f, .pairs = 0, .steps = 0})));
  EXPECT_TRUE(std::isnan(SquaredError(StepSums{.t = 1, .pairs = 1, .steps = std::numeric_limits<float>::quiet_NaN()})));
  EXPECT_EQ(SquaredError({}, 0), 0);
  EXPECT_EQ(SquaredError({.t = 1, .t_squared = 1, .z_squared = 1}, 1.0001f), 0);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(SquaredError({.t = 1, .t_squared = 1, .z_squared = nan}, nan)));
  EXPECT_TRUE(std::isnan(SquaredError({.t = nan, .t_squared = nan, .z_squared = nan}, nan)));
}

}  // namespace
}  // namespace santa::sampling
