#include "server/backend_choice.h"

#include <unistd.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "server/logging/log.h"

namespace santa {
namespace {

int64_t MachineMemory() { return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE); }

// A field's refusal, as the flag's of that name.
absl::Status AsFlag(const absl::Status& status) {
  if (status.code() != absl::StatusCode::kInvalidArgument && status.code() != absl::StatusCode::kUnimplemented) {
    return status;
  }
  return absl::Status(status.code(), absl::StrCat("--", std::string(status.message())));
}

// Pages that `bytes` have room for. `where` names whose memory it is.
absl::StatusOr<int32_t> PagesOf(int64_t bytes, int64_t most_bytes, const KvLayout& layout, const std::string& where) {
  if (bytes > most_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv_bytes is ", bytes, "; allowed is at most ", where, " memory, ", most_bytes, " bytes"));
  }
  const auto page_bytes = static_cast<int64_t>(layout.page_bytes() + layout.sketch_page_bytes());
  const int64_t pages = bytes / page_bytes;
  if (pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--kv_bytes is ", bytes, "; allowed is room for one page or more of this layout, ", page_bytes, " bytes each"));
  }
  return static_cast<int32_t>(std::min<int64_t>(pages, std::numeric_limits<int32_t>::max()));
}

absl::StatusOr<std::unique_ptr<Backend>> MakeCpu(const BackendChoice& choice) {
  const int64_t memory = MachineMemory();
  int64_t bytes = choice.kv_bytes;
  if (bytes == 0) {
    bytes = choice.kv_memory_fraction == 0
                ? kDefaultCpuKvBytes
                : static_cast<int64_t>(choice.kv_memory_fraction * static_cast<double>(memory));
  }
  const absl::StatusOr<int32_t> pages = PagesOf(bytes, memory, choice.layout, "the machine's");
  if (!pages.ok()) return pages.status();
  absl::StatusOr<std::unique_ptr<Backend>> backend =
      MakeCpuBackend({.layout = choice.layout, .num_pages = *pages, .num_threads = choice.threads});
  if (!backend.ok()) return AsFlag(backend.status());
  return backend;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeCuda(const BackendChoice& choice) {
  const absl::StatusOr<CudaMemory> memory = CudaDeviceMemory(choice.device);
  if (!memory.ok()) {
    // "device is 7; ..." is a flag's; that there is no GPU at all is not.
    if (memory.status().code() == absl::StatusCode::kInvalidArgument) return AsFlag(memory.status());
    return absl::Status(memory.status().code(), absl::StrCat("--backend is ", choice.backend, ", but ",
                                                             std::string(memory.status().message())));
  }
  int64_t bytes = choice.kv_bytes;
  if (bytes == 0) {
    const double fraction = choice.kv_memory_fraction == 0 ? kDefaultCudaKvFraction : choice.kv_memory_fraction;
    // The share is of everything the server takes.
    bytes =
        static_cast<int64_t>(fraction * static_cast<double>(memory->total_bytes)) - CudaOverheadBytes(choice.layout);
    if (bytes > memory->free_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat("--kv_memory_fraction is ", fraction, " of the GPU's ",
                                                       memory->total_bytes, " bytes, of which ", memory->free_bytes,
                                                       " are free"));
    }
  }
  const absl::StatusOr<int32_t> pages = PagesOf(bytes, memory->total_bytes, choice.layout, "the GPU's");
  if (!pages.ok()) return pages.status();
  absl::StatusOr<std::unique_ptr<Backend>> backend =
      MakeCudaBackend({.layout = choice.layout, .num_pages = *pages, .device = choice.device, .scales = choice.scales});
  if (!backend.ok()) return AsFlag(backend.status());
  return backend;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendChoice& choice) {
  if (choice.backend == "cpu") return MakeCpu(choice);
  if (choice.backend == "cuda") return MakeCuda(choice);
  if (choice.backend != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("--backend is \"", choice.backend, "\"; allowed is cpu, cuda or auto"));
  }
  absl::StatusOr<std::unique_ptr<Backend>> backend = MakeCuda(choice);
  if (backend.ok()) return backend;
  const absl::StatusCode code = backend.status().code();
  if (code != absl::StatusCode::kUnimplemented && code != absl::StatusCode::kUnavailable) return backend;
  Log(LogLevel::kInfo, "computing on the CPU", {{"reason", std::string(backend.status().message())}});
  return MakeCpu(choice);
}

}  // namespace santa
