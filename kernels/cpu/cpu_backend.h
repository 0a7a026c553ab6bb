// The CPU backend: paged decode attention in host memory, vectorised for the CPU it meets, on several threads.
#ifndef SANTA_KERNELS_CPU_CPU_BACKEND_H_
#define SANTA_KERNELS_CPU_CPU_BACKEND_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa {

struct CpuBackendOptions {
  KvLayout layout;
  int32_t num_pages = 0;    // >= 1
  int32_t num_threads = 0;  // the calling thread among them, [0, 1024]; 0: one for each CPU this process may run on
  // Work on fewer bytes of K and V stays on the calling thread: a thread reads some 10 GB/s and takes some 50 us to
  // wake.
  int64_t min_shared_bytes = int64_t{256} << 10;
};

// Maps and touches the memory of every page. INVALID_ARGUMENT for a bad layout, page or thread count;
// RESOURCE_EXHAUSTED where the machine has not got the memory; UNIMPLEMENTED for an fp8 cache, and on an x86 CPU
// without SSE 4.2.
//
// Answers are the same bit for bit for any number of threads. Scores and sums are fp32; draws are those that
// kernels/sampling defines. Decode allocates only scratch, which grows to the largest call seen.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options);

}  // namespace santa

#endif  // SANTA_KERNELS_CPU_CPU_BACKEND_H_
