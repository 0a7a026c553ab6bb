// Memory that processes of one machine share: made by one, opened by another of the same user.
#ifndef SANTA_RING_SHARED_MEMORY_H_
#define SANTA_RING_SHARED_MEMORY_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace santa {

// Owns a mapping of it. The memory lives as long as anyone has it mapped. Moves; not thread safe.
class SharedMemory {
 public:
  // Zeros, of a size that nobody can change any more: whoever shrank it under its owner could end the owner's process.
  // Nobody but this process's user may open it. bytes >= 1. RESOURCE_EXHAUSTED: the system gives no more.
  static absl::StatusOr<SharedMemory> Create(int64_t bytes);

  // What `process` has as its file `descriptor`, where that was made by Create, by this process's user, and has this
  // size. FAILED_PRECONDITION, naming what differs: another machine, another user, another container, or a process that
  // has ended since.
  static absl::StatusOr<SharedMemory> Open(int32_t process, int32_t descriptor, int64_t bytes);

  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept { *this = std::move(other); }
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  std::span<char> bytes() const { return memory_; }  // aligned to a page
  int32_t descriptor() const { return descriptor_; }

 private:
  // Maps and owns the descriptor.
  static absl::StatusOr<SharedMemory> Map(int descriptor, int64_t bytes);

  std::span<char> memory_;
  int descriptor_ = -1;
};

}  // namespace santa

#endif  // SANTA_RING_SHARED_MEMORY_H_
