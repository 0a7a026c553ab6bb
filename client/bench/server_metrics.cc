#include "client/bench/server_metrics.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "client/concat.h"
#include "client/http_get.h"

namespace santa::bench {

using client_internal::ForAbseil;

ServerCounters ServerCounters::operator-(const ServerCounters& earlier) const {
  return {.device_seconds = device_seconds - earlier.device_seconds,
          .steps = steps - earlier.steps,
          .queue_seconds = queue_seconds - earlier.queue_seconds,
          .batches = batches - earlier.batches,
          .batch_items = batch_items - earlier.batch_items,
          .kv_bytes_read = kv_bytes_read - earlier.kv_bytes_read,
          .tokens_appended = tokens_appended - earlier.tokens_appended};
}

ServerCounters& ServerCounters::operator+=(const ServerCounters& other) {
  device_seconds += other.device_seconds;
  steps += other.steps;
  queue_seconds += other.queue_seconds;
  batches += other.batches;
  batch_items += other.batch_items;
  kv_bytes_read += other.kv_bytes_read;
  tokens_appended += other.tokens_appended;
  return *this;
}

std::map<std::string, double> SumByName(std::string_view text) {
  std::map<std::string, double> sums;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.starts_with('#')) continue;
    const std::string_view name = line.substr(0, line.find_first_of("{ "));
    const size_t labels_end = line.rfind('}');
    std::string_view rest = line.substr(labels_end == std::string_view::npos ? name.size() : labels_end + 1);
    while (rest.starts_with(' ')) rest.remove_prefix(1);
    double value = 0;  // a timestamp may follow it
    if (name.ends_with("_bucket") || !absl::SimpleAtod(ForAbseil(rest.substr(0, rest.find(' '))), &value)) continue;
    sums[std::string(name)] += value;
  }
  return sums;
}

absl::StatusOr<ServerCounters> ParseCounters(std::string_view text) {
  std::map<std::string, double> sums = SumByName(text);
  if (sums.count("santa_device_seconds_total") == 0) {
    return absl::NotFoundError("there is no santa_device_seconds_total among the metrics");
  }
  return ServerCounters{.device_seconds = sums["santa_device_seconds_total"],
                        .steps = sums["santa_request_queue_seconds_count"],
                        .queue_seconds = sums["santa_request_queue_seconds_sum"],
                        .batches = sums["santa_batch_items_count"],
                        .batch_items = sums["santa_batch_items_sum"],
                        .kv_bytes_read = sums["santa_kv_bytes_read_total"],
                        .tokens_appended = sums["santa_tokens_appended_total"]};
}

absl::StatusOr<ServerCounters> ScrapeCounters(const std::string& address, absl::Duration timeout) {
  const absl::StatusOr<std::string> text = HttpGet(address, "/metrics", timeout);
  if (!text.ok()) return text.status();
  return ParseCounters(*text);
}

}  // namespace santa::bench
