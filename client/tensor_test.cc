#include "client/tensor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace santa {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A narrow type's finite non-negative values in order, by their definition: exponent and significand widths.
float Value(uint16_t bits, int significand_bits, int bias) {
  const int exponent = bits >> significand_bits;
  const int significand = bits & ((1 << significand_bits) - 1);
  if (exponent == 0) return static_cast<float>(std::ldexp(significand, 1 - bias - significand_bits));
  return static_cast<float>(std::ldexp((1 << significand_bits) + significand, exponent - bias - significand_bits));
}

struct Format {
  int significand_bits;
  int bias;
  uint16_t infinity;
  uint16_t (*narrow)(float);
  float (*widen)(uint16_t);
};

class NarrowFloat : public ::testing::TestWithParam<Format> {};

TEST_P(NarrowFloat, EveryValueSurvivesTheRoundTrip) {
  const Format& format = GetParam();
  for (uint32_t bits = 0; bits < format.infinity; ++bits) {
    const float value = Value(static_cast<uint16_t>(bits), format.significand_bits, format.bias);
    ASSERT_EQ(format.widen(static_cast<uint16_t>(bits)), value) << bits;
    ASSERT_EQ(format.narrow(value), bits) << value;
    ASSERT_EQ(format.widen(static_cast<uint16_t>(bits | 0x8000)), -value) << bits;
    ASSERT_EQ(format.narrow(-value), bits | 0x8000) << value;
  }
  EXPECT_EQ(format.widen(format.infinity), kInfinity);
  EXPECT_EQ(format.narrow(-kInfinity), format.infinity | 0x8000);
}

TEST_P(NarrowFloat, RoundsToNearestAndTiesToEven) {
  const Format& format = GetParam();
  for (uint32_t bits = 0; bits + 1 < format.infinity; ++bits) {
    const float low = format.widen(static_cast<uint16_t>(bits));
    const float high = format.widen(static_cast<uint16_t>(bits + 1));
    const auto middle = static_cast<float>((double{low} + double{high}) / 2);  // exact, but for the least bf16
    if (middle == low || middle == high) continue;
    ASSERT_EQ(format.narrow(middle), bits + bits % 2) << middle;
    ASSERT_EQ(format.narrow(std::nextafter(middle, low)), bits) << middle;
    ASSERT_EQ(format.narrow(std::nextafter(middle, high)), bits + 1) << middle;
  }
}

TEST_P(NarrowFloat, OverflowIsInfinityAndNanStaysNan) {
  const Format& format = GetParam();
  EXPECT_EQ(format.narrow(std::numeric_limits<float>::max()), format.infinity);
  EXPECT_EQ(format.narrow(std::numeric_limits<float>::lowest()), format.infinity | 0x8000);
  // Quiet and signalling, with payloads in the upper and in the lowest bits.
  for (const uint32_t bits : {0x7fc00000u, 0x7f800001u, 0xff812345u, 0xffffffffu}) {
    EXPECT_TRUE(std::isnan(format.widen(format.narrow(std::bit_cast<float>(bits))))) << bits;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, NarrowFloat,
                         ::testing::Values(Format{7, 127, 0x7f80, FloatToBFloat16, BFloat16ToFloat},
                                           Format{10, 15, 0x7c00, FloatToFloat16, Float16ToFloat}));

TEST(TensorTest, ConvertsToAndFromFloats) {
  const std::vector<float> values = {1.5f, -2.0f, 0.0f, 65504.0f, 3.25f, -0.125f};
  for (const ElementType type : {ElementType::kFloat32, ElementType::kFloat16}) {
    const Tensor tensor = FromFloats(values, {2, 3}, type);
    EXPECT_EQ(tensor.data.size(), values.size() * SizeOf(type));
    EXPECT_TRUE(Validate(tensor.view()).ok());
    EXPECT_EQ(*ToFloats(tensor.view()), values);
  }
  EXPECT_EQ((*ToFloats(FromFloats(values, {6}, ElementType::kBFloat16).view()))[3], 65536.0f);
  const Tensor integers{.type = ElementType::kInt32, .shape = {1}, .data = std::string(4, '\0')};
  EXPECT_EQ(ToFloats(integers.view()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TensorTest, ValidatesShapesAgainstBytes) {
  const std::string bytes(24, '\0');
  const auto code = [&bytes](std::vector<int64_t> shape, size_t size) {
    const TensorView view{ElementType::kFloat32, std::move(shape), std::string_view(bytes).substr(0, size)};
    return Validate(view).code();
  };
  EXPECT_EQ(code({2, 3}, 24), absl::StatusCode::kOk);
  EXPECT_EQ(code({}, 4), absl::StatusCode::kOk);
  EXPECT_EQ(code({int64_t{1} << 62, 0, int64_t{1} << 62}, 0), absl::StatusCode::kOk);
  EXPECT_EQ(code({2, 3}, 20), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({-2, -3}, 24), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({int64_t{1} << 62, 4}, 0), absl::StatusCode::kInvalidArgument);  // 2^66 bytes are not 0
}

TEST(TensorTest, TakesRows) {
  const Tensor tensor = FromFloats(std::vector<float>{0, 1, 2, 3, 4, 5}, {3, 2}, ElementType::kFloat32);
  const TensorView rows = Rows(tensor.view(), 1, 3);
  EXPECT_EQ(rows.shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(*ToFloats(rows), (std::vector<float>{2, 3, 4, 5}));
}

}  // namespace
}  // namespace santa
