// The CUDA run-time library's place: its functions that the backend and the tests call, over emulated threads.
#ifndef SANTA_KERNELS_CUDA_EMULATION_RUNTIME_H_
#define SANTA_KERNELS_CUDA_EMULATION_RUNTIME_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/emulation/threads.h"

namespace santa::emulation {

// Queues a kernel in a stream.
cudaError_t QueueKernel(Kernel kernel, cudaStream_t stream);

}  // namespace santa::emulation

#endif  // SANTA_KERNELS_CUDA_EMULATION_RUNTIME_H_
