// A value's code in its page's sketch (kernels/sampling/sketch.h), for the kernel that builds sketches and the one that
// takes them from the rows again: they agree to the bit.
#ifndef SANTA_KERNELS_CUDA_SKETCH_CODES_CUH_
#define SANTA_KERNELS_CUDA_SKETCH_CODES_CUH_

#include <cuda_runtime.h>

namespace santa::cuda {

// 1 / step as the machine has it in one instruction; step is a normal number of half precision.
__device__ __forceinline__ float InverseStep(float step) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(step));
  return inverse;
}

// sampling::CodeOf as a whole number in fp32, without a conversion: 2^23 + x has no room for what is behind the point.
__device__ __forceinline__ float ValueCode(float x, float low, float inverse_step, float largest) {
  const float code = fmaxf(0.0f, fminf(largest, (x - low) * inverse_step));
  return code + 0x1p23f - 0x1p23f;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SKETCH_CODES_CUH_
