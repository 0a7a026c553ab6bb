// Storing new tokens in the paged cache, and comparing tokens with what is stored.
#ifndef SANTA_KERNELS_CUDA_KV_APPEND_H_
#define SANTA_KERNELS_CUDA_KV_APPEND_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/types.h"

namespace santa::cuda {

// Where one token goes.
struct TokenPlace {
  int64_t row = 0;  // of its K for head 0, counted in rows of D from the pool's start; head h is h * page_size further
  const void* k = nullptr;  // [H_kv][D] of the launch's `source`
  const void* v = nullptr;
  int32_t layer = 0;   // picks the scales
  int32_t append = 0;  // picks the flag of a comparison
};

inline constexpr int kPlacesInLaunch = 16;

// Tokens of one source type. All pointers name memory that the device reaches, aligned to 16 bytes; places and tokens
// come from the host: no kernel writes them.
struct KvAppendLaunch {
  // [layer][page][K|V][kv_head][token][D] of `stored`; K of feature_major_keys is [D][token].
  void* pool = nullptr;
  TokenPlace first[kPlacesInLaunch] = {};                 // a trip to the host less for these
  const TokenPlace* places = nullptr;                     // [num_tokens], the first ones too; no two alike
  const float* scales = nullptr;                          // fp8: [layer][2][H_kv], K's then V's; null: all 1
  unsigned* differs = nullptr;                            // comparison: [appends], set to 1 where a bit differs
  int64_t num_tokens = 0;                                 // at most 2^31 / (2 * H_kv * D / 8)
  int32_t num_kv_heads = 0, head_dim = 0, page_size = 0;  // D a multiple of 8
  DType source = DType::kFloat32;                         // fp32, bf16 or fp16
  DType stored = DType::kBFloat16;                        // bf16, fp16 or fp8
  bool feature_major_keys = false;
};

// Stores the tokens: rounded to nearest even; fp8 is x / scale in fp32, rounded, beyond +-448 those.
// cudaErrorNotSupported for other types.
cudaError_t LaunchKvAppend(const KvAppendLaunch& launch, cudaStream_t stream);

// Sets `differs` for each append of which LaunchKvAppend would change a bit of the cache.
cudaError_t LaunchKvCompare(const KvAppendLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_KV_APPEND_H_
