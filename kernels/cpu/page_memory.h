// The memory of the KV cache: mapped, advised to use huge pages and touched at construction.
#ifndef SANTA_KERNELS_CPU_PAGE_MEMORY_H_
#define SANTA_KERNELS_CPU_PAGE_MEMORY_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"

namespace santa::cpu {

// Owns a zeroed range of memory at a 2 MiB boundary. Movable.
class PageMemory {
 public:
  // Bytes past the end that may be read (not written): a vector load of a row's tail may reach over it.
  static constexpr size_t kReadableTail = 256;

  // Touches every page from the pool's threads. RESOURCE_EXHAUSTED where the system has not got the memory.
  static absl::StatusOr<PageMemory> Allocate(size_t bytes, ThreadPool& pool);

  PageMemory() = default;
  PageMemory(PageMemory&& other) noexcept;
  PageMemory& operator=(PageMemory&& other) noexcept;
  ~PageMemory();

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_PAGE_MEMORY_H_
