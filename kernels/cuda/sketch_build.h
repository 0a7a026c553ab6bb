// Making the sketch (kernels/sampling/sketch.h) of pages that have become full.
#ifndef SANTA_KERNELS_CUDA_SKETCH_BUILD_H_
#define SANTA_KERNELS_CUDA_SKETCH_BUILD_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/types.h"

namespace santa::cuda {

// All pointers name memory that the device reaches, aligned to 16 bytes.
struct SketchBuildLaunch {
  const void* pool = nullptr;      // [page of a layer][K|V][kv_head][token][D] of `stored`
  void* sketch = nullptr;          // [page of a layer][kv_head], each as kernels/cuda/sketch_layout.h has it
  const int64_t* pages = nullptr;  // [num_pages]: layer * (pages of a layer) + page
  int32_t num_pages = 0;           // at most 65535
  int32_t num_kv_heads = 0, head_dim = 0, page_size = 0;
  int32_t key_bits = 4, value_bits = 0;  // of a code: 4 or 8; 0: values have no sketch
  DType stored = DType::kBFloat16;       // bf16, fp16 or fp8
};

// cudaErrorNotSupported for other types.
cudaError_t LaunchSketchBuild(const SketchBuildLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SKETCH_BUILD_H_
