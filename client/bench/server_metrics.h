// What the server's /metrics say about a stretch of time.
#ifndef SANTA_CLIENT_BENCH_SERVER_METRICS_H_
#define SANTA_CLIENT_BENCH_SERVER_METRICS_H_

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace santa::bench {

// Counters, or the difference of two moments' counters. They count what all callers of the server did.
struct ServerCounters {
  double device_seconds = 0;   // that the device computed
  double steps = 0;            // answered
  double queue_seconds = 0;    // that these waited for their batch, summed
  double batches = 0;          // that the device ran
  double batch_items = 0;      // in them
  double kv_bytes_read = 0;    // that answers needed
  double tokens_appended = 0;  // counted once for each layer

  ServerCounters operator-(const ServerCounters& earlier) const;
  ServerCounters& operator+=(const ServerCounters& other);
};

// Values of Prometheus' text format, version 0.0.4, by name, summed over labels; a histogram's buckets are left out.
// Lines that are none are passed over.
std::map<std::string, double> SumByName(std::string_view text);

// NOT_FOUND when the text has no santa_device_seconds_total.
absl::StatusOr<ServerCounters> ParseCounters(std::string_view text);

// GET http://<address>/metrics; `address` is HOST:PORT, [IPv6]:PORT among them. INVALID_ARGUMENT: no such address.
// UNAVAILABLE: no answer within `timeout`, or one other than 200.
absl::StatusOr<ServerCounters> ScrapeCounters(const std::string& address, absl::Duration timeout = absl::Seconds(10));

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_SERVER_METRICS_H_
