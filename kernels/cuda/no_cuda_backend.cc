#include "kernels/cuda/cuda_backend.h"

namespace santa {
namespace {

absl::Status NoCuda() { return absl::UnimplementedError("this build has no CUDA"); }

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& /*options*/) { return NoCuda(); }

absl::StatusOr<CudaMemory> CudaDeviceMemory(int32_t /*device*/) { return NoCuda(); }

int64_t CudaOverheadBytes(const KvLayout& /*layout*/) { return 0; }

}  // namespace santa
