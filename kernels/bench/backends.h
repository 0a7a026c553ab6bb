// The backends that kernel_bench can measure, by name.
#ifndef SANTA_KERNELS_BENCH_BACKENDS_H_
#define SANTA_KERNELS_BENCH_BACKENDS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/bench/options.h"

namespace santa::bench {

// Runs what it was made for; seconds of the device for one step.
using Stopwatch = std::function<absl::StatusOr<double>()>;

// A backend, and a loop that reads as fast as its device can.
struct Device {
  std::unique_ptr<Backend> backend;
  // Reads `bytes` of the device's memory, others in every call, and returns the seconds it took.
  std::function<double(int64_t bytes)> read;
  // Of a device that has a clock of its own, else both null: what CudaStopwatch is, over the items of successive steps,
  // or over reading `bytes` in each of num_read_variants ways. `read` is null then.
  std::function<absl::StatusOr<Stopwatch>(const std::vector<std::vector<DecodeItem>>& steps)> time_steps;
  std::function<absl::StatusOr<Stopwatch>(int64_t bytes, int variant)> time_read;
  int num_read_variants = 0;
};

// By options.backend. INVALID_ARGUMENT names an unknown one; else the backend's own status.
// read_bytes: the most that `read` will be asked for.
absl::StatusOr<Device> MakeDevice(const Options& options, int32_t num_pages, int64_t read_bytes);

}  // namespace santa::bench

#endif  // SANTA_KERNELS_BENCH_BACKENDS_H_
