// Copying whole pages of the cache, for copy-on-write.
#ifndef SANTA_KERNELS_CUDA_PAGE_COPY_H_
#define SANTA_KERNELS_CUDA_PAGE_COPY_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"

namespace santa::cuda {

// All pointers name memory that the device reaches, aligned to 16 bytes.
struct PageCopyLaunch {
  void* pool = nullptr;              // [layer][page][layer_page_bytes]
  const PageCopy* copies = nullptr;  // [num_copies]; no page that one writes is read or written by another
  int32_t num_copies = 0;            // at most 65535
  int32_t num_layers = 0, num_pages = 0;
  size_t layer_page_bytes = 0;  // a multiple of 16
};

// Copies the pages in every layer.
cudaError_t LaunchPageCopy(const PageCopyLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_PAGE_COPY_H_
