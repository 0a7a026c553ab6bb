#include "kernels/bench/measure.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

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
double SquaredError(std::span<const float> found, std::span<const double> expected) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return error / norm;
}

// What the first sequence's heads say of it.
double ToldSquaredError(const Workload::Call& call, const Options& options, const std::vector<double>& expected) {
  if (call.relative_standard_error.empty()) return std::nan("");
  double error = 0;
  double norm = 0;
  for (int64_t head = 0; head < options.query_heads; ++head) {
    double of_head = 0;
    for (int64_t d = 0; d < options.head_dim; ++d) of_head += std::pow(expected[head * options.head_dim + d], 2);
    norm += of_head;
    error += of_head * std::pow(call.relative_standard_error[head], 2);
  }
  return error / norm;
}

// Calls of one method.
struct Samples {
  std::vector<double> seconds;
  std::vector<double> speedups;
  double squared_error = 0;
  double told_squared_error = 0;
  std::vector<double> squared_errors_of_heads;  // [H]
  double lse_bias = 0;
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

// The share of the heads whose error is at most the target, and the largest over it.
std::pair<double, double> AgainstTarget(double target, const Samples& samples) {
  int64_t within = 0;
  double worst = 0;
  for (const double squared : samples.squared_errors_of_heads) {
    const double error = std::sqrt(squared / static_cast<double>(samples.checked));
    if (error <= target) ++within;
    worst = std::max(worst, error / target);
  }
  return {static_cast<double>(within) / static_cast<double>(samples.squared_errors_of_heads.size()), worst};
}

Result Summarise(Method method, const Options& options, const Samples& samples, double read_bytes_per_second) {
  const auto calls = static_cast<int64_t>(samples.seconds.size());
  const double seconds = Median(samples.seconds);
  const int64_t bytes = samples.kv_bytes_read / calls;
  const double target = options.target_relative_error;
  const auto [within, worst] = target > 0 ? AgainstTarget(target, samples) : std::pair(std::nan(""), std::nan(""));
  return {.method = method,
          .microseconds = seconds * 1e6,
          .kv_bytes_read = bytes,
          .dense_kv_bytes = samples.dense_kv_bytes,
          .bandwidth_ratio = static_cast<double>(bytes) / seconds / read_bytes_per_second,
          .speedup_vs_exact = Median(samples.speedups),
          .relative_error = std::sqrt(samples.squared_error / static_cast<double>(samples.checked)),
          .value_rows_read = samples.value_rows_read / calls,
          .standard_error = std::sqrt(samples.told_squared_error / static_cast<double>(samples.checked)),
          .heads_within_target = within,
          .worst_over_target = worst,
          .lse_bias = samples.lse_bias / static_cast<double>(samples.checked),
          .key_bytes_read =
              (samples.kv_bytes_read - samples.value_rows_read * static_cast<int64_t>(options.layout().row_bytes())) /
              calls};
}

// What the turns gave: of each method, and of reading.
struct Times {
  std::vector<Samples> methods;
  std::vector<double> read_seconds;
};

// Times whole Decode calls with the host's clock, in turns, so that whatever else the machine does hits all alike. The
// first turn warms up.
absl::Status TimeCalls(const Options& options, const Workload& workload, Device& device, Times& times) {
  int64_t slot = 0;
  const auto next_slot = [&] { return slot++ % workload.num_slots(); };
  for (int64_t repetition = -1; repetition < options.repetitions; ++repetition) {
    const double read = device.read(workload.dense_bytes());
    const auto draw_seed = static_cast<uint64_t>(options.seed + repetition);
    const absl::StatusOr<Workload::Call> exact = workload.Decode(*device.backend, Method::kExact, next_slot(), 0);
    if (!exact.ok()) return exact.status();
    if (repetition >= 0) times.read_seconds.push_back(read);
    for (size_t m = 0; m < options.methods.size(); ++m) {
      const Method method = options.methods[m];
      const absl::StatusOr<Workload::Call> call =
          method == Method::kExact ? exact : workload.Decode(*device.backend, method, next_slot(), draw_seed);
      if (!call.ok()) return call.status();
      if (repetition >= 0) Add(*call, exact->seconds, times.methods[m]);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Stopwatch> StopwatchOf(const Options& options, const Workload& workload, const Device& device,
                                      Method method) {
  std::vector<std::vector<DecodeItem>> steps;
  for (int64_t slot = 0; slot < workload.num_slots(); ++slot) {
    steps.push_back(workload.TimedItems(method, slot, static_cast<uint64_t>(options.seed + slot)));
  }
  return device.time_steps(steps);
}

// Times steps with the device's clock, also in turns. Each sample is the mean of a step on every slot.
absl::Status TimeSteps(const Options& options, const Workload& workload, Device& device, Times& times) {
  std::vector<Stopwatch> reads;
  for (int variant = 0; variant < device.num_read_variants; ++variant) {
    absl::StatusOr<Stopwatch> read = device.time_read(workload.dense_bytes(), variant);
    if (!read.ok()) return read.status();
    reads.push_back(*std::move(read));
  }
  const absl::StatusOr<Stopwatch> exact = StopwatchOf(options, workload, device, Method::kExact);
  if (!exact.ok()) return exact.status();
  std::vector<Stopwatch> methods;
  std::vector<Workload::Call> calls;  // for their statistics
  for (const Method method : options.methods) {
    absl::StatusOr<Stopwatch> stopwatch =
        method == Method::kExact ? exact : StopwatchOf(options, workload, device, method);
    if (!stopwatch.ok()) return stopwatch.status();
    methods.push_back(*std::move(stopwatch));
    absl::StatusOr<Workload::Call> call =
        workload.Decode(*device.backend, method, 0, static_cast<uint64_t>(options.seed));
    if (!call.ok()) return call.status();
    calls.push_back(*std::move(call));
  }
  std::vector<std::vector<double>> read_seconds(reads.size());
  for (int64_t repetition = -1; repetition < options.repetitions; ++repetition) {
    for (size_t variant = 0; variant < reads.size(); ++variant) {
      const absl::StatusOr<double> seconds = reads[variant]();
      if (!seconds.ok()) return seconds.status();
      if (repetition >= 0) read_seconds[variant].push_back(*seconds);
    }
    const absl::StatusOr<double> exact_seconds = (*exact)();
    if (!exact_seconds.ok()) return exact_seconds.status();
    for (size_t m = 0; m < methods.size(); ++m) {
      const absl::StatusOr<double> seconds = options.methods[m] == Method::kExact ? exact_seconds : methods[m]();
      if (!seconds.ok()) return seconds.status();
      calls[m].seconds = *seconds;
      if (repetition >= 0) Add(calls[m], *exact_seconds, times.methods[m]);
    }
  }
  // The ceiling is the best way to read.
  times.read_seconds = *std::min_element(read_seconds.begin(), read_seconds.end(),
                                         [](const auto& a, const auto& b) { return Median(a) < Median(b); });
  return absl::OkStatus();
}

// Errors apart from the times: on the sequence that the reference knows.
absl::Status AddErrors(const Options& options, const Workload& workload, Backend& backend, Times& times) {
  const reference::Output expected = workload.Reference(0);
  // What is held against a target is a head's own error, and takes more draws to know than that of all.
  const int64_t checks =
      options.target_relative_error > 0 ? options.repetitions : std::min<int64_t>(options.repetitions, 10);
  for (size_t m = 0; m < options.methods.size(); ++m) {
    Samples& samples = times.methods[m];
    samples.checked = options.methods[m] == Method::kExact ? 1 : checks;
    samples.squared_errors_of_heads.resize(options.query_heads);
    for (int64_t check = 0; check < samples.checked; ++check) {
      const absl::StatusOr<Workload::Call> call =
          workload.Decode(backend, options.methods[m], 0, static_cast<uint64_t>(options.seed + check));
      if (!call.ok()) return call.status();
      const std::span<const float> found(call->o);
      const std::span<const double> wanted(expected.o);
      samples.squared_error += SquaredError(found.first(wanted.size()), wanted);
      for (int64_t head = 0; head < options.query_heads; ++head) {
        const int64_t first = head * options.head_dim;
        samples.squared_errors_of_heads[head] +=
            SquaredError(found.subspan(first, options.head_dim), wanted.subspan(first, options.head_dim));
      }
      samples.told_squared_error += ToldSquaredError(*call, options, expected.o);
      for (size_t h = 0; h < expected.lse.size(); ++h) {
        samples.lse_bias += (call->lse[h] - expected.lse[h]) / static_cast<double>(expected.lse.size());
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Report> Measure(const Options& options) {
  const absl::StatusOr<Workload> made = Workload::Make(options);
  if (!made.ok()) return made.status();
  const Workload& workload = *made;
  absl::StatusOr<Device> device = MakeDevice(options, workload.num_pages(), workload.dense_bytes());
  if (!device.ok()) return device.status();
  Backend& backend = *device->backend;
  for (const Method method : options.methods) {
    if (absl::Status status = backend.Supports(options.attention(method, 0), options.tokens); !status.ok())
      return status;
  }
  if (absl::Status status = workload.Store(backend); !status.ok()) return status;

  Times times{.methods = std::vector<Samples>(options.methods.size()), .read_seconds = {}};
  const auto time = device->time_steps == nullptr ? TimeCalls : TimeSteps;
  if (absl::Status status = time(options, workload, *device, times); !status.ok()) return status;
  if (absl::Status status = AddErrors(options, workload, backend, times); !status.ok()) return status;

  Report report;
  report.device = backend.device();
  report.read_bytes_per_second = static_cast<double>(workload.dense_bytes()) / Median(times.read_seconds);
  for (size_t m = 0; m < options.methods.size(); ++m) {
    report.results.push_back(Summarise(options.methods[m], options, times.methods[m], report.read_bytes_per_second));
  }
  return report;
}

}  // namespace santa::bench
