#ifndef SANTA_KERNELS_CUDA_EXACT_H_
#define SANTA_KERNELS_CUDA_EXACT_H_

#include "kernels/cuda/decode_launch.h"

namespace santa::cuda {

// EXACT attention of every item (sample_count is not looked at). D = 64, 96, 128, 192 or 256; bf16, fp16 or fp8; G from
// 1 to 16; anything else is cudaErrorNotSupported. Asynchronous; nothing is allocated.
cudaError_t LaunchExact(const DecodeLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_EXACT_H_
