#include "kernels/bench/backends.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/bench/cpu_read.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_timing.h"

namespace santa::bench {
namespace {

using Factory = absl::StatusOr<Device> (*)(const Options& options, int32_t num_pages, int64_t read_bytes);

absl::StatusOr<Device> MakeCpuDevice(const Options& options, int32_t num_pages, int64_t read_bytes) {
  const auto threads = static_cast<int32_t>(options.threads);
  auto backend = MakeCpuBackend({.layout = options.layout(), .num_pages = num_pages, .num_threads = threads});
  if (!backend.ok()) return backend.status();
  absl::StatusOr<std::shared_ptr<CpuReader>> reader = CpuReader::Make(read_bytes, threads);
  if (!reader.ok()) return reader.status();
  Device device;
  device.backend = *std::move(backend);
  device.read = [reader = *reader](int64_t bytes) { return reader->Read(bytes); };
  return device;
}

absl::StatusOr<Device> MakeCudaDevice(const Options& options, int32_t num_pages, int64_t /*read_bytes*/) {
  auto made = MakeCudaBackend({.layout = options.layout(), .num_pages = num_pages});
  if (!made.ok()) return made.status();
  Device device;
  device.backend = *std::move(made);
  Backend& backend = *device.backend;
  device.time_steps = [&backend](const auto& steps) { return TimeCudaDecode(backend, steps); };
  device.time_read = [&backend](int64_t bytes, int variant) { return TimeCudaRead(backend, bytes, variant); };
  device.num_read_variants = kCudaReadVariants;
  return device;
}

constexpr struct {
  const char* name;
  Factory make;
} kFactories[] = {
    {"cpu", MakeCpuDevice},
    {"cuda", MakeCudaDevice},
};

}  // namespace

absl::StatusOr<Device> MakeDevice(const Options& options, int32_t num_pages, int64_t read_bytes) {
  std::string names;
  for (const auto& factory : kFactories) {
    if (options.backend == factory.name) return factory.make(options, num_pages, read_bytes);
    absl::StrAppend(&names, names.empty() ? "" : ", ", factory.name);
  }
  return absl::InvalidArgumentError(absl::StrCat("--backend is '", options.backend, "'; it must be one of ", names));
}

}  // namespace santa::bench
