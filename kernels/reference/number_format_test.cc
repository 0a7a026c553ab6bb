#include "kernels/reference/number_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "kernels/attention.h"

namespace santa::reference {
namespace {

TEST(NumberFormatTest, KnownBits) {
  EXPECT_EQ(Encode(DType::kBFloat16, 1.0), 0x3f80u);
  EXPECT_EQ(Encode(DType::kBFloat16, -2.5), 0xc020u);
  EXPECT_EQ(Encode(DType::kFloat16, 1.0), 0x3c00u);
  EXPECT_EQ(Encode(DType::kFloat16, 65504.0), 0x7bffu);
  EXPECT_EQ(Encode(DType::kFloat16, 0x1p-24), 0x0001u);
  EXPECT_EQ(Encode(DType::kFloat16, 0x1p-14), 0x0400u);
  EXPECT_EQ(Encode(DType::kFloat32, 1.0), 0x3f800000u);
  EXPECT_EQ(Encode(DType::kFloat32, -0.0), 0x80000000u);
  EXPECT_TRUE(std::isnan(Decode(DType::kBFloat16, Encode(DType::kBFloat16, std::nan("")))));
}

TEST(NumberFormatTest, TiesGoToEvenAndOverflowToInfinity) {
  EXPECT_EQ(Round(DType::kBFloat16, 1 + 0x1p-8), 1.0);
  EXPECT_EQ(Round(DType::kBFloat16, 1 + 3 * 0x1p-8), 1 + 0x1p-6);
  EXPECT_EQ(Round(DType::kBFloat16, 1 + 0x1p-8 + 0x1p-20), 1 + 0x1p-7);
  EXPECT_EQ(Round(DType::kFloat16, 2049), 2048);
  EXPECT_EQ(Round(DType::kFloat16, 0x1p-25), 0);
  EXPECT_EQ(Round(DType::kFloat16, 65519.9), 65504);
  EXPECT_EQ(Round(DType::kFloat16, 65520), std::numeric_limits<double>::infinity());
  EXPECT_EQ(Round(DType::kFloat32, -1e39), -std::numeric_limits<double>::infinity());
}

TEST(NumberFormatTest, Every16BitPatternSurvivesTheRoundTrip) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const double value = Decode(dtype, bits);
      if (std::isnan(value)) continue;
      ASSERT_EQ(Round(dtype, value), value);
      ASSERT_EQ(Encode(dtype, value), bits) << Name(dtype);
    }
  }
}

TEST(NumberFormatTest, Float8SaturatesAndHasNoInfinity) {
  constexpr DType kType = DType::kFloat8E4M3;
  EXPECT_EQ(Encode(kType, 1.0), 0x38u);
  EXPECT_EQ(Encode(kType, -448.0), 0xfeu);
  EXPECT_EQ(Encode(kType, 0x1p-9), 0x01u);
  EXPECT_EQ(Encode(kType, std::nan("")), 0x7fu);
  EXPECT_EQ(Round(kType, 447), 448);
  EXPECT_EQ(Round(kType, 470), 448);
  EXPECT_EQ(Round(kType, -std::numeric_limits<double>::infinity()), -448);
  EXPECT_TRUE(std::isnan(Round(kType, std::nan(""))));
  EXPECT_EQ(Round(kType, 17), 16);  // ties to even
  EXPECT_EQ(Round(kType, 19), 20);
  EXPECT_EQ(Round(kType, 0x1p-10), 0);
  for (uint32_t bits = 0; bits < 0x100; ++bits) {
    const double value = Decode(kType, bits);
    ASSERT_EQ(std::isnan(value), (bits & 0x7f) == 0x7f);
    if (std::isnan(value)) continue;
    ASSERT_EQ(Round(kType, value), value);
    ASSERT_EQ(Encode(kType, value), bits);
  }
}

TEST(NumberFormatTest, Fp32IsTheMachinesFloat) {
  std::mt19937 random(1);
  for (int i = 0; i < 10000; ++i) {
    const auto bits = static_cast<uint32_t>(random());
    const double value = Decode(DType::kFloat32, bits);
    if (std::isnan(value)) continue;
    ASSERT_EQ(static_cast<double>(static_cast<float>(value)), value);
    ASSERT_EQ(Encode(DType::kFloat32, value), bits);
    const double between = value * (1 + 1e-9);
    ASSERT_EQ(Round(DType::kFloat32, between), static_cast<double>(static_cast<float>(between)));
  }
}

}  // namespace
}  // namespace santa::reference
