// Bringing queries out of host memory that the device has mapped.
#ifndef SANTA_KERNELS_CUDA_QUERY_FETCH_H_
#define SANTA_KERNELS_CUDA_QUERY_FETCH_H_

#include <cuda_runtime.h>

#include <cstdint>

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

struct QueryFetchLaunch {
  const QueryFetch* fetches = nullptr;  // [num_fetches] in device memory
  int32_t num_fetches = 0;              // at most 65535
  int32_t most_bytes = 0;               // of any
};

cudaError_t LaunchQueryFetch(const QueryFetchLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_QUERY_FETCH_H_
