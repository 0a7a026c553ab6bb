#include "kernels/sampling/sketch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace santa::sampling {
namespace {

// Low and step as they are here: half precision is the caller's part, and rounds both.
TEST(SketchTest, CodesAreWithinHalfAStep) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  for (const int bits : {4, 8}) {
    for (const float size : {0.1f, 1.0f, 100.0f}) {
      std::vector<float> column(64);
      for (float& x : column) x = size * normal(random);
      const auto [least, most] = std::minmax_element(column.begin(), column.end());
      const ColumnRange range = RangeOf(*least, *most, bits);
      uint32_t largest = 0;
      for (const float x : column) {
        const uint32_t code = CodeOf(x, range.low, 1 / range.step, bits);
        largest = std::max(largest, code);
        EXPECT_NEAR(range.low + range.step * static_cast<float>(code), x, 0.501f * range.step);
      }
      EXPECT_EQ(largest, (1u << bits) - 1);
    }
  }
}

// A constant column's range is 0: its step must not be, nor round to it in half precision.
TEST(SketchTest, AConstantColumnHasAStep) {
  const ColumnRange range = RangeOf(2.5f, 2.5f, 4);
  EXPECT_EQ(range.low, 2.5f);
  EXPECT_EQ(range.step, kSmallestStep);
  EXPECT_EQ(CodeOf(2.5f, range.low, 1 / range.step, 4), 0u);
}

TEST(SketchTest, StaysFiniteForAnyNumbers) {
  for (const int bits : {4, 8}) {
    for (const float huge : {1e30f, std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity()}) {
      const ColumnRange range = RangeOf(-huge, huge, bits);
      EXPECT_EQ(range.low, -kLargestHalf);
      EXPECT_LE(range.step, kLargestHalf);
      EXPECT_EQ(CodeOf(-huge, range.low, 1 / range.step, bits), 0u);
      EXPECT_EQ(CodeOf(huge, range.low, 1 / range.step, bits), (1u << bits) - 1);
    }
    EXPECT_LE(CodeOf(std::numeric_limits<float>::quiet_NaN(), 0, 1, bits), (1u << bits) - 1);
  }
}

}  // namespace
}  // namespace santa::sampling
