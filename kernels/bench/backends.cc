#include "kernels/bench/backends.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/bench/cpu_read.h"
#include "kernels/cpu/cpu_backend.h"

namespace santa::bench {
namespace {

using Factory = absl::StatusOr<Device> (*)(const Options& options, int32_t num_pages, int64_t read_bytes);

absl::StatusOr<Device> MakeCpuDevice(const Options& options, int32_t num_pages, int64_t read_bytes) {
  const auto threads = static_cast<int32_t>(options.threads);
  auto backend = MakeCpuBackend({.layout = options.layout(), .num_pages = num_pages, .num_threads = threads});
  if (!backend.ok()) return backend.status();
  absl::StatusOr<std::shared_ptr<CpuReader>> reader = CpuReader::Make(read_bytes, threads);
  if (!reader.ok()) return reader.status();
  return Device{*std::move(backend), [reader = *reader](int64_t bytes) { return reader->Read(bytes); }};
}

constexpr struct {
  const char* name;
  Factory make;
} kFactories[] = {
    {"cpu", MakeCpuDevice},
};

}  // namespace

absl::StatusOr<Device> MakeDevice(const Options& options, int32_t num_pages, int64_t read_bytes) {
  std::string names;
  for (const auto& factory : kFactories) {
    if (options.backend == factory.name) return factory.make(options, num_pages, read_bytes);
    absl::StrAppend(&names, names.empty() ? "" : ", ", factory.name);
  }
  return absl::InvalidArgumentError(absl::StrCat("--backend is '", options.backend, "'; this build has ", names));
}

}  // namespace santa::bench
