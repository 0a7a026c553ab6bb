// Bringing queries into the type in which the decode kernels multiply.
#ifndef SANTA_KERNELS_CUDA_QUERY_CONVERT_H_
#define SANTA_KERNELS_CUDA_QUERY_CONVERT_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/decode_launch.h"

namespace santa::cuda {

// The type of q in the products over a cache of this type.
constexpr DType QueryType(DType stored) { return stored == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat16; }

struct QueryConvertLaunch {
  DeviceItem* items = nullptr;  // q in io_dtype; of the items that need it, q and scale are replaced
  int32_t num_items = 0;
  void* converted = nullptr;      // [num_items][H][D] of `type`
  int32_t num_numbers = 0;        // H * D, a multiple of 4
  DType type = DType::kBFloat16;  // bf16 or fp16
};

// Rounds the queries of items whose io_dtype is not `type` to nearest even. For fp16, an item's queries are first
// multiplied by the power of two that brings the largest of them into [2^14, 2^15), so that none overflows and few are
// subnormal; the item's scale takes it back. For bf16, what would round to infinity becomes the largest finite number.
// NaN and infinities are kept.
cudaError_t LaunchQueryConvert(const QueryConvertLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_QUERY_CONVERT_H_
