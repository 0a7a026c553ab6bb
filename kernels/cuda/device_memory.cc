#include "kernels/cuda/device_memory.h"

#include "absl/strings/str_cat.h"

namespace santa::cuda {
namespace {

absl::Status NoMemory(size_t bytes, const std::string& purpose, cudaError_t error, const char* call) {
  const absl::Status status = ToStatus(error, call);
  return absl::Status(status.code(),
                      absl::StrCat("no memory for ", purpose, " (", bytes, " bytes): ", std::string(status.message())));
}

}  // namespace

absl::Status ToStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(call, " failed: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNotSupported:
      return absl::UnimplementedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<DeviceMemory> AllocateDevice(size_t bytes, const std::string& purpose) {
  void* memory = nullptr;
  if (const cudaError_t error = cudaMalloc(&memory, bytes); error != cudaSuccess) {
    cudaGetLastError();  // an error that sticks is reported by the next call anyway
    return NoMemory(bytes, purpose, error, "cudaMalloc");
  }
  return DeviceMemory(memory);
}

absl::StatusOr<PinnedMemory> AllocatePinned(size_t bytes, const std::string& purpose) {
  void* memory = nullptr;
  if (const cudaError_t error = cudaMallocHost(&memory, bytes); error != cudaSuccess) {
    cudaGetLastError();
    return NoMemory(bytes, purpose, error, "cudaMallocHost");
  }
  return PinnedMemory(memory);
}

std::unique_ptr<MappedMemory> HostMapping::Make(std::span<char> memory) {
  // Not to be refused: tools that watch CUDA's calls count that as an error of the program.
  cudaPointerAttributes known = {};
  if (cudaPointerGetAttributes(&known, memory.data()) != cudaSuccess || known.type != cudaMemoryTypeUnregistered) {
    return nullptr;
  }
  std::unique_ptr<MappedMemory> mapping;
  cudaError_t error = cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterMapped | cudaHostRegisterPortable);
  if (error == cudaSuccess) {
    mapping.reset(new HostMapping(memory.data()));
    void* of_device = nullptr;
    error = cudaHostGetDevicePointer(&of_device, memory.data(), 0);
    if (error == cudaSuccess && of_device == memory.data()) return mapping;
  }
  if (error != cudaSuccess) cudaGetLastError();  // an error that sticks is reported by the next call anyway
  return nullptr;
}

absl::StatusOr<Stream> MakeStream(bool urgent) {
  int least = 0;
  int greatest = 0;
  cudaStream_t stream = nullptr;
  absl::Status status =
      ToStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  if (status.ok()) {
    status = ToStatus(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least),
                      "cudaStreamCreateWithPriority");
  }
  if (!status.ok()) return status;
  return Stream(stream);
}

absl::StatusOr<Event> MakeEvent() {
  cudaEvent_t event = nullptr;
  if (absl::Status status =
          ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
      !status.ok()) {
    return status;
  }
  return Event(event);
}

}  // namespace santa::cuda
