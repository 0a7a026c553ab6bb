// A whole load: prepares the clients, warms up, measures, releases.
#ifndef SANTA_CLIENT_BENCH_LOAD_RUN_H_
#define SANTA_CLIENT_BENCH_LOAD_RUN_H_

#include <atomic>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/bench/load_counts.h"
#include "client/bench/load_options.h"
#include "client/bench/server_metrics.h"

namespace santa::bench {

struct LoadResult {
  v1::ServerInfo server;
  double seconds = 0;  // measured
  LoadCounts counts;
  std::vector<int64_t> client_p99;  // nanoseconds, of each client that decodes and had an answer; in ascending order
  // Of an echo: how long a message and its answer of the steps' sizes took, closed loop with as many clients and
  // messages in flight.
  std::optional<LatencyHistogram> echo;
  int64_t request_bytes = 0;  // a step's messages, as encoded; 0: no echo was asked for
  int64_t answer_bytes = 0;
  // From /metrics, if asked for: what the server counted, and in how many seconds.
  std::optional<ServerCounters> server_counters;
  double server_seconds = 0;
  std::string metrics_error;  // why they are not there, where the server did not answer at the end
};

// With an echo, load and echo take turns, several each, so that both meet the same machine; each is measured for
// options.seconds in all. Writes a line a second to `progress`. When `stop` becomes true, the load ends early: with
// what it measured so far, or CANCELLED when that is nothing. INVALID_ARGUMENT: options that this server cannot take.
// Other errors are those of the connection, the uploads, or /metrics.
absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options, const std::atomic<bool>& stop, std::ostream& progress);

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_LOAD_RUN_H_
