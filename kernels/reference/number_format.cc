#include "kernels/reference/number_format.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/attention.h"

namespace santa::reference {
namespace {

// A binary format: `significand` bits with the hidden one, exponents of normal numbers [least, greatest]. All but fp8
// are IEEE's; that has no infinities, and its one NaN of each sign has every other bit set.
struct Format {
  int bits;
  int significand;
  int least;
  int greatest;
};

constexpr double kLargestFloat8 = 448;
constexpr uint32_t kNanFloat8 = 0x7f;

Format FormatOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {.bits = 32, .significand = 24, .least = -126, .greatest = 127};
    case DType::kBFloat16:
      return {.bits = 16, .significand = 8, .least = -126, .greatest = 127};
    case DType::kFloat16:
      return {.bits = 16, .significand = 11, .least = -14, .greatest = 15};
    case DType::kFloat8E4M3:
      return {.bits = 8, .significand = 4, .least = -6, .greatest = 8};
  }
  return {};
}

// The exponent of x's last place in the format: subnormal numbers share that of the least normal one.
int LastPlace(const Format& format, double x) {
  return std::max(x == 0 ? format.least : std::ilogb(x), format.least) - (format.significand - 1);
}

}  // namespace

double Round(DType dtype, double x) {
  if (dtype == DType::kFloat8E4M3 && std::abs(x) > kLargestFloat8) return std::copysign(kLargestFloat8, x);
  if (!std::isfinite(x)) return x;
  const Format format = FormatOf(dtype);
  const int last = LastPlace(format, x);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
  const double limit = std::ldexp(1.0, format.greatest + 1);
  return std::abs(rounded) >= limit ? std::copysign(std::numeric_limits<double>::infinity(), x) : rounded;
}

uint32_t Encode(DType dtype, double x) {
  const Format format = FormatOf(dtype);
  const uint32_t sign = std::signbit(x) ? uint32_t{1} << (format.bits - 1) : 0;
  const uint32_t infinity = static_cast<uint32_t>(2 * format.greatest + 1) << (format.significand - 1);
  if (std::isnan(x) && dtype == DType::kFloat8E4M3) return sign | kNanFloat8;
  if (std::isnan(x)) return sign | infinity | uint32_t{1} << (format.significand - 2);
  if (std::isinf(x)) return sign | infinity;
  const int last = LastPlace(format, x);
  const auto places = static_cast<uint32_t>(std::ldexp(std::abs(x), -last));
  // A normal number's hidden one adds itself to the exponent field, which therefore starts one lower.
  const auto exponent = static_cast<uint32_t>(last + format.significand - 1 - format.least);
  return sign | ((exponent << (format.significand - 1)) + places);
}

double Decode(DType dtype, uint32_t bits) {
  const Format format = FormatOf(dtype);
  const uint32_t hidden = uint32_t{1} << (format.significand - 1);
  const double sign = bits >> (format.bits - 1) & 1 ? -1 : 1;
  const auto exponent = static_cast<int>((bits & ((uint32_t{1} << (format.bits - 1)) - 1)) / hidden);
  const uint32_t places = bits % hidden;
  if (dtype == DType::kFloat8E4M3 && (bits & kNanFloat8) == kNanFloat8) return std::numeric_limits<double>::quiet_NaN();
  if (exponent == 2 * format.greatest + 1) {
    return places == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  const int last = std::max(exponent, 1) - 1 + format.least - (format.significand - 1);
  return sign * std::ldexp(exponent == 0 ? places : places + hidden, last);
}

std::vector<uint8_t> EncodeAll(DType dtype, const std::vector<double>& values) {
  std::vector<uint8_t> bytes;
  bytes.reserve(values.size() * SizeOf(dtype));
  for (const double value : values) {
    const uint32_t bits = Encode(dtype, Round(dtype, value));
    for (size_t byte = 0; byte < SizeOf(dtype); ++byte) bytes.push_back(static_cast<uint8_t>(bits >> (8 * byte)));
  }
  return bytes;
}

std::vector<double> DecodeAll(DType dtype, const std::vector<uint8_t>& bytes) {
  std::vector<double> values;
  values.reserve(bytes.size() / SizeOf(dtype));
  for (size_t at = 0; at < bytes.size(); at += SizeOf(dtype)) {
    uint32_t bits = 0;
    for (size_t byte = 0; byte < SizeOf(dtype); ++byte) bits |= uint32_t{bytes[at + byte]} << (8 * byte);
    values.push_back(Decode(dtype, bits));
  }
  return values;
}

std::vector<double> RoundAll(DType dtype, const std::vector<double>& values) {
  std::vector<double> rounded(values.size());
  std::transform(values.begin(), values.end(), rounded.begin(), [dtype](double x) { return Round(dtype, x); });
  return rounded;
}

double RelativeRounding(DType dtype) { return std::ldexp(1.0, -FormatOf(dtype).significand); }

}  // namespace santa::reference
