#include "server/rpc/representable.h"

#include <algorithm>
#include <cstring>

namespace santa {
namespace {

// Without its sign, a floating-point number's bits order as its magnitude does: so the test is one integer comparison.
// The limits are the least bits that do not fit; those of a narrower `to` follow from rounding to nearest even. An fp8
// cache saturates, so that everything finite fits.
constexpr uint32_t FirstBad(DType from, DType to) {
  switch (from) {
    case DType::kFloat32:
      if (to == DType::kBFloat16) return 0x7f7f8000;  // half a unit above the largest bf16
      if (to == DType::kFloat16) return 0x477ff000;   // 65520
      return 0x7f800000;
    case DType::kBFloat16:
      return to == DType::kFloat16 ? 0x4780 : 0x7f80;  // 65536; 65280 is the bf16 before it
    case DType::kFloat16:
      return 0x7c00;
    case DType::kFloat8E4M3:  // no tensor's type
      break;
  }
  return 0;
}

template <typename Bits>
int64_t Find(const char* data, int64_t count, Bits first_bad) {
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  const auto load = [data](int64_t i) {
    Bits bits;
    std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    return static_cast<Bits>(bits & kMagnitude);
  };
  constexpr int64_t kBlock = 4096;  // elements looked at between two tests of the flag
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    Bits bad = 0;
    for (int64_t i = begin; i < end; ++i) bad |= static_cast<Bits>(load(i) >= first_bad);
    if (bad == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (load(i) >= first_bad) return i;
    }
  }
  return -1;
}

}  // namespace

int64_t FindUnrepresentable(const void* data, int64_t count, DType from, DType to) {
  const auto* bytes = static_cast<const char*>(data);
  const uint32_t first_bad = FirstBad(from, to);
  return from == DType::kFloat32 ? Find<uint32_t>(bytes, count, first_bad)
                                 : Find<uint16_t>(bytes, count, static_cast<uint16_t>(first_bad));
}

}  // namespace santa
