#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/bench/measure.h"

namespace santa::bench {
namespace {

std::string Tokens(const Options& options) {
  if (options.ragged.empty()) return absl::StrCat(options.tokens);
  const auto [least, most] = std::minmax_element(options.ragged.begin(), options.ragged.end());
  return absl::StrCat(*least, " to ", *most);
}

}  // namespace

std::string Table(const Options& options, const Report& report) {
  std::string table = absl::StrFormat(
      "%s\nbatch %d, %s tokens, %d query heads, %d key/value heads, head_dim %d, %s, page_size %d, keys by %s, sketch "
      "%s, %s, %s%s%s\n"
      "read bandwidth: %.1f GB/s\n\n"
      "%-13s %12s %10s %8s %8s %10s %10s %10s %10s %8s %12s%s\n",
      report.device, options.batch, Tokens(options), options.query_heads, options.kv_heads, options.head_dim,
      std::string(Name(options.dtype)), options.page_size, std::string(Name(options.key_order)),
      std::string(Name(options.sketch)),
      options.target_relative_error > 0 ? absl::StrCat("target ", options.target_relative_error)
                                        : absl::StrCat("S ", options.samples),
      options.score_draws > 0 ? absl::StrCat("R ", options.score_draws, ", ") : "",
      options.input.empty() ? absl::StrCat("sigma ", options.sigma) : absl::StrCat("input ", options.input),
      options.window > 0 ? absl::StrCat(", window ", options.window) : "", report.read_bytes_per_second / 1e9, "method",
      "us (median)", "KV MB read", "GB/s", "of read", "vs EXACT", "error", "told", "lse bias", "of K", "V rows read",
      options.target_relative_error > 0 ? "  within target  worst of it" : "");
  for (const Result& result : report.results) {
    const double gigabytes = static_cast<double>(result.kv_bytes_read) / result.microseconds / 1e3;
    absl::StrAppendFormat(
        &table, "%-13s %12.1f %10.1f %8.1f %7.0f%% %9.2fx %10.2g %10.2g %10.2g %7.1f%% %12d",
        std::string(Name(result.method)), result.microseconds, static_cast<double>(result.kv_bytes_read) / 1e6,
        gigabytes, 100 * result.bandwidth_ratio, result.speedup_vs_exact, result.relative_error, result.standard_error,
        result.lse_bias,
        200.0 * static_cast<double>(result.key_bytes_read) / static_cast<double>(result.dense_kv_bytes),
        result.value_rows_read);
    if (options.target_relative_error > 0) {
      absl::StrAppendFormat(&table, " %13.1f%% %12.2f", 100 * result.heads_within_target, result.worst_over_target);
    }
    absl::StrAppend(&table, "\n");
  }
  return table;
}

std::string JsonLines(const Options& options, const Report& report) {
  std::string lines;
  for (const Result& result : report.results) {
    const nlohmann::ordered_json line = {{"method", std::string(Name(result.method))},
                                         {"microseconds", result.microseconds},
                                         {"kv_bytes_read", result.kv_bytes_read},
                                         {"dense_kv_bytes", result.dense_kv_bytes},
                                         {"bandwidth_ratio", result.bandwidth_ratio},
                                         {"speedup_vs_exact", result.speedup_vs_exact},
                                         {"relative_error", result.relative_error},
                                         {"value_rows_read", result.value_rows_read},
                                         {"standard_error", result.standard_error},
                                         {"samples", options.samples},
                                         {"sketch", std::string(Name(options.sketch))},
                                         {"score_draws", options.score_draws},
                                         {"lse_bias", result.lse_bias},
                                         {"key_bytes_read", result.key_bytes_read},
                                         {"target_relative_error", options.target_relative_error},
                                         {"heads_within_target", result.heads_within_target},
                                         {"worst_over_target", result.worst_over_target}};
    absl::StrAppend(&lines, line.dump(), "\n");
  }
  return lines;
}

}  // namespace santa::bench
