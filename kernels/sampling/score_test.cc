#include "kernels/sampling/score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace santa::sampling {
namespace {

TEST(ScoreTest, ScaleZeroStandsForOneOverTheRootOfD) {
  EXPECT_FLOAT_EQ(EffectiveScale(0, 64), 0.125f);
  EXPECT_EQ(EffectiveScale(0.3f, 64), 0.3f);
}

TEST(ScoreTest, CapIsSmoothAndBounded) {
  EXPECT_EQ(Score(8, 0.5f, 0), 4.0f);
  EXPECT_FLOAT_EQ(Score(8, 0.5f, 30), 30 * std::tanh(4.0f / 30));
  EXPECT_FLOAT_EQ(Score(1e6f, 1, 30), 30.0f);
  EXPECT_FLOAT_EQ(Score(-1e6f, 1, 30), -30.0f);
}

TEST(ScoreTest, OverflowIsHeldFiniteAndNanShows) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Score(infinity, 1, 0), kMaxScore);
  EXPECT_EQ(Score(-infinity, 1, 0), -kMaxScore);
  EXPECT_EQ(Score(1e38f, 1e10f, 0), kMaxScore);
  EXPECT_FLOAT_EQ(Score(infinity, 1, 1e-30f), 1e-30f);
  EXPECT_EQ(std::exp(Score(-infinity, 1, 0) - Score(infinity, 1, 0)), 0.0f);
  EXPECT_TRUE(std::isnan(Score(std::nanf(""), 1, 0)));
  EXPECT_TRUE(std::isnan(Score(std::nanf(""), 1, 30)));
}

TEST(ScoreTest, WindowCountsTheQuerysOwnToken) {
  EXPECT_EQ(VisibleBegin(10, 0), 0);
  EXPECT_EQ(VisibleBegin(10, 1), 9);
  EXPECT_EQ(VisibleBegin(10, 10), 0);
  EXPECT_EQ(VisibleBegin(10, 4000000000u), 0);
}

}  // namespace
}  // namespace santa::sampling
