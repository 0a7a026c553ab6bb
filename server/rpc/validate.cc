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
std::string ShapeText(std::span<const int64_t> extents, bool more = false) {
  return absl::StrCat("[", absl::StrJoin(extents, ", "), more ? ", ..." : "", "]");
}
std::string ShapeText(const TensorFields& tensor) {
  const int shown = std::min(tensor.num_extents, TensorFields::kMostExtents);
  return ShapeText(std::span(tensor.extents).first(shown), tensor.num_extents > shown);
}

std::string DTypeText(DType dtype) { return std::string(Name(dtype)); }

bool IsKnown(int wire_dtype, DType* dtype) {
  switch (wire_dtype) {
    case v1::DATA_TYPE_FLOAT32:
      *dtype = DType::kFloat32;
      return true;
    case v1::DATA_TYPE_BFLOAT16:
      *dtype = DType::kBFloat16;
      return true;
    case v1::DATA_TYPE_FLOAT16:
      *dtype = DType::kFloat16;
      return true;
    default:
      return false;
  }
}

// Checks dtype, shape and length.
absl::Status ReadTensor(const TensorFields& tensor, const char* field, const std::array<int64_t, 3>& shape,
                        DType* dtype) {
  if (!IsKnown(tensor.dtype, dtype)) return ToDType(tensor.dtype, absl::StrCat(field, ".dtype")).status();
  if (tensor.num_extents != 3 || !std::equal(shape.begin(), shape.end(), tensor.extents.begin())) {
    return Bad(absl::StrCat(field, ".shape"), ShapeText(tensor), ShapeText(shape));
  }
  size_t bytes = SizeOf(*dtype);
  for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);  // extents of the layout: no overflow
  if (tensor.data.size() != bytes) {
    return Bad(absl::StrCat(field, ".data"), absl::StrCat(tensor.data.size(), " bytes long"),
               absl::StrCat(bytes, " for shape ", ShapeText(shape), " of ", DTypeText(*dtype)));
  }
  return absl::OkStatus();
}

// Keys or values to store.
absl::Status ReadStored(const TensorFields& tensor, const char* field, const std::array<int64_t, 3>& shape,
                        DType stored, DType* dtype) {
  if (absl::Status status = ReadTensor(tensor, field, shape, dtype); !status.ok()) return status;
  const auto count = static_cast<int64_t>(tensor.data.size() / SizeOf(*dtype));
  const int64_t bad = FindUnrepresentable(tensor.data.data(), count, *dtype, stored);
  if (bad < 0) return absl::OkStatus();
  return Bad(absl::StrCat(field, ".data: element ", bad), ElementAsFloat(tensor.data.data(), bad, *dtype),
             absl::StrCat("what is finite in the cache's dtype, ", DTypeText(stored)));
}

absl::Status ReadNewTokens(const TensorFields& k, const TensorFields& v, int64_t position, int64_t count,
                           const KvLayout& layout, NewTokens* out) {
  const std::array<int64_t, 3> shape = {count, layout.num_kv_heads, layout.head_dim};
  DType k_dtype = DType::kFloat32, v_dtype = DType::kFloat32;
  if (absl::Status status = ReadStored(k, "k", shape, layout.dtype, &k_dtype); !status.ok()) return status;
  if (absl::Status status = ReadStored(v, "v", shape, layout.dtype, &v_dtype); !status.ok()) return status;
  if (k_dtype != v_dtype) {
    return Bad("v.dtype", DTypeText(v_dtype), absl::StrCat("that of k, ", DTypeText(k_dtype)));
  }
  *out = {.position = position, .count = count, .dtype = k_dtype, .k = k.data.data(), .v = v.data.data()};
  return absl::OkStatus();
}

absl::Status CheckPosition(int64_t position) {
  return position >= 0 ? absl::OkStatus() : Bad("position", position, "0 or more");
}

absl::Status NoHandle(const std::string& field) { return Bad(field, "absent", "the handle of a sequence"); }

absl::Status CheckSinks(std::span<const float> sinks, int32_t num_query_heads) {
  if (!sinks.empty() && sinks.size() != static_cast<size_t>(num_query_heads)) {
    return Bad("options.sink_logits", absl::StrCat(sinks.size(), " long"),
               absl::StrCat("0 or the number of query heads, ", num_query_heads));
  }
  for (size_t i = 0; i < sinks.size(); ++i) {
    if (!std::isfinite(sinks[i])) return Bad(absl::StrCat("options.sink_logits[", i, "]"), sinks[i], "finite");
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

absl::Status ReadOptions(const OptionFields& options, int32_t num_query_heads, AttentionOptions* out) {
  *out = {.sample_count = options.sample_count,
          .seed = options.seed,
          .scale = options.scale,
          .window = options.window,
          .soft_cap = options.soft_cap,
          .target_relative_error = options.target_relative_error,
          .score_draws = options.score_draws};
  if (!KnownMethod(options.method, &out->method)) {
    return absl::UnimplementedError(
        absl::StrCat("options.method is ", options.method, "; GetServerInfo lists those known"));
  }
  switch (options.budget_rounding) {
    case v1::BUDGET_ROUNDING_UNSPECIFIED:
    case v1::BUDGET_ROUNDING_SYSTEMATIC:
      break;
    case v1::BUDGET_ROUNDING_LARGEST_REMAINDER:
      out->budget_rounding = BudgetRounding::kLargestRemainder;
      break;
    default:
      return absl::UnimplementedError(absl::StrCat("options.budget_rounding is ", options.budget_rounding,
                                                   "; known are SYSTEMATIC and LARGEST_REMAINDER"));
  }
  if (const absl::Status status = Validate(*out); !status.ok()) return InItem("options", status);
  return CheckSinks(options.sink_logits, num_query_heads);
}

}  // namespace

absl::StatusOr<DType> ToDType(int wire_dtype, const std::string& field) {
  DType dtype = DType::kFloat32;
  if (IsKnown(wire_dtype, &dtype)) return dtype;
  if (wire_dtype == v1::DATA_TYPE_UNSPECIFIED) return Bad(field, "unspecified", "FLOAT32, BFLOAT16 or FLOAT16");
  return absl::UnimplementedError(
      absl::StrCat(field, " is ", wire_dtype, "; this server knows FLOAT32, BFLOAT16 and FLOAT16"));
}

absl::StatusOr<SequenceHandle> ToHandle(bool present, const v1::SequenceHandle& handle, const std::string& field) {
  if (!present) return NoHandle(field);
  return SequenceHandle{.id = handle.id(), .generation = handle.generation()};
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

absl::Status ReadAttendItem(const ItemFields& item, const KvLayout& layout, StepItem* out) {
  const ItemTensors& tensors = item.tensors;
  if (!item.has_handle) return NoHandle("handle");
  out->sequence = item.handle;
  if (absl::Status status = CheckPosition(item.position); !status.ok()) return status;
  out->position = item.position;

  if (!tensors.q.present) return Bad("q", "absent", "a tensor");
  if (tensors.q.num_extents == 3 && tensors.q.extents[0] > 1) {
    return absl::UnimplementedError(
        absl::StrCat("q.shape is ", ShapeText(tensors.q), "; this server takes one query token an item"));
  }
  const std::array<int64_t, 3> q_shape = {1, layout.num_query_heads, layout.head_dim};
  if (absl::Status status = ReadTensor(tensors.q, "q", q_shape, &out->io_dtype); !status.ok()) return status;
  const char* const q = tensors.q.data.data();
  if (!tensors.q_in_place) {
    const int64_t bad = FindUnrepresentable(q, q_shape[1] * q_shape[2], out->io_dtype, out->io_dtype);
    if (bad >= 0) return QueryIsNotFinite({.element = bad, .value = ElementAsFloat(q, bad, out->io_dtype)});
  }
  out->maps_query = tensors.q_in_place || tensors.mapped;
  out->q = q;

  const bool has_k = tensors.k.present;
  if (has_k != tensors.v.present) return Bad(has_k ? "v" : "k", "absent", "k and v, or neither");
  if (has_k) {
    if (absl::Status status = ReadNewTokens(tensors.k, tensors.v, item.position, 1, layout, &out->tokens);
        !status.ok()) {
      return status;
    }
    out->tokens.mapped = tensors.mapped;
  }
  if (absl::Status status = ReadOptions(item.options, layout.num_query_heads, &out->options); !status.ok()) {
    return status;
  }
  if (!item.options.sink_logits.empty()) out->sink_logits = item.options.sink_logits.data();
  return absl::OkStatus();
}

absl::Status InItem(const std::string& item, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(item, ".", std::string(status.message())));
}

absl::Status ReadAppendChunk(const v1::AppendKvRequest& chunk, const SequenceHandle& handle, const KvLayout& layout,
                             StepItem* out) {
  out->sequence = handle;
  if (absl::Status status = CheckPosition(chunk.position()); !status.ok()) return status;
  if (!chunk.has_k()) return Bad("k", "absent", "a tensor");
  if (!chunk.has_v()) return Bad("v", "absent", "a tensor");
  const TensorFields k = FieldsOf(true, chunk.k()), v = FieldsOf(true, chunk.v());
  if (k.num_extents != 3 || k.extents[0] < 1) {
    return Bad("k.shape", ShapeText(k),
               absl::StrCat("[tokens, ", layout.num_kv_heads, ", ", layout.head_dim, "] with 1 token or more"));
  }
  // The data that came bounds the tokens that can be meant, and so keeps the product of the extents from overflowing.
  const int64_t count = k.extents[0];
  const auto most = static_cast<int64_t>(std::max(k.data.size(), v.data.size()));
  if (count > most) {
    return Bad("k.shape", ShapeText(k), absl::StrCat("what fits the ", k.data.size(), " bytes of k.data"));
  }
  return ReadNewTokens(k, v, chunk.position(), count, layout, &out->tokens);
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
