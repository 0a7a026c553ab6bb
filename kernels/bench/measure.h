// Runs a workload on a backend, every method in turns.
#ifndef SANTA_KERNELS_BENCH_MEASURE_H_
#define SANTA_KERNELS_BENCH_MEASURE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/bench/options.h"

namespace santa::bench {

struct Result {
  Method method = Method::kExact;
  double microseconds = 0;      // of a Decode call, median
  int64_t kv_bytes_read = 0;    // that a call needed, mean
  int64_t dense_kv_bytes = 0;   // that EXACT needs
  double bandwidth_ratio = 0;   // kv_bytes_read a second over the read bandwidth
  double speedup_vs_exact = 0;  // median over the repetitions: the EXACT call of each over this method's
  double relative_error = 0;    // |o^ - o| / |o| of one sequence's heads, root mean square over the repetitions
  int64_t value_rows_read = 0;  // mean
  // What the answers say of relative_error: root mean square over the same ones; NaN where they say nothing.
  double standard_error = 0;
  // Of a target_relative_error: the share of the sequence's heads whose root mean square error is at most that, and the
  // largest one's over it; NaN without one.
  double heads_within_target = 0;
  double worst_over_target = 0;
  double lse_bias = 0;         // lse^ - lse of the same answers, mean over the heads
  int64_t key_bytes_read = 0;  // of kv_bytes_read those of K and of sketches
};

struct Report {
  std::string device;
  double read_bytes_per_second = 0;  // median: reading as many bytes as EXACT and nothing else
  std::vector<Result> results;       // in the order of options.methods
};

absl::StatusOr<Report> Measure(const Options& options);

// For people, and one JSON object a line.
std::string Table(const Options& options, const Report& report);
std::string JsonLines(const Options& options, const Report& report);

}  // namespace santa::bench

#endif  // SANTA_KERNELS_BENCH_MEASURE_H_
