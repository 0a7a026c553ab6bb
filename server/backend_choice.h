// Which backend a server runs on, and with how much memory.
#ifndef SANTA_SERVER_BACKEND_CHOICE_H_
#define SANTA_SERVER_BACKEND_CHOICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa {

struct BackendChoice {
  std::string backend = "cpu";    // cpu, cuda, or auto: a GPU where there is one that has the layout, else the CPU
  KvLayout layout;                // valid
  KvScales scales = {};           // valid for the layout
  int64_t kv_bytes = 0;           // of the cache; 0: kv_memory_fraction says
  double kv_memory_fraction = 0;  // (0, 0.95] of the machine's or the GPU's memory; 0 too: the default
  int32_t threads = 0;            // cpu: [0, 1024]; 0: one for each CPU
  int32_t device = 0;             // cuda: as CUDA numbers them
};

// Where neither kv_bytes nor kv_memory_fraction is given: so many bytes on the CPU, so much of a GPU's memory.
inline constexpr int64_t kDefaultCpuKvBytes = int64_t{512} << 20;
inline constexpr double kDefaultCudaKvFraction = 0.8;

// The backend with all its memory. Errors are sentences that name flags: INVALID_ARGUMENT for a choice that cannot be,
// UNIMPLEMENTED for a layout that the backend has not got, or a build without CUDA; UNAVAILABLE without a GPU;
// RESOURCE_EXHAUSTED where there is not the memory.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendChoice& choice);

}  // namespace santa

#endif  // SANTA_SERVER_BACKEND_CHOICE_H_
