// What a stream has queued is done when somebody waits for it, or at once now and then: a host that reads results, or
// writes over what is still to be copied, without having waited is found out. One lock holds all of it.
#include "kernels/cuda/emulation/runtime.h"

#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

using santa::emulation::Kernel;

namespace {

constexpr int kMultiprocessors = 4;
constexpr int kSharedOfMultiprocessor = 228 * 1024, kReservedOfBlock = 1024, kSharedOfBlock = 227 * 1024;
constexpr size_t kMemoryBytes = size_t{12} << 30;
constexpr size_t kFilled = size_t{32} << 20;  // of an allocation with NaNs; the system gives the rest as zeros

// A kernel, or whatever else.
struct Operation {
  std::shared_ptr<const Kernel> kernel;
  std::function<void()> other;
};

using Clock = std::chrono::steady_clock;

struct Allocation {
  uint8_t* mapped = nullptr;
  size_t mapped_bytes = 0, bytes = 0;
};

std::recursive_mutex mutex;
std::map<const void*, Allocation> device_memory, pinned_memory;
std::map<const void*, Allocation>
    registered_memory;  // the program's own, which kernels reach and copies take for pinned
size_t bytes_allocated = 0;
std::map<const void*, int> most_dynamic_bytes;  // of a kernel
thread_local cudaError_t last_error = cudaSuccess;
cudaError_t device_error = cudaSuccess;  // every call's after a kernel went wrong

cudaError_t Keep(cudaError_t error) {
  if (device_error != cudaSuccess) error = device_error;
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

struct CUstream_st {
  std::deque<Operation> queue;
  uint64_t queued = 0, done = 0;
  bool capturing = false;
  std::vector<Operation> captured;

  void Add(Operation operation) {
    if (capturing) {
      captured.push_back(std::move(operation));
      return;
    }
    queue.push_back(std::move(operation));
    ++queued;
    if (santa::emulation::OneIn(8)) Drain(queued);
  }
  void Drain(uint64_t until) {
    while (done < until) {
      const Operation operation = Take();
      if (device_error != cudaSuccess) continue;
      if (operation.kernel == nullptr) {
        operation.other();
        continue;
      }
      const bool done = santa::emulation::RunKernels(operation.kernel, [this]() -> std::shared_ptr<const Kernel> {
        if (queue.empty() || queue.front().kernel == nullptr || !queue.front().kernel->overlaps) return nullptr;
        return Take().kernel;
      });
      if (!done) device_error = cudaErrorIllegalAddress;
    }
  }
  Operation Take() {
    Operation operation = std::move(queue.front());
    queue.pop_front();
    ++done;
    return operation;
  }
};

struct CUevent_st {
  cudaStream_t stream = nullptr;
  uint64_t place = 0;  // in the stream
  Clock::time_point time;
};

struct CUgraph_st {
  std::vector<Operation> operations;
};
struct CUgraphExec_st {
  std::vector<Operation> operations;
};

namespace {

CUstream_st default_stream;
std::set<cudaStream_t> streams = {&default_stream};

CUstream_st& Get(cudaStream_t stream) { return stream == nullptr ? default_stream : *stream; }

void DrainAll() {
  for (cudaStream_t stream : streams) stream->Drain(stream->queued);
}

bool Contains(const std::map<const void*, Allocation>& memory, const void* pointer) {
  auto after = memory.upper_bound(pointer);
  if (after == memory.begin()) return false;
  const auto& [begin, allocation] = *--after;
  return static_cast<const uint8_t*>(pointer) < static_cast<const uint8_t*>(begin) + allocation.bytes;
}

// Ends, but for what an alignment of 256 bytes leaves, where nobody may read or write.
void* Allocate(std::map<const void*, Allocation>& memory, size_t bytes) {
  constexpr size_t kPage = 4096;
  const size_t rounded = (bytes + 255) / 256 * 256, pages = (rounded + kPage - 1) / kPage * kPage;
  void* const mapped =
      mmap(nullptr, pages + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<uint8_t*>(mapped);
  mprotect(begin + pages, kPage, PROT_NONE);
  std::memset(mapped, 0xff, std::min(pages, kFilled));
  std::memset(begin + pages - kPage, 0xff, kPage);
  uint8_t* const pointer = begin + pages - rounded;
  memory[pointer] = {begin, pages + kPage, bytes};
  return pointer;
}

void Release(std::map<const void*, Allocation>& memory, const void* pointer) {
  const auto at = memory.find(pointer);
  if (at == memory.end()) santa::emulation::Fail("memory is freed that was not allocated");
  const auto* end = static_cast<const uint8_t*>(pointer) + at->second.bytes;
  for (; reinterpret_cast<uintptr_t>(end) % 256 != 0; ++end) {
    if (*end != 0xff) santa::emulation::Fail("something was written past the end of an allocation");
  }
  munmap(at->second.mapped, at->second.mapped_bytes);
  memory.erase(at);
}

bool IsPinned(const void* pointer) { return Contains(pinned_memory, pointer) || Contains(registered_memory, pointer); }

void CheckOnDevice(const void* pointer) {
  if (!Contains(device_memory, pointer)) santa::emulation::Fail("an address is not in device memory");
}

}  // namespace

namespace santa::emulation {

cudaError_t QueueKernel(Kernel kernel, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const auto most = most_dynamic_bytes.find(kernel.function);
  const size_t allowed = most == most_dynamic_bytes.end() ? 48 * 1024 : std::max(48 * 1024, most->second);
  if (kernel.dynamic_bytes > allowed || kernel.block.x > 1024 || kernel.block.x * kernel.grid.x == 0 ||
      kernel.grid.y == 0 || kernel.grid.y > 65535 || kernel.block.y != 1 || kernel.block.z != 1) {
    return Keep(cudaErrorInvalidValue);
  }
  Get(stream).Add({std::make_shared<const Kernel>(std::move(kernel)), nullptr});
  return Keep(cudaSuccess);
}

}  // namespace santa::emulation

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return Keep(cudaSuccess);
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return Keep(cudaSuccess);
}
cudaError_t cudaSetDevice(int device) { return Keep(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
  *properties = {};
  std::strcpy(properties->name, "emulated GPU");
  properties->totalGlobalMem = kMemoryBytes;
  properties->major = 9;
  properties->multiProcessorCount = kMultiprocessors;
  return Keep(cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      return Keep(cudaSuccess);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kSharedOfMultiprocessor;
      return Keep(cudaSuccess);
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = kReservedOfBlock;
      return Keep(cudaSuccess);
    case cudaDevAttrClusterLaunch:
      *value = 0;
      return Keep(cudaSuccess);
    default:
      return Keep(cudaErrorInvalidValue);
  }
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const std::lock_guard lock(mutex);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > kSharedOfBlock) {
    return Keep(cudaErrorInvalidValue);
  }
  most_dynamic_bytes[function] = value;
  return Keep(cudaSuccess);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* /*function*/, int threads,
                                                                   size_t dynamic_bytes, unsigned /*flags*/) {
  *blocks =
      std::min<int>(2048 / threads, kSharedOfMultiprocessor / (static_cast<int>(dynamic_bytes) + kReservedOfBlock));
  return Keep(cudaSuccess);
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "another error";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(mutex);
  *total = kMemoryBytes;
  *free = kMemoryBytes - bytes_allocated;
  return Keep(cudaSuccess);
}
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const std::lock_guard lock(mutex);
  *pointer = nullptr;
  if (bytes > kMemoryBytes - bytes_allocated) return Keep(cudaErrorMemoryAllocation);
  *pointer = Allocate(device_memory, bytes);
  if (*pointer == nullptr) return Keep(cudaErrorMemoryAllocation);
  bytes_allocated += bytes;
  return Keep(cudaSuccess);
}
cudaError_t cudaFree(void* pointer) {
  const std::lock_guard lock(mutex);
  if (pointer == nullptr) return Keep(cudaSuccess);
  DrainAll();
  bytes_allocated -= device_memory.at(pointer).bytes;
  Release(device_memory, pointer);
  return Keep(cudaSuccess);
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  const std::lock_guard lock(mutex);
  *pointer = Allocate(pinned_memory, bytes);
  return *pointer == nullptr ? Keep(cudaErrorMemoryAllocation) : Keep(cudaSuccess);
}
cudaError_t cudaFreeHost(void* pointer) {
  const std::lock_guard lock(mutex);
  if (pointer == nullptr) return Keep(cudaSuccess);
  DrainAll();
  Release(pinned_memory, pointer);
  return Keep(cudaSuccess);
}

cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned flags) {
  const std::lock_guard lock(mutex);
  if (bytes == 0 || (flags & ~(cudaHostRegisterMapped | cudaHostRegisterPortable)) != 0) {
    return Keep(cudaErrorInvalidValue);
  }
  if (Contains(registered_memory, pointer)) return Keep(cudaErrorHostMemoryAlreadyRegistered);
  registered_memory[pointer] = {.bytes = bytes};
  return Keep(cudaSuccess);
}
// Waits for nothing: a kernel that still uses the memory finds whatever becomes of it.
cudaError_t cudaHostUnregister(void* pointer) {
  const std::lock_guard lock(mutex);
  return Keep(registered_memory.erase(pointer) == 1 ? cudaSuccess : cudaErrorHostMemoryNotRegistered);
}
cudaError_t cudaHostGetDevicePointer(void** of_device, void* pointer, unsigned /*flags*/) {
  const std::lock_guard lock(mutex);
  if (!IsPinned(pointer)) return Keep(cudaErrorInvalidValue);
  *of_device = pointer;
  return Keep(cudaSuccess);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const std::lock_guard lock(mutex);
  *attributes = {};
  attributes->type = IsPinned(pointer)                  ? cudaMemoryTypeHost
                     : Contains(device_memory, pointer) ? cudaMemoryTypeDevice
                                                        : cudaMemoryTypeUnregistered;
  return Keep(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (bytes == 0) return Keep(cudaSuccess);
  if (kind != cudaMemcpyHostToDevice) CheckOnDevice(from);
  if (kind != cudaMemcpyDeviceToHost) CheckOnDevice(to);
  if (kind == cudaMemcpyHostToDevice && !IsPinned(from)) {  // has been taken when the call returns
    std::vector<uint8_t> taken(static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + bytes);
    Get(stream).Add({nullptr, [to, taken = std::move(taken)] { std::memcpy(to, taken.data(), taken.size()); }});
    return Keep(cudaSuccess);
  }
  Get(stream).Add({nullptr, [to, from, bytes] { std::memcpy(to, from, bytes); }});
  if (kind == cudaMemcpyDeviceToHost && !IsPinned(to)) Get(stream).Drain(Get(stream).queued);
  return Keep(cudaSuccess);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const std::lock_guard lock(mutex);
  cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  default_stream.Drain(default_stream.queued);
  return Keep(cudaSuccess);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (bytes > 0) CheckOnDevice(to);
  Get(stream).Add({nullptr, [to, value, bytes] { std::memset(to, value, bytes); }});
  return Keep(cudaSuccess);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  const std::lock_guard lock(mutex);
  *stream = new CUstream_st;
  streams.insert(*stream);
  return Keep(cudaSuccess);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int /*priority*/) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return Keep(cudaSuccess);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  stream->Drain(stream->queued);
  streams.erase(stream);
  delete stream;
  return Keep(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  Get(stream).Drain(Get(stream).queued);
  return Keep(cudaSuccess);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  // A device does not wait to be asked: now and then some of its work is done by then, and sooner or later all.
  CUstream_st& asked = Get(stream);
  if (asked.done < asked.queued) asked.Drain(santa::emulation::OneIn(2) ? asked.queued : asked.done + 1);
  const cudaError_t error = Keep(cudaSuccess);
  return error == cudaSuccess && asked.done < asked.queued ? cudaErrorNotReady : error;  // which is no last error
}
cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(mutex);
  DrainAll();
  return Keep(cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return Keep(cudaSuccess);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  if (event->stream != nullptr) event->stream->Drain(event->place);
  delete event;
  return Keep(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  event->stream = &Get(stream);
  event->place = event->stream->queued + 1;
  event->stream->Add({nullptr, [event] { event->time = Clock::now(); }});
  return Keep(cudaSuccess);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  if (event->stream != nullptr) event->stream->Drain(event->place);
  return Keep(cudaSuccess);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const std::lock_guard lock(mutex);
  for (cudaEvent_t event : {start, end}) {
    if (event->stream == nullptr || event->stream->done < event->place) return Keep(cudaErrorNotReady);
  }
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return Keep(cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  const std::lock_guard lock(mutex);
  if (event->stream == nullptr) return Keep(cudaSuccess);
  Get(stream).Add({nullptr, [from = event->stream, place = event->place] { from->Drain(place); }});
  return Keep(cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  const std::lock_guard lock(mutex);
  Get(stream).capturing = true;
  return Keep(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(mutex);
  Get(stream).capturing = false;
  *graph = new CUgraph_st{std::exchange(Get(stream).captured, {})};
  return Keep(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long /*flags*/) {
  *executable = new CUgraphExec_st{graph->operations};
  return Keep(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  for (const Operation& operation : executable->operations) Get(stream).Add(operation);
  return Keep(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return Keep(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const std::lock_guard lock(mutex);
  DrainAll();
  delete executable;
  return Keep(cudaSuccess);
}

}  // extern "C"
