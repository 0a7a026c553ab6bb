#include "kernels/cpu/convert.h"

#include <bit>
#include <cstring>

namespace santa::cpu {
namespace {

// Branch-free forms of the four conversions, so that the compiler vectorises the loops below.

inline uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded);
}

inline float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t ToFp16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  // Normal in fp16: move the exponent's bias from 127 to 15 and round the 13 bits that fall away; a carry into the
  // exponent is right, up to infinity.
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal: adding 0.5 lets the floating-point unit round to multiples of 2^-24.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= (143u << 23) ? 0x7C00u : half;  // 2^16 and more
  const uint32_t quiet = 0x7E00u | ((magnitude >> 13) & 0x3FF);
  half = magnitude > 0x7F800000u ? quiet : half;
  return static_cast<uint16_t>(sign | half);
}

inline float FromFp16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7FFF;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t special = (magnitude << 13) | 0x7F800000u;
  const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  uint32_t bits = magnitude < 0x400 ? subnormal : normal;
  bits = magnitude >= 0x7C00 ? special : bits;
  return std::bit_cast<float>(sign | bits);
}

template <typename Number>
inline Number Load(const void* source, size_t index) {
  Number number;
  std::memcpy(&number, static_cast<const char*>(source) + index * sizeof(Number), sizeof(Number));
  return number;
}

template <typename Number>
inline void Store(Number number, void* target, size_t index) {
  std::memcpy(static_cast<char*>(target) + index * sizeof(Number), &number, sizeof(Number));
}

template <typename From, typename To, typename Function>
void ForEach(const void* source, void* target, size_t count, Function function) {
  for (size_t i = 0; i < count; ++i) Store<To>(function(Load<From>(source, i)), target, i);
}

}  // namespace

uint16_t Bf16FromFloat(float value) { return ToBf16(value); }
uint16_t Fp16FromFloat(float value) { return ToFp16(value); }
float FloatFromBf16(uint16_t bits) { return FromBf16(bits); }
float FloatFromFp16(uint16_t bits) { return FromFp16(bits); }

void Convert(DType from, const void* source, DType to, void* target, size_t count) {
  if (from == to) {
    std::memcpy(target, source, count * SizeOf(from));
  } else if (from == DType::kFloat32 && to == DType::kBFloat16) {
    ForEach<float, uint16_t>(source, target, count, ToBf16);
  } else if (from == DType::kFloat32) {
    ForEach<float, uint16_t>(source, target, count, ToFp16);
  } else if (from == DType::kBFloat16 && to == DType::kFloat32) {
    ForEach<uint16_t, float>(source, target, count, FromBf16);
  } else if (from == DType::kBFloat16) {
    ForEach<uint16_t, uint16_t>(source, target, count, [](uint16_t bits) { return ToFp16(FromBf16(bits)); });
  } else if (to == DType::kFloat32) {
    ForEach<uint16_t, float>(source, target, count, FromFp16);
  } else {
    ForEach<uint16_t, uint16_t>(source, target, count, [](uint16_t bits) { return ToBf16(FromFp16(bits)); });
  }
}

}  // namespace santa::cpu
