// Between the client's types and the API's messages.
#ifndef SANTA_CLIENT_WIRE_H_
#define SANTA_CLIENT_WIRE_H_

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/tensor.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

// The floating-point types only; integer types give DATA_TYPE_UNSPECIFIED, which the server refuses.
v1::DataType ToWire(ElementType type);
v1::Tensor ToWire(const TensorView& tensor);

// Of the floating-point types. INVALID_ARGUMENT for others.
absl::StatusOr<ElementType> FromWire(v1::DataType type);
// What its dtype and shape say that its data takes. INVALID_ARGUMENT as above, and as DataBytes of a shape has it.
absl::StatusOr<size_t> DataBytes(const v1::Tensor& tensor);

// Views the message's bytes: valid while the message is. INVALID_ARGUMENT for a dtype or length that does not fit.
absl::StatusOr<TensorView> FromWire(const v1::Tensor& tensor);

// The elements as fp32.
absl::StatusOr<std::vector<float>> ToFloats(const v1::Tensor& tensor);

absl::Status ToStatus(const v1::ItemStatus& status);

// "S2ANTA_FLASH" for METHOD_S2ANTA_FLASH, and back; case does not matter. INVALID_ARGUMENT lists the names.
std::string_view MethodName(v1::Method method);
// Whether it takes a sample count.
bool DrawsValues(v1::Method method);
absl::StatusOr<v1::Method> ParseMethod(std::string_view name);

}  // namespace santa

#endif  // SANTA_CLIENT_WIRE_H_
