#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_timing.h"

namespace santa {
namespace {

absl::Status NoCuda() { return absl::UnimplementedError("this build has no CUDA"); }

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& /*options*/) { return NoCuda(); }

absl::StatusOr<CudaMemory> CudaDeviceMemory(int32_t /*device*/) { return NoCuda(); }

int64_t CudaOverheadBytes(const KvLayout& /*layout*/) { return 0; }

absl::StatusOr<CudaStopwatch> TimeCudaDecode(Backend& /*backend*/, std::span<const std::vector<DecodeItem>> /*steps*/) {
  return NoCuda();
}

absl::StatusOr<CudaStopwatch> TimeCudaRead(Backend& /*backend*/, int64_t /*bytes*/, int /*variant*/) {
  return NoCuda();
}

}  // namespace santa
