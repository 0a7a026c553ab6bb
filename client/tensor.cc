#include "client/tensor.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_join.h"
#include "client/concat.h"

namespace santa {
namespace {

using client_internal::Concat;

static_assert(std::endian::native == std::endian::little, "tensors travel as little-endian bytes");

template <typename T, typename Convert>
std::vector<float> ConvertAll(std::string_view data, Convert convert) {
  std::vector<float> values(data.size() / sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    T element;
    std::memcpy(&element, data.data() + i * sizeof(T), sizeof(T));
    values[i] = convert(element);
  }
  return values;
}

template <typename Convert>
std::string Narrow(std::span<const float> values, Convert convert) {
  std::string data(values.size() * sizeof(uint16_t), '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = convert(values[i]);
    std::memcpy(data.data() + i * sizeof(bits), &bits, sizeof(bits));
  }
  return data;
}

}  // namespace

size_t SizeOf(ElementType type) {
  switch (type) {
    case ElementType::kInt64:
      return 8;
    case ElementType::kFloat32:
    case ElementType::kInt32:
      return 4;
    case ElementType::kBFloat16:
    case ElementType::kFloat16:
      return 2;
    case ElementType::kUint8:
      return 1;
  }
  return 1;
}

std::string_view Name(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return "F32";
    case ElementType::kBFloat16:
      return "BF16";
    case ElementType::kFloat16:
      return "F16";
    case ElementType::kInt64:
      return "I64";
    case ElementType::kInt32:
      return "I32";
    case ElementType::kUint8:
      return "U8";
  }
  return "?";
}

bool IsFloatingPoint(ElementType type) {
  return type == ElementType::kFloat32 || type == ElementType::kBFloat16 || type == ElementType::kFloat16;
}

absl::StatusOr<size_t> DataBytes(ElementType type, std::span<const int64_t> shape) {
  uint64_t bytes = SizeOf(type);
  bool empty = false;
  bool overflow = false;
  for (const int64_t extent : shape) {
    if (extent < 0) {
      return absl::InvalidArgumentError(Concat("shape [", absl::StrJoin(shape, ", "), "] has a negative extent"));
    }
    empty |= extent == 0;
    overflow |= __builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes);
  }
  // A product with a zero in it is zero, even where the others alone would overflow.
  if (empty) return 0;
  if (overflow) {
    return absl::InvalidArgumentError(
        Concat("shape [", absl::StrJoin(shape, ", "), "] has more bytes than 64 bits count"));
  }
  return bytes;
}

absl::Status Validate(const TensorView& tensor) {
  const absl::StatusOr<size_t> bytes = DataBytes(tensor.type, tensor.shape);
  if (!bytes.ok()) return bytes.status();
  if (*bytes != tensor.data.size()) {
    return absl::InvalidArgumentError(Concat(Name(tensor.type), " tensor of shape [", absl::StrJoin(tensor.shape, ", "),
                                             "] needs ", *bytes, " bytes, it has ", tensor.data.size()));
  }
  return absl::OkStatus();
}

uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    // The upper half of a NaN may have an empty significand, which would make it an infinity: set the quiet bit.
    return static_cast<uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float BFloat16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t FloatToFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));  // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 half precision is fixed point in units of 2^-24. Adding 0.5 to |value| aligns it so that the unit is
    // the last bit of the sum, which the processor rounds to nearest even.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
  }
  // Rebias the exponent from 127 to 15 and round; a carry out of the significand increments the exponent, as it should.
  const uint32_t rebiased = magnitude - (112u << 23);
  return static_cast<uint16_t>(sign | ((rebiased + 0xfffu + ((rebiased >> 13) & 1u)) >> 13));
}

float Float16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t significand = bits & 0x3ffu;
  if (exponent == 0) {
    const float value = static_cast<float>(significand) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const uint32_t wide_exponent = exponent == 0x1fu ? 0xffu : exponent + 112u;
  return std::bit_cast<float>(sign | (wide_exponent << 23) | (significand << 13));
}

absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor) {
  if (absl::Status status = Validate(tensor); !status.ok()) return status;
  switch (tensor.type) {
    case ElementType::kFloat32:
      return ConvertAll<float>(tensor.data, [](float value) { return value; });
    case ElementType::kBFloat16:
      return ConvertAll<uint16_t>(tensor.data, BFloat16ToFloat);
    case ElementType::kFloat16:
      return ConvertAll<uint16_t>(tensor.data, Float16ToFloat);
    default:
      return absl::InvalidArgumentError(
          Concat("dtype ", Name(tensor.type), " is not a floating-point type (F32, BF16, F16)"));
  }
}

Tensor FromFloats(std::span<const float> values, std::vector<int64_t> shape, ElementType type) {
  Tensor tensor{.type = type, .shape = std::move(shape), .data = {}};
  if (type == ElementType::kBFloat16) {
    tensor.data = Narrow(values, FloatToBFloat16);
  } else if (type == ElementType::kFloat16) {
    tensor.data = Narrow(values, FloatToFloat16);
  } else if (!values.empty()) {
    tensor.data.assign(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  }
  return tensor;
}

TensorView Rows(const TensorView& tensor, int64_t begin, int64_t end) {
  TensorView rows = tensor;
  const size_t row_bytes = tensor.shape[0] == 0 ? 0 : tensor.data.size() / static_cast<size_t>(tensor.shape[0]);
  rows.shape[0] = end - begin;
  rows.data = tensor.data.substr(static_cast<size_t>(begin) * row_bytes, static_cast<size_t>(end - begin) * row_bytes);
  return rows;
}

}  // namespace santa
