// Device time of a CUDA backend's kernels, for benchmarks. In the same libraries as cuda_backend.h.
#ifndef SANTA_KERNELS_CUDA_CUDA_TIMING_H_
#define SANTA_KERNELS_CUDA_CUDA_TIMING_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa {

// Runs what was captured, between two events on the backend's stream; device seconds of one step, the mean. Must not
// outlive the backend.
using CudaStopwatch = std::function<absl::StatusOr<double>()>;

// Each step is one Decode call. Packs and uploads them all now, then captures their kernels, one step after the other
// and over again until there are a few, as one CUDA graph: no staging and no answers in the time. `o`, `lse` and
// `statistics` are never written. Steps over pages of their own, together larger than the L2 cache, find it cold.
//
// INVALID_ARGUMENT for a backend that is not of MakeCudaBackend, or no steps; UNIMPLEMENTED in a build without CUDA.
absl::StatusOr<CudaStopwatch> TimeCudaDecode(Backend& backend, std::span<const std::vector<DecodeItem>> steps);

// A kernel that only reads: `bytes` of the cache's memory, others in the next step as long as there are, in whichever
// way of kCudaReadVariants. The ceiling of a card is the best of them. Errors likewise.
inline constexpr int kCudaReadVariants = 6;  // [0, kCudaReadVariants)
absl::StatusOr<CudaStopwatch> TimeCudaRead(Backend& backend, int64_t bytes, int variant);

}  // namespace santa

#endif  // SANTA_KERNELS_CUDA_CUDA_TIMING_H_
