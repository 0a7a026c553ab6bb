#include "kernels/attention.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace santa {
namespace {

// Layer and head share one 32-bit word of the random counter (kernels/sampling/uniform.h).
constexpr int32_t kMaxLayersOrHeads = 1 << 16;

// Strings, not views: the packaged Abseil's StrCat does not take std::string_view.
template <typename T>
absl::Status OutOfRange(const std::string& field, T value, const std::string& allowed) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", allowed));
}

// Zero stands for the default.
absl::Status ValidateZeroOrPositive(const char* field, float value, const char* meaning_of_zero) {
  if (std::isfinite(value) && value >= 0) return absl::OkStatus();
  return OutOfRange(field, value, absl::StrCat("0 (", meaning_of_zero, ") or finite and > 0"));
}

}  // namespace

std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "fp32";
    case DType::kBFloat16:
      return "bf16";
    case DType::kFloat16:
      return "fp16";
    case DType::kFloat8E4M3:
      return "fp8_e4m3";
  }
  return "unknown";
}

std::string_view Name(Method method) {
  switch (method) {
    case Method::kExact:
      return "EXACT";
    case Method::kSanta:
      return "SANTA";
    case Method::kStratified:
      return "STRATIFIED";
    case Method::kSystematic:
      return "SYSTEMATIC";
    case Method::kS2antaFlash:
      return "S2ANTA_FLASH";
    case Method::kS2antaProp:
      return "S2ANTA_PROP";
    case Method::kCoordinated:
      return "COORDINATED";
    case Method::kSketched:
      return "SKETCHED";
    case Method::kBernoulliQk:
      return "BERNOULLI_QK";
  }
  return "unknown";
}

std::string_view Name(KeyOrder order) {
  switch (order) {
    case KeyOrder::kTokenMajor:
      return "token";
    case KeyOrder::kFeatureMajor:
      return "feature";
  }
  return "unknown";
}

std::string_view Name(Sketch sketch) {
  switch (sketch) {
    case Sketch::kNone:
      return "none";
    case Sketch::kK4:
      return "k4";
    case Sketch::kK4V4:
      return "k4v4";
    case Sketch::kK8V8:
      return "k8v8";
  }
  return "unknown";
}

int64_t VisibleTokens(const DecodeItem& item) {
  const int64_t window = item.options.window;
  return window > 0 && window < item.num_tokens ? window : item.num_tokens;
}

bool ReadsAllValues(const DecodeItem& item) {
  if (!DrawsValues(item.options.method)) return true;
  const int64_t visible = VisibleTokens(item);
  return item.options.target_relative_error > 0 ? visible < kLeastTokensForTarget
                                                : static_cast<int64_t>(item.options.sample_count) >= visible;
}

bool IsExact(const DecodeItem& item) { return ReadsAllValues(item) && item.options.score_draws == 0; }

DecodeStatistics MakeStatistics(const KvLayout& layout, const DecodeItem& item, int64_t value_rows_read,
                                std::optional<int64_t> key_features_read) {
  const int64_t visible = VisibleTokens(item);
  const auto row_bytes = static_cast<int64_t>(layout.row_bytes());
  DecodeStatistics statistics = {.visible_tokens = visible,
                                 .key_rows_read = visible * layout.num_kv_heads,
                                 .value_rows_read = value_rows_read,
                                 .kv_bytes_read = 0,
                                 .dense_kv_bytes = 2 * visible * layout.num_kv_heads * row_bytes};
  int64_t sketch_bytes = 0;
  if (item.options.method == Method::kSketched && !IsExact(item)) {
    // Sketches of the full pages that hold a visible token, whole: their columns' ranges are no smaller for fewer rows.
    statistics.key_rows_read = value_rows_read;
    const int64_t pages = item.num_tokens / layout.page_size - (item.num_tokens - visible) / layout.page_size;
    const size_t page_bytes =
        layout.sketch_head_bytes(KeyBits(layout.sketch)) + layout.sketch_head_bytes(ValueBits(layout.sketch));
    sketch_bytes = pages * layout.num_kv_heads * static_cast<int64_t>(page_bytes);
  }
  const int64_t key_bytes = key_features_read.has_value()
                                ? *key_features_read * visible * static_cast<int64_t>(SizeOf(layout.dtype))
                                : statistics.key_rows_read * row_bytes;
  statistics.kv_bytes_read = key_bytes + value_rows_read * row_bytes + sketch_bytes;
  return statistics;
}

absl::Status SupportsLayout(const AttentionOptions& options, const KvLayout& layout) {
  if (options.method == Method::kSketched && options.score_draws > 0) {
    return absl::UnimplementedError(
        absl::StrCat("method is SKETCHED, score_draws is ", options.score_draws,
                     "; SKETCHED has its scores from the sketch, and takes no score draws"));
  }
  if (options.method == Method::kSketched && layout.sketch == Sketch::kNone) {
    return absl::UnimplementedError(
        "method is SKETCHED, sketch is none; SKETCHED needs a KV cache with a sketch (--sketch)");
  }
  if (options.score_draws > 0 && layout.key_order != KeyOrder::kFeatureMajor) {
    return absl::UnimplementedError(absl::StrCat(
        "method is ", std::string(Name(options.method)), ", score_draws is ", options.score_draws,
        ", key_order is token; score draws need a KV cache with feature-major keys (--key_order=feature)"));
  }
  return absl::OkStatus();
}

absl::Status Validate(const KvLayout& layout) {
  if (layout.num_layers < 1 || layout.num_layers > kMaxLayersOrHeads) {
    return OutOfRange("num_layers", layout.num_layers, "in [1, 65536]");
  }
  if (layout.num_kv_heads < 1 || layout.num_kv_heads > kMaxLayersOrHeads) {
    return OutOfRange("num_kv_heads", layout.num_kv_heads, "in [1, 65536]");
  }
  if (layout.num_query_heads < 1 || layout.num_query_heads > kMaxLayersOrHeads) {
    return OutOfRange("num_query_heads", layout.num_query_heads, "in [1, 65536]");
  }
  if (layout.num_query_heads % layout.num_kv_heads != 0) {
    return OutOfRange("num_query_heads", layout.num_query_heads,
                      absl::StrCat("a multiple of num_kv_heads, which is ", layout.num_kv_heads));
  }
  if (layout.head_dim < 8 || layout.head_dim > 256 || layout.head_dim % 8 != 0) {
    return OutOfRange("head_dim", layout.head_dim, "a multiple of 8 in [8, 256]");
  }
  if (layout.page_size < 16 || layout.page_size > 256 ||
      !std::has_single_bit(static_cast<uint32_t>(layout.page_size))) {
    return OutOfRange("page_size", layout.page_size, "a power of two in [16, 256]");
  }
  if (Name(layout.dtype) == "unknown") {
    return OutOfRange("dtype", static_cast<int>(layout.dtype), "fp32, bf16, fp16 or fp8_e4m3");
  }
  if (Name(layout.sketch) == "unknown") {
    return OutOfRange("sketch", static_cast<int>(layout.sketch), "none, k4, k4v4 or k8v8");
  }
  if (Name(layout.key_order) == "unknown") {
    return OutOfRange("key_order", static_cast<int>(layout.key_order), "token or feature");
  }
  if (layout.key_order == KeyOrder::kFeatureMajor && layout.sketch != Sketch::kNone) {
    return OutOfRange("sketch", std::string(Name(layout.sketch)), "none where key_order is feature");
  }
  return absl::OkStatus();
}

absl::Status Validate(const KvScales& scales, const KvLayout& layout) {
  if (scales.empty()) return absl::OkStatus();
  if (layout.dtype != DType::kFloat8E4M3) {
    return absl::InvalidArgumentError(
        absl::StrCat("k_scale and v_scale are for dtype fp8_e4m3; dtype is ", std::string(Name(layout.dtype))));
  }
  const size_t size = static_cast<size_t>(layout.num_layers) * layout.num_kv_heads;
  for (const auto& [field, values] : {std::pair{"k_scale", &scales.k}, std::pair{"v_scale", &scales.v}}) {
    if (values->size() != size) {
      return OutOfRange(absl::StrCat("the number of elements of ", field), values->size(),
                        absl::StrCat("num_layers * num_kv_heads = ", size));
    }
    for (const float scale : *values) {
      if (!std::isfinite(scale) || scale <= 0) return OutOfRange(field, scale, "finite and > 0");
    }
  }
  return absl::OkStatus();
}

namespace {

// score_draws with what else is asked for.
absl::Status ValidateScoreDraws(const AttentionOptions& options) {
  const uint32_t draws = options.score_draws;
  const auto range = [] { return absl::StrCat("in [1, ", kMaxScoreDraws, "]"); };  // made for errors alone
  if (options.method == Method::kBernoulliQk) {
    if (draws >= 1 && draws <= kMaxScoreDraws) return absl::OkStatus();
    return OutOfRange("score_draws", draws, absl::StrCat(range(), " for BERNOULLI_QK"));
  }
  if (draws == 0) return absl::OkStatus();
  if (options.method == Method::kExact) return OutOfRange("score_draws", draws, "0 for EXACT");
  if (options.target_relative_error != 0) {
    return OutOfRange("score_draws", draws, "0 where there is a target_relative_error");
  }
  if (draws <= kMaxScoreDraws) return absl::OkStatus();
  return OutOfRange("score_draws", draws, absl::StrCat("0 (exact scores) or ", range()));
}

}  // namespace

absl::Status Validate(const AttentionOptions& options) {
  if (Name(options.method) == "unknown") {
    return OutOfRange("method", static_cast<int>(options.method), "a known method");
  }
  if (absl::Status status = ValidateScoreDraws(options); !status.ok()) return status;
  const float target = options.target_relative_error;
  if (target != 0) {
    if (options.method != Method::kCoordinated && options.method != Method::kSketched) {
      return OutOfRange(
          "target_relative_error", target,
          absl::StrCat("0 for ", std::string(Name(options.method)), "; COORDINATED and SKETCHED take one"));
    }
    if (!(target > 0 && target < 1)) return OutOfRange("target_relative_error", target, "0 (none) or in (0, 1)");
    if (options.sample_count != 0) {
      return OutOfRange("sample_count", options.sample_count, "0 where there is a target_relative_error");
    }
  } else if (!DrawsValues(options.method)) {
    if (options.sample_count != 0) {
      return OutOfRange("sample_count", options.sample_count,
                        absl::StrCat("0 for ", std::string(Name(options.method))));
    }
  } else if (options.sample_count < 1 || options.sample_count > kMaxSampleCount) {
    return OutOfRange("sample_count", options.sample_count,
                      absl::StrCat("in [1, ", kMaxSampleCount, "] for ", std::string(Name(options.method))));
  }
  if (absl::Status status = ValidateZeroOrPositive("scale", options.scale, "1 / sqrt(head_dim)"); !status.ok()) {
    return status;
  }
  if (absl::Status status = ValidateZeroOrPositive("soft_cap", options.soft_cap, "none"); !status.ok()) return status;
  if (options.budget_rounding != BudgetRounding::kSystematic &&
      options.budget_rounding != BudgetRounding::kLargestRemainder) {
    return OutOfRange("budget_rounding", static_cast<int>(options.budget_rounding), "SYSTEMATIC or LARGEST_REMAINDER");
  }
  return absl::OkStatus();
}

}  // namespace santa
