#include "server/rpc/representable.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace santa {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t FindInFloats(const std::vector<float>& values, DType to) {
  return FindUnrepresentable(values.data(), static_cast<int64_t>(values.size()), DType::kFloat32, to);
}

TEST(RepresentableTest, FindsTheFirstBadElementWhereverItLies) {
  for (const float bad : {kInfinity, -kInfinity, std::nanf(""), -std::nanf("")}) {
    for (const size_t at : {0, 1, 63, 4095, 4096, 9999}) {
      std::vector<float> values(10000, -1.5F);
      values[at] = bad;
      values.back() = bad;
      for (const DType to : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        EXPECT_EQ(FindInFloats(values, to), static_cast<int64_t>(at));
      }
    }
  }
  EXPECT_EQ(FindInFloats({}, DType::kFloat32), -1);
}

TEST(RepresentableTest, ALimitIsWhereRoundingOverflows) {
  const float largest = std::numeric_limits<float>::max();
  EXPECT_EQ(FindInFloats({largest, -largest, 0}, DType::kFloat32), -1);
  EXPECT_EQ(FindInFloats({largest}, DType::kBFloat16), 0);
  EXPECT_EQ(FindInFloats({std::bit_cast<float>(0x7f7f7fffU)}, DType::kBFloat16), -1);
  EXPECT_EQ(FindInFloats({std::bit_cast<float>(0x7f7f8000U)}, DType::kBFloat16), 0);
  EXPECT_EQ(FindInFloats({65504, std::nextafter(65520.0F, 0.0F)}, DType::kFloat16), -1);
  EXPECT_EQ(FindInFloats({1, -65520}, DType::kFloat16), 1);
  EXPECT_EQ(FindInFloats({largest, 449, kInfinity}, DType::kFloat8E4M3), 2);
}

TEST(RepresentableTest, SixteenBitElements) {
  const std::vector<uint16_t> bf16 = {0x7f7f, 0xff7f, 0x477f, 0x4780, 0x7f80, 0x7fc0};
  EXPECT_EQ(FindUnrepresentable(bf16.data(), 6, DType::kBFloat16, DType::kFloat32), 4);
  EXPECT_EQ(FindUnrepresentable(bf16.data() + 2, 4, DType::kBFloat16, DType::kFloat16), 1);
  const std::vector<uint16_t> fp16 = {0x7bff, 0xfbff, 0x0001, 0xfc00};
  EXPECT_EQ(FindUnrepresentable(fp16.data(), 4, DType::kFloat16, DType::kBFloat16), 3);
}

TEST(RepresentableTest, NeedsNoAlignment) {
  std::vector<char> bytes(1 + 8 * sizeof(float), 0);
  EXPECT_EQ(FindUnrepresentable(bytes.data() + 1, 8, DType::kFloat32, DType::kBFloat16), -1);
}

}  // namespace
}  // namespace santa
