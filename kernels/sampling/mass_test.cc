#include "kernels/sampling/mass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

namespace santa::sampling {
namespace {

TEST(MassTest, EndsOfTheRange) {
  EXPECT_EQ(RowMass(1.0f), uint32_t{1} << 30);
  EXPECT_EQ(RowMass(0.0f), 0u);
  EXPECT_EQ(RowMass(std::exp(-1000.0f)), 0u);
  EXPECT_EQ(RowMass(0x1p-30f), 1u);
}

TEST(MassTest, RoundsToNearestEven) {
  EXPECT_EQ(RowMass(0.5f * 0x1p-30f), 0u);
  EXPECT_EQ(RowMass(1.5f * 0x1p-30f), 2u);
  EXPECT_EQ(RowMass(2.5f * 0x1p-30f), 2u);
  EXPECT_EQ(RowMass(0.75f * 0x1p-30f), 1u);
  // A whole number just above 2^23, where adding a half first would round up.
  EXPECT_EQ(RowMass(8388609.0f * 0x1p-30f), 8388609u);
}

TEST(MassTest, GrowsWithTheWeight) {
  uint32_t before = 0;
  for (float weight = 0; weight < 1; weight += 0x1p-12f) {
    EXPECT_GE(RowMass(weight), before);
    before = RowMass(weight);
  }
}

TEST(MassTest, ATileIsScaledByItsWeight) {
  const uint64_t sum = uint64_t{300} << 30;
  EXPECT_EQ(TileMass(sum, 1.0f), sum);
  EXPECT_EQ(TileMass(sum, 0.25f), sum / 4);
  EXPECT_EQ(TileMass(sum, 0.0f), 0u);
}

}  // namespace
}  // namespace santa::sampling
