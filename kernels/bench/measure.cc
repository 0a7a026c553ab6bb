#include "kernels/bench/measure.h"

#include <algorithm>
#include <cmath>

#include "kernels/bench/backends.h"
#include "kernels/bench/workload.h"

namespace santa::bench {
namespace {

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// |o^ - o|^2 / |o|^2
double SquaredError(const std::vector<float>& found, const std::vector<double>& expected) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return error / norm;
}

// Calls of one method.
struct Samples {
  std::vector<double> seconds;
  std::vector<double> speedups;
  double squared_error = 0;
  int64_t checked = 0;
  int64_t kv_bytes_read = 0;
  int64_t value_rows_read = 0;
  int64_t dense_kv_bytes = 0;
};

void Add(const Workload::Call& call, double exact_seconds, Samples& samples) {
  samples.seconds.push_back(call.seconds);
  samples.speedups.push_back(exact_seconds / call.seconds);
  samples.kv_bytes_read += call.statistics.kv_bytes_read;
  samples.value_rows_read += call.statistics.value_rows_read;
  samples.dense_kv_bytes = call.statistics.dense_kv_bytes;
}

Result Summarise(Method method, const Samples& samples, double read_bytes_per_second) {
  const auto calls = static_cast<int64_t>(samples.seconds.size());
  const double seconds = Median(samples.seconds);
  const int64_t bytes = samples.kv_bytes_read / calls;
  return {.method = method,
          .microseconds = seconds * 1e6,
          .kv_bytes_read = bytes,
          .dense_kv_bytes = samples.dense_kv_bytes,
          .bandwidth_ratio = static_cast<double>(bytes) / seconds / read_bytes_per_second,
          .speedup_vs_exact = Median(samples.speedups),
          .relative_error = std::sqrt(samples.squared_error / static_cast<double>(samples.checked)),
          .value_rows_read = samples.value_rows_read / calls};
}

}  // namespace

absl::StatusOr<Report> Measure(const Options& options) {
  const Workload workload(options);
  absl::StatusOr<Device> device = MakeDevice(options, workload.num_pages(), workload.dense_bytes());
  if (!device.ok()) return device.status();
  Backend& backend = *device->backend;
  if (absl::Status status = workload.Store(backend); !status.ok()) return status;

  const std::vector<double> expected = workload.Reference(0);
  std::vector<Samples> samples(options.methods.size());
  std::vector<double> read_seconds;
  int64_t slot = 0;
  const auto next_slot = [&] { return slot++ % workload.num_slots(); };
  // In turns, so that whatever else the machine does hits all alike. The first turn warms up.
  for (int64_t repetition = -1; repetition < options.repetitions; ++repetition) {
    const double read = device->read(workload.dense_bytes());
    const auto draw_seed = static_cast<uint64_t>(options.seed + repetition);
    const absl::StatusOr<Workload::Call> exact = workload.Decode(backend, Method::kExact, next_slot(), 0);
    if (!exact.ok()) return exact.status();
    if (repetition >= 0) read_seconds.push_back(read);
    for (size_t m = 0; m < options.methods.size(); ++m) {
      const Method method = options.methods[m];
      const absl::StatusOr<Workload::Call> call =
          method == Method::kExact ? exact : workload.Decode(backend, method, next_slot(), draw_seed);
      if (!call.ok()) return call.status();
      if (repetition >= 0) Add(*call, exact->seconds, samples[m]);
    }
  }
  // Errors apart from the times: on the sequence that the reference knows.
  const int64_t checks = std::min<int64_t>(options.repetitions, 10);
  for (size_t m = 0; m < options.methods.size(); ++m) {
    samples[m].checked = options.methods[m] == Method::kExact ? 1 : checks;
    for (int64_t check = 0; check < samples[m].checked; ++check) {
      const absl::StatusOr<Workload::Call> call =
          workload.Decode(backend, options.methods[m], 0, static_cast<uint64_t>(options.seed + check));
      if (!call.ok()) return call.status();
      samples[m].squared_error += SquaredError(call->o, expected);
    }
  }

  Report report;
  report.device = backend.device();
  report.read_bytes_per_second = static_cast<double>(workload.dense_bytes()) / Median(read_seconds);
  for (size_t m = 0; m < options.methods.size(); ++m) {
    report.results.push_back(Summarise(options.methods[m], samples[m], report.read_bytes_per_second));
  }
  return report;
}

}  // namespace santa::bench
