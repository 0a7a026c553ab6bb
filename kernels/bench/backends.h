// The backends that kernel_bench can measure, by name.
#ifndef SANTA_KERNELS_BENCH_BACKENDS_H_
#define SANTA_KERNELS_BENCH_BACKENDS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/bench/options.h"

namespace santa::bench {

// A backend, and a loop that reads as fast as its device can.
struct Device {
  std::unique_ptr<Backend> backend;
  // Reads `bytes` of the device's memory, others in every call, and returns the seconds it took.
  std::function<double(int64_t bytes)> read;
};

// By options.backend. INVALID_ARGUMENT names an unknown one; else the backend's own status.
// read_bytes: the most that `read` will be asked for.
absl::StatusOr<Device> MakeDevice(const Options& options, int32_t num_pages, int64_t read_bytes);

}  // namespace santa::bench

#endif  // SANTA_KERNELS_BENCH_BACKENDS_H_
