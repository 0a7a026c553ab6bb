// The CUDA backend: paged decode attention on one NVIDIA GPU, compute capability 8.0 or above.
//
// Two libraries define what is declared here: //kernels/cuda:backend, and //kernels/cuda:no_cuda, which answers
// UNIMPLEMENTED "this build has no CUDA" throughout, for programs that are not to wait for nvcc. Where CUDA is not
// installed, the first is the second.
#ifndef SANTA_KERNELS_CUDA_CUDA_BACKEND_H_
#define SANTA_KERNELS_CUDA_CUDA_BACKEND_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa {

struct CudaBackendOptions {
  KvLayout layout;
  int32_t num_pages = 0;  // >= 1
  int32_t device = 0;     // as CUDA numbers them
  KvScales scales = {};   // of an fp8 cache
};

// Allocates everything: the cache, buffers for what a call brings and takes, partial results. Nothing is allocated
// afterwards; larger calls run in several waves.
//
// INVALID_ARGUMENT for a bad layout, page count, scale or device number; UNIMPLEMENTED, naming field, value and what
// there is, for a dtype other than bf16, fp16 and fp8_e4m3, a head_dim other than 64, 96, 128, 192 and 256, more than
// 16 query heads for a key/value head, a sketch other than none and k4, feature-major keys, or an older GPU;
// RESOURCE_EXHAUSTED where the GPU or the host has not got the memory; UNAVAILABLE where there is no GPU or no driver.
// It has no score draws, and so not BERNOULLI_QK.
//
// Scores, sums and outputs are fp32, the products' factors bf16 for a bf16 cache and fp16 for the others: queries and
// softmax weights are rounded to that type (queries that come in another type are scaled by a power of two before
// they become fp16, so that none overflows). Draws are those that kernels/sampling defines. An answer is the same bit
// for bit in every batch.
//
// One error of the device makes every later call answer it: the process has to start anew.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options);

struct CudaMemory {
  int64_t free_bytes = 0;   // now
  int64_t total_bytes = 0;  // of the GPU
};

// For choosing num_pages. Errors as of MakeCudaBackend.
absl::StatusOr<CudaMemory> CudaDeviceMemory(int32_t device);

// What a backend of this layout allocates beside its pages, about.
int64_t CudaOverheadBytes(const KvLayout& layout);

}  // namespace santa

#endif  // SANTA_KERNELS_CUDA_CUDA_BACKEND_H_
