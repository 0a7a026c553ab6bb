// Bringing to the device what a wave was packed into, and queries out of host memory that the device has mapped; and
// where nothing is at work that reads the cache, new tokens into it, which spares a launch. By a kernel, as what is
// read once is sooner there than by a copy (kernels/cuda/staging.h).
#ifndef SANTA_KERNELS_CUDA_WAVE_UPLOAD_H_
#define SANTA_KERNELS_CUDA_WAVE_UPLOAD_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/kv_append.h"
#include "kernels/types.h"

namespace santa::cuda {

inline constexpr int kFetchPiece = 512;  // bytes of a query that a warp brings, and that have a word for their fault

constexpr int FetchPieces(int bytes) { return (bytes + kFetchPiece - 1) / kFetchPiece; }

// The first number of a piece that is NaN or infinite: its index in the query in the upper half, its bits in the lower.
inline constexpr uint64_t kNoFault = ~uint64_t{0};

// One query.
struct QueryFetch {
  // Mapped, of any alignment. Whoever writes it may go on doing so: what is checked is what is brought. The aligned 16
  // bytes in which it begins and ends are read whole.
  const void* from = nullptr;
  void* to = nullptr;          // device memory, aligned to 16 bytes; what is not finite becomes 0
  uint64_t* faults = nullptr;  // [FetchPieces(bytes)] in pinned memory, kNoFault before; written where there is one
  int32_t bytes = 0;           // a multiple of 16
  DType dtype = DType::kBFloat16;
};

inline constexpr int kFetchesInLaunch = 8;

struct WaveUpload {
  const void* packed = nullptr;  // pinned, aligned to 16 bytes
  void* to = nullptr;            // device memory, likewise
  int32_t packed_bytes = 0;      // a multiple of 16; 0: they come by another way
  int32_t num_fetches = 0;       // at most 32767
  int32_t most_fetched_bytes = 0;
  QueryFetch first[kFetchesInLaunch];   // a trip to the host less for these
  const QueryFetch* fetches = nullptr;  // [num_fetches] in pinned memory, the first ones too
  KvAppendLaunch tokens;                // to be stored; of at most 2^22 threads (kernels/cuda/kv_append.cuh)
  uint64_t* began = nullptr;            // device memory: written with the device's clock
};

cudaError_t LaunchWaveUpload(const WaveUpload& upload, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_WAVE_UPLOAD_H_
