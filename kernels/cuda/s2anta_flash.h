#ifndef SANTA_KERNELS_CUDA_S2ANTA_FLASH_H_
#define SANTA_KERNELS_CUDA_S2ANTA_FLASH_H_

#include "kernels/cuda/decode_launch.h"

namespace santa::cuda {

// S2ANTA_FLASH for every item, whose visible tokens must be in (sample_count, 256 * sample_count], so that a tile is
// 256 tokens. D = 64, 96, 128, 192 or 256; bf16, fp16 or fp8; G from 1 to 16; anything else is cudaErrorNotSupported.
// Asynchronous; nothing is allocated.
cudaError_t LaunchS2antaFlash(const DecodeLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_S2ANTA_FLASH_H_
