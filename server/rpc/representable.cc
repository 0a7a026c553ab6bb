#include "server/rpc/representable.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

namespace santa {
namespace {

// Without its sign, a floating-point number's bits order as its magnitude does: so the test is one of integers. These
// are the largest bits that fit; those of a narrower `to` follow from rounding to nearest even. An fp8 cache saturates,
// so that everything finite fits.
constexpr uint32_t LastGood(DType from, DType to) {
  switch (from) {
    case DType::kFloat32:
      if (to == DType::kBFloat16) return 0x7f7f7fff;  // below half a unit above the largest bf16
      if (to == DType::kFloat16) return 0x477fefff;   // below 65520
      return 0x7f7fffff;
    case DType::kBFloat16:
      return to == DType::kFloat16 ? 0x477f : 0x7f7f;  // 65280, which 65536 follows
    case DType::kFloat16:
    case DType::kFloat8E4M3:  // no tensor's type
      break;
  }
  return 0x7bff;
}

// Whether one of the numbers' bits, without their sign, are above `last_good`. They and what lies between that and the
// largest such bits add up to one with the highest bit where they are: an addition and an OR a vector.
template <typename Bits>
__attribute__((always_inline)) inline bool AnyAbove(const char* data, int64_t count, Bits last_good) {
  constexpr Bits kMagnitude = std::numeric_limits<std::make_signed_t<Bits>>::max();
  const auto over = static_cast<Bits>(kMagnitude - last_good);
  Bits sums = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    sums |= static_cast<Bits>((bits & kMagnitude) + over);
  }
  return sums > kMagnitude;
}

// In vectors as long as the processor has them.
template <typename Bits>
__attribute__((target("avx2"))) bool AnyAboveAvx2(const char* data, int64_t count, Bits last_good) {
  return AnyAbove(data, count, last_good);
}
template <typename Bits>
bool AnyAboveHere(const char* data, int64_t count, Bits last_good) {
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  return has_avx2 ? AnyAboveAvx2(data, count, last_good) : AnyAbove(data, count, last_good);
}

template <typename Bits>
int64_t Find(const char* data, int64_t count, Bits last_good) {
  constexpr int64_t kBlock = 4096;  // elements looked at between two tests
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    const auto at = [data](int64_t i) { return data + i * static_cast<int64_t>(sizeof(Bits)); };
    if (!AnyAboveHere(at(begin), end - begin, last_good)) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (AnyAbove(at(i), 1, last_good)) return i;
    }
  }
  return -1;
}

}  // namespace

int64_t FindUnrepresentable(const void* data, int64_t count, DType from, DType to) {
  const auto* bytes = static_cast<const char*>(data);
  const uint32_t last_good = LastGood(from, to);
  return from == DType::kFloat32 ? Find(bytes, count, last_good) : Find(bytes, count, static_cast<uint16_t>(last_good));
}

}  // namespace santa
