#include "kernels/element.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace santa {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(ElementTest, ReadsEveryTypeOfATensor) {
  const std::vector<float> fp32 = {-1.5F, kInfinity};
  EXPECT_EQ(ElementAsFloat(fp32.data(), 0, DType::kFloat32), -1.5F);
  EXPECT_EQ(ElementAsFloat(fp32.data(), 1, DType::kFloat32), kInfinity);
  const std::vector<uint16_t> fp16 = {0x7bff, 0xfbff, 0x0001, 0xfc00, 0x7e00};
  EXPECT_EQ(ElementAsFloat(fp16.data(), 0, DType::kFloat16), 65504);
  EXPECT_EQ(ElementAsFloat(fp16.data(), 1, DType::kFloat16), -65504);
  EXPECT_EQ(ElementAsFloat(fp16.data(), 2, DType::kFloat16), std::ldexp(1.0F, -24));
  EXPECT_EQ(ElementAsFloat(fp16.data(), 3, DType::kFloat16), -kInfinity);
  EXPECT_TRUE(std::isnan(ElementAsFloat(fp16.data(), 4, DType::kFloat16)));
  const std::vector<uint16_t> bf16 = {0x4780, 0xff80};
  EXPECT_EQ(ElementAsFloat(bf16.data(), 0, DType::kBFloat16), 65536);
  EXPECT_EQ(ElementAsFloat(bf16.data(), 1, DType::kBFloat16), -kInfinity);
}

TEST(ElementTest, NeedsNoAlignment) {
  std::vector<char> bytes(1 + 2 * sizeof(float));
  const float value = 0.25F;
  std::memcpy(bytes.data() + 1 + sizeof(float), &value, sizeof(value));
  EXPECT_EQ(ElementAsFloat(bytes.data() + 1, 1, DType::kFloat32), value);
}

}  // namespace
}  // namespace santa
