#include "client/wire.h"

#include <span>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "client/concat.h"

namespace santa {
namespace {

using client_internal::Concat;

constexpr std::string_view kMethodPrefix = "METHOD_";

}  // namespace

v1::DataType ToWire(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return v1::DATA_TYPE_FLOAT32;
    case ElementType::kBFloat16:
      return v1::DATA_TYPE_BFLOAT16;
    case ElementType::kFloat16:
      return v1::DATA_TYPE_FLOAT16;
    default:
      return v1::DATA_TYPE_UNSPECIFIED;
  }
}

v1::Tensor ToWire(const TensorView& tensor) {
  v1::Tensor wire;
  wire.set_dtype(ToWire(tensor.type));
  wire.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  wire.set_data(tensor.data.data(), tensor.data.size());
  return wire;
}

absl::StatusOr<ElementType> FromWire(v1::DataType type) {
  switch (type) {
    case v1::DATA_TYPE_FLOAT32:
      return ElementType::kFloat32;
    case v1::DATA_TYPE_BFLOAT16:
      return ElementType::kBFloat16;
    case v1::DATA_TYPE_FLOAT16:
      return ElementType::kFloat16;
    default:
      return absl::InvalidArgumentError(Concat("dtype ", static_cast<int>(type), " is not known"));
  }
}

absl::StatusOr<size_t> DataBytes(const v1::Tensor& tensor) {
  const absl::StatusOr<ElementType> type = FromWire(tensor.dtype());
  if (!type.ok()) return type.status();
  return DataBytes(*type, std::span(tensor.shape().data(), static_cast<size_t>(tensor.shape_size())));
}

absl::StatusOr<TensorView> FromWire(const v1::Tensor& tensor) {
  const absl::StatusOr<ElementType> type = FromWire(tensor.dtype());
  if (!type.ok()) return type.status();
  TensorView view;
  view.type = *type;
  view.shape.assign(tensor.shape().begin(), tensor.shape().end());
  view.data = tensor.data();
  if (absl::Status status = Validate(view); !status.ok()) return status;
  return view;
}

absl::StatusOr<std::vector<float>> ToFloats(const v1::Tensor& tensor) {
  absl::StatusOr<TensorView> view = FromWire(tensor);
  if (!view.ok()) return view.status();
  return ToFloats(*view);
}

absl::Status ToStatus(const v1::ItemStatus& status) {
  return {static_cast<absl::StatusCode>(status.code()), status.message()};
}

bool DrawsValues(v1::Method method) { return method != v1::METHOD_EXACT && method != v1::METHOD_BERNOULLI_QK; }

std::string_view MethodName(v1::Method method) {
  // The generated name is a static string that the library keeps.
  const std::string_view name = v1::Method_Name(method);
  return name.starts_with(kMethodPrefix) ? name.substr(kMethodPrefix.size()) : "?";
}

absl::StatusOr<v1::Method> ParseMethod(std::string_view name) {
  v1::Method method;
  const std::string full_name = Concat(kMethodPrefix, absl::AsciiStrToUpper(std::string(name)));
  if (v1::Method_Parse(full_name, &method) && method != v1::METHOD_UNSPECIFIED) return method;
  std::vector<std::string> names;
  for (int value = v1::METHOD_UNSPECIFIED + 1; value < v1::Method_ARRAYSIZE; ++value) {
    names.emplace_back(MethodName(static_cast<v1::Method>(value)));
  }
  return absl::InvalidArgumentError(
      Concat("method \"", name, "\" is not known; it is one of ", absl::StrJoin(names, ", ")));
}

}  // namespace santa
