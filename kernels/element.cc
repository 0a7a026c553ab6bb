#include "kernels/element.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace santa {

float ElementAsFloat(const void* data, int64_t index, DType dtype) {
  const char* place = static_cast<const char*>(data) + index * static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kFloat32) {
    float value = 0;
    std::memcpy(&value, place, sizeof(value));
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, place, sizeof(bits));
  if (dtype == DType::kBFloat16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  const int exponent = (bits >> 10) & 0x1f;
  const int mantissa = bits & 0x3ff;
  const float sign = (bits & 0x8000) != 0 ? -1.0F : 1.0F;
  if (exponent == 0x1f) return mantissa != 0 ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                               : std::ldexp(static_cast<float>(mantissa + 0x400), exponent - 25));
}

}  // namespace santa
