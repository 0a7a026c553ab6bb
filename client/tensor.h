// Tensors as typed bytes: what safetensors files hold and what travels to the server. Row-major, little-endian.
#ifndef SANTA_CLIENT_TENSOR_H_
#define SANTA_CLIENT_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace santa {

enum class ElementType : uint8_t { kFloat32, kBFloat16, kFloat16, kInt64, kInt32, kUint8 };

size_t SizeOf(ElementType type);          // bytes of one element
std::string_view Name(ElementType type);  // as in safetensors: "F32", "BF16", "F16", "I64", "I32", "U8"
bool IsFloatingPoint(ElementType type);   // F32, BF16 or F16: the types that the server takes

// Does not own its bytes; they need no alignment.
struct TensorView {
  ElementType type = ElementType::kFloat32;
  std::vector<int64_t> shape;  // extents, outermost first, each >= 0; empty: a scalar
  std::string_view data;       // product(shape) * SizeOf(type) bytes

  int64_t num_elements() const { return static_cast<int64_t>(data.size() / SizeOf(type)); }
};

// A tensor with its own bytes.
struct Tensor {
  ElementType type = ElementType::kFloat32;
  std::vector<int64_t> shape;
  std::string data;

  TensorView view() const { return {type, shape, data}; }
};

// What a tensor of that shape takes. INVALID_ARGUMENT when an extent is negative or the size overflows.
absl::StatusOr<size_t> DataBytes(ElementType type, std::span<const int64_t> shape);

// OK, or INVALID_ARGUMENT when an extent is negative, the size overflows or `data` has another length.
absl::Status Validate(const TensorView& tensor);

// Conversions round to nearest, ties to even; overflow gives infinity, and a NaN stays a (quiet) NaN.
uint16_t FloatToBFloat16(float value);
float BFloat16ToFloat(uint16_t bits);
uint16_t FloatToFloat16(float value);
float Float16ToFloat(uint16_t bits);

// The elements of a valid floating-point tensor as fp32. INVALID_ARGUMENT for integer types and a wrong length.
absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor);

// `type` must be a floating-point type and `shape` have values.size() elements (not checked; see Validate).
Tensor FromFloats(std::span<const float> values, std::vector<int64_t> shape, ElementType type);

// Rows [begin, end) of the outermost extent. 0 <= begin <= end <= shape[0] is the caller's part.
TensorView Rows(const TensorView& tensor, int64_t begin, int64_t end);

}  // namespace santa

#endif  // SANTA_CLIENT_TENSOR_H_
