#include "kernels/cpu/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace santa::cpu {
namespace {

// By definition, from the bits: sign, exponent, fraction.
double Value(uint16_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

struct Format {
  DType dtype;
  int exponent_bits;
  int fraction_bits;
  uint16_t (*from_float)(float);
  float (*to_float)(uint16_t);
};

class ConvertTest : public testing::TestWithParam<Format> {};

TEST_P(ConvertTest, EveryValueWidensExactlyAndComesBack) {
  const Format& format = GetParam();
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = format.to_float(static_cast<uint16_t>(bits));
    const double expected = Value(static_cast<uint16_t>(bits), format.exponent_bits, format.fraction_bits);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_TRUE(std::isnan(format.to_float(format.from_float(value)))) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(value), expected) << bits;
      ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
      ASSERT_EQ(format.from_float(value), bits);
    }
  }
}

TEST_P(ConvertTest, RoundsToNearestTiesToEven) {
  const Format& format = GetParam();
  const uint16_t infinity = static_cast<uint16_t>(((1 << format.exponent_bits) - 1) << format.fraction_bits);
  for (uint16_t bits = 0; bits + 1 < infinity; ++bits) {
    const float low = format.to_float(bits);
    const float high = format.to_float(bits + 1);
    const float middle = low + (high - low) / 2;
    if (middle == low || middle == high) continue;  // not a float of its own (subnormal bf16)
    ASSERT_EQ(format.from_float(middle), bits % 2 == 0 ? bits : bits + 1) << middle;
    ASSERT_EQ(format.from_float(std::nextafter(middle, low)), bits) << middle;
    ASSERT_EQ(format.from_float(std::nextafter(middle, high)), bits + 1) << middle;
    ASSERT_EQ(format.from_float(-middle), 0x8000 | (bits % 2 == 0 ? bits : bits + 1)) << -middle;
  }
  EXPECT_EQ(format.from_float(std::numeric_limits<float>::max()), infinity);
  EXPECT_EQ(format.from_float(std::numeric_limits<float>::infinity()), infinity);
  EXPECT_EQ(format.from_float(-std::numeric_limits<float>::infinity()), 0x8000 | infinity);
}

TEST_P(ConvertTest, ArraysOfAnyLengthAndAlignment) {
  const Format& format = GetParam();
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t count = 0; count < 70; ++count) {
    std::vector<float> values(count + 1);
    for (float& value : values) value = normal(random);
    std::vector<uint16_t> narrow(count + 2, 0x1234);
    Convert(DType::kFloat32, values.data() + 1, format.dtype, narrow.data() + 1, count);
    EXPECT_EQ(narrow[0], 0x1234);
    EXPECT_EQ(narrow[count + 1], 0x1234);
    std::vector<float> wide(count, -1);
    Convert(format.dtype, narrow.data() + 1, DType::kFloat32, wide.data(), count);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(narrow[i + 1], format.from_float(values[i + 1]));
      EXPECT_EQ(wide[i], format.to_float(narrow[i + 1]));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, ConvertTest,
                         testing::Values(Format{DType::kBFloat16, 8, 7, Bf16FromFloat, FloatFromBf16},
                                         Format{DType::kFloat16, 5, 10, Fp16FromFloat, FloatFromFp16}),
                         [](const auto& info) { return std::string(info.param.exponent_bits == 8 ? "bf16" : "fp16"); });

TEST(ConvertTest, BetweenTheNarrowFormatsGoesThroughFloat) {
  for (uint32_t bits = 0; bits < 65536; bits += 7) {
    const uint16_t source = static_cast<uint16_t>(bits);
    uint16_t target = 0;
    Convert(DType::kBFloat16, &source, DType::kFloat16, &target, 1);
    EXPECT_EQ(target, Fp16FromFloat(FloatFromBf16(source)));
    Convert(DType::kFloat16, &source, DType::kBFloat16, &target, 1);
    EXPECT_EQ(target, Bf16FromFloat(FloatFromFp16(source)));
  }
}

TEST(ConvertTest, EqualTypesCopyEvenNaNBits) {
  const uint32_t source[2] = {0x7F800001, 0xFFFFFFFF};  // a signalling NaN among them
  uint32_t target[2] = {0, 0};
  Convert(DType::kFloat32, source, DType::kFloat32, target, 2);
  EXPECT_EQ(target[0], source[0]);
  EXPECT_EQ(target[1], source[1]);
}

}  // namespace
}  // namespace santa::cpu
