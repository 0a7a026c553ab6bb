#include "server/rpc/validate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/element.h"
#include "server/rpc/convert.h"
#include "server/rpc/representable.h"

namespace santa {
namespace {

template <typename T>
absl::Status Bad(const std::string& field, const T& value, const std::string& allowed) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; allowed is ", allowed));
}

// "[1, 4, 8]"; at most 8 extents, as a request may claim any number of them.
template <typename Extents>
std::string ShapeText(const Extents& shape) {
  const auto shown = std::min<size_t>(shape.size(), 8);
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.begin() + shown, ", "),
                      shape.size() > shown ? ", ..." : "", "]");
}

std::string DTypeText(DType dtype) { return std::string(Name(dtype)); }

// Checks dtype, shape and length. `data` is the tensor's, here and below.
absl::StatusOr<DType> ReadTensor(const v1::Tensor& tensor, std::string_view data, const std::string& field,
                                 std::span<const int64_t> shape) {
  absl::StatusOr<DType> dtype = ToDType(tensor.dtype(), field + ".dtype");
  if (!dtype.ok()) return dtype;
  if (!std::equal(shape.begin(), shape.end(), tensor.shape().begin(), tensor.shape().end())) {
    return Bad(field + ".shape", ShapeText(tensor.shape()), ShapeText(shape));
  }
  size_t bytes = SizeOf(*dtype);
  for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);  // extents of the layout: no overflow
  if (data.size() != bytes) {
    return Bad(field + ".data", absl::StrCat(data.size(), " bytes long"),
               absl::StrCat(bytes, " for shape ", ShapeText(shape), " of ", DTypeText(*dtype)));
  }
  return dtype;
}

// Keys or values to store.
absl::StatusOr<DType> ReadStored(const v1::Tensor& tensor, std::string_view data, const std::string& field,
                                 std::span<const int64_t> shape, DType stored) {
  absl::StatusOr<DType> dtype = ReadTensor(tensor, data, field, shape);
  if (!dtype.ok()) return dtype;
  const auto count = static_cast<int64_t>(data.size() / SizeOf(*dtype));
  const int64_t bad = FindUnrepresentable(data.data(), count, *dtype, stored);
  if (bad >= 0) {
    return Bad(absl::StrCat(field, ".data: element ", bad), ElementAsFloat(data.data(), bad, *dtype),
               absl::StrCat("what is finite in the cache's dtype, ", DTypeText(stored)));
  }
  return dtype;
}

struct StoredTensor {
  const v1::Tensor& tensor;
  std::string_view data;
};

absl::Status ReadNewTokens(const StoredTensor& k, const StoredTensor& v, int64_t position, int64_t count,
                           const KvLayout& layout, NewTokens* out) {
  const std::array<int64_t, 3> shape = {count, layout.num_kv_heads, layout.head_dim};
  const absl::StatusOr<DType> k_dtype = ReadStored(k.tensor, k.data, "k", shape, layout.dtype);
  if (!k_dtype.ok()) return k_dtype.status();
  const absl::StatusOr<DType> v_dtype = ReadStored(v.tensor, v.data, "v", shape, layout.dtype);
  if (!v_dtype.ok()) return v_dtype.status();
  if (*k_dtype != *v_dtype) {
    return Bad("v.dtype", DTypeText(*v_dtype), absl::StrCat("that of k, ", DTypeText(*k_dtype)));
  }
  *out = {.position = position, .count = count, .dtype = *k_dtype, .k = k.data.data(), .v = v.data.data()};
  return absl::OkStatus();
}

absl::Status CheckPosition(int64_t position, const std::string& field) {
  return position >= 0 ? absl::OkStatus() : Bad(field, position, "0 or more");
}

absl::Status CheckSinks(const v1::AttentionOptions& options, int32_t num_query_heads, const std::string& field) {
  const auto& sinks = options.sink_logits();
  if (!sinks.empty() && sinks.size() != num_query_heads) {
    return Bad(field + ".sink_logits", absl::StrCat(sinks.size(), " long"),
               absl::StrCat("0 or the number of query heads, ", num_query_heads));
  }
  for (int i = 0; i < sinks.size(); ++i) {
    if (!std::isfinite(sinks[i])) return Bad(absl::StrCat(field, ".sink_logits[", i, "]"), sinks[i], "finite");
  }
  return absl::OkStatus();
}

// METHOD_UNSPECIFIED means EXACT.
bool KnownMethod(int wire_method, Method* method) {
  *method = Method::kExact;
  if (wire_method == v1::METHOD_UNSPECIFIED) return true;
  for (const Method known : kAllMethods) {
    if (ToMessage(known) != wire_method) continue;
    *method = known;
    return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<DType> ToDType(int wire_dtype, const std::string& field) {
  switch (wire_dtype) {
    case v1::DATA_TYPE_FLOAT32:
      return DType::kFloat32;
    case v1::DATA_TYPE_BFLOAT16:
      return DType::kBFloat16;
    case v1::DATA_TYPE_FLOAT16:
      return DType::kFloat16;
    case v1::DATA_TYPE_UNSPECIFIED:
      return Bad(field, "unspecified", "FLOAT32, BFLOAT16 or FLOAT16");
    default:
      return absl::UnimplementedError(
          absl::StrCat(field, " is ", wire_dtype, "; this server knows FLOAT32, BFLOAT16 and FLOAT16"));
  }
}

absl::StatusOr<SequenceHandle> ToHandle(bool present, const v1::SequenceHandle& handle, const std::string& field) {
  if (!present) return Bad(field, "absent", "the handle of a sequence");
  return SequenceHandle{.id = handle.id(), .generation = handle.generation()};
}

absl::StatusOr<AttentionOptions> ToOptions(const v1::AttentionOptions& options, int32_t num_query_heads,
                                           const std::string& field) {
  AttentionOptions out = {.sample_count = options.sample_count(),
                          .seed = options.seed(),
                          .scale = options.scale(),
                          .window = options.window(),
                          .soft_cap = options.soft_cap(),
                          .target_relative_error = options.target_relative_error(),
                          .score_draws = options.score_draws()};
  if (!KnownMethod(options.method(), &out.method)) {
    return absl::UnimplementedError(
        absl::StrCat(field, ".method is ", static_cast<int>(options.method()), "; GetServerInfo lists those known"));
  }
  switch (static_cast<int>(options.budget_rounding())) {
    case v1::BUDGET_ROUNDING_UNSPECIFIED:
    case v1::BUDGET_ROUNDING_SYSTEMATIC:
      break;
    case v1::BUDGET_ROUNDING_LARGEST_REMAINDER:
      out.budget_rounding = BudgetRounding::kLargestRemainder;
      break;
    default:
      return absl::UnimplementedError(absl::StrCat(field, ".budget_rounding is ",
                                                   static_cast<int>(options.budget_rounding()),
                                                   "; known are SYSTEMATIC and LARGEST_REMAINDER"));
  }
  if (const absl::Status status = Validate(out); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(field, ".", std::string(status.message())));
  }
  if (absl::Status status = CheckSinks(options, num_query_heads, field); !status.ok()) return status;
  return out;
}

absl::StatusOr<absl::Duration> ToLease(double seconds, absl::Duration max_lease) {
  const double max_seconds = absl::ToDoubleSeconds(max_lease);
  if (seconds == 0) return absl::ZeroDuration();
  if (!(seconds > 0 && seconds <= max_seconds)) {  // NaN is refused here too
    return Bad("lease_seconds", seconds, absl::StrCat("0 (the default) or (0, ", max_seconds, "]"));
  }
  // The least lease is not to become 0, which would ask for the default.
  return std::max(absl::Seconds(seconds), absl::Nanoseconds(1));
}

namespace {

// ReadAttendItem, with fields' names as of the item, which need no memory: a name of the whole is made for errors only.
absl::Status ReadNamelessItem(const v1::AttendItem& item, const ItemTensors& tensors, const KvLayout& layout,
                              StepItem* out) {
  const absl::StatusOr<SequenceHandle> handle = ToHandle(item.has_handle(), item.handle(), "handle");
  if (!handle.ok()) return handle.status();
  out->sequence = *handle;
  if (absl::Status status = CheckPosition(item.position(), "position"); !status.ok()) return status;
  out->position = item.position();

  if (!item.has_q()) return Bad("q", "absent", "a tensor");
  if (item.q().shape_size() == 3 && item.q().shape(0) > 1) {
    return absl::UnimplementedError(
        absl::StrCat("q.shape is ", ShapeText(item.q().shape()), "; this server takes one query token an item"));
  }
  const std::array<int64_t, 3> q_shape = {1, layout.num_query_heads, layout.head_dim};
  const absl::StatusOr<DType> io_dtype = ReadTensor(item.q(), tensors.q, "q", q_shape);
  if (!io_dtype.ok()) return io_dtype.status();
  const char* const q = tensors.q.data();
  if (!tensors.q_in_place) {
    const int64_t bad = FindUnrepresentable(q, q_shape[1] * q_shape[2], *io_dtype, *io_dtype);
    if (bad >= 0) return QueryIsNotFinite({.element = bad, .value = ElementAsFloat(q, bad, *io_dtype)});
  }
  out->maps_query = tensors.q_in_place || tensors.mapped;
  out->io_dtype = *io_dtype;
  out->q = q;

  if (item.has_k() != item.has_v()) return Bad(item.has_k() ? "v" : "k", "absent", "k and v, or neither");
  if (item.has_k()) {
    if (absl::Status status =
            ReadNewTokens({item.k(), tensors.k}, {item.v(), tensors.v}, item.position(), 1, layout, &out->tokens);
        !status.ok()) {
      return status;
    }
    out->tokens.mapped = tensors.mapped;
  }
  absl::StatusOr<AttentionOptions> options = ToOptions(item.options(), layout.num_query_heads, "options");
  if (!options.ok()) return options.status();
  out->options = *options;
  if (!item.options().sink_logits().empty()) out->sink_logits = item.options().sink_logits().data();
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadAttendItem(const v1::AttendItem& item, const ItemTensors& tensors, const std::string& field,
                            const KvLayout& layout, StepItem* out) {
  absl::Status status = ReadNamelessItem(item, tensors, layout, out);
  return status.ok() ? status : InItem(field, status);
}

absl::Status InItem(const std::string& item, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(item, ".", std::string(status.message())));
}

absl::Status ReadAppendChunk(const v1::AppendKvRequest& chunk, const SequenceHandle& handle, const KvLayout& layout,
                             StepItem* out) {
  out->sequence = handle;
  if (absl::Status status = CheckPosition(chunk.position(), "position"); !status.ok()) return status;
  if (!chunk.has_k()) return Bad("k", "absent", "a tensor");
  if (!chunk.has_v()) return Bad("v", "absent", "a tensor");
  if (chunk.k().shape_size() != 3 || chunk.k().shape(0) < 1) {
    return Bad("k.shape", ShapeText(chunk.k().shape()),
               absl::StrCat("[tokens, ", layout.num_kv_heads, ", ", layout.head_dim, "] with 1 token or more"));
  }
  // The data that came bounds the tokens that can be meant, and so keeps the product of the extents from overflowing.
  const int64_t count = chunk.k().shape(0);
  const auto most = static_cast<int64_t>(std::max(chunk.k().data().size(), chunk.v().data().size()));
  if (count > most) {
    return Bad("k.shape", ShapeText(chunk.k().shape()),
               absl::StrCat("what fits the ", chunk.k().data().size(), " bytes of k.data"));
  }
  return ReadNewTokens({chunk.k(), chunk.k().data()}, {chunk.v(), chunk.v().data()}, chunk.position(), count, layout,
                       &out->tokens);
}

absl::Status CheckLayer(uint32_t layer, const KvLayout& layout) {
  if (layer < static_cast<uint32_t>(layout.num_layers)) return absl::OkStatus();
  return Bad("layer", layer, absl::StrCat("[0, ", layout.num_layers, ")"));
}

std::string_view MethodLabel(int wire_method) {
  Method method = Method::kExact;
  return KnownMethod(wire_method, &method) ? Name(method) : "UNKNOWN";
}

}  // namespace santa
