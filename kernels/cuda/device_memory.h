// Owners of what the CUDA run time hands out, and its errors as statuses.
#ifndef SANTA_KERNELS_CUDA_DEVICE_MEMORY_H_
#define SANTA_KERNELS_CUDA_DEVICE_MEMORY_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa::cuda {

// OK, or a status with the call's name and CUDA's own words: RESOURCE_EXHAUSTED for memory that cannot be had,
// UNIMPLEMENTED for cudaErrorNotSupported, otherwise INTERNAL.
absl::Status ToStatus(cudaError_t error, const char* call);

struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreePinned {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};

using DeviceMemory = std::unique_ptr<void, FreeDevice>;
using PinnedMemory = std::unique_ptr<void, FreePinned>;
using Stream = std::unique_ptr<CUstream_st, DestroyStream>;
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;

// `purpose` completes "no memory for ..." in the message.
absl::StatusOr<DeviceMemory> AllocateDevice(size_t bytes, const std::string& purpose);
absl::StatusOr<PinnedMemory> AllocatePinned(size_t bytes, const std::string& purpose);
// Urgent: where kernels wait for room, those of the stream go first.
absl::StatusOr<Stream> MakeStream(bool urgent);
absl::StatusOr<Event> MakeEvent();  // that tells no time, and takes a quarter of what one takes that does

// Host memory that is mapped: kernels reach it by the host's own pointers. The memory outlives it.
class HostMapping : public MappedMemory {
 public:
  // Null where CUDA or the system has none for this memory, or has it at another address.
  static std::unique_ptr<MappedMemory> Make(std::span<char> memory);
  ~HostMapping() override { cudaHostUnregister(memory_); }

 private:
  explicit HostMapping(void* memory) : memory_(memory) {}

  void* const memory_;
};

// Where regions of one buffer begin: each on a multiple of 256 bytes.
class Regions {
 public:
  size_t Add(size_t bytes) {
    const size_t at = end_;
    end_ = (end_ + bytes + 255) / 256 * 256;
    return at;
  }
  size_t bytes() const { return end_; }

 private:
  size_t end_ = 0;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_DEVICE_MEMORY_H_
