#include "kernels/cpu/page_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace santa::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

absl::StatusOr<PageMemory> PageMemory::Allocate(size_t bytes, ThreadPool& pool) {
  // Touching more than the machine has would end the process, not the call.
  const size_t physical = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (bytes > physical) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the KV cache of ", bytes, " bytes exceeds the machine's memory of ", physical, " bytes"));
  }
  PageMemory memory;
  memory.mapped_bytes_ = bytes + kReadableTail + kHugePage;
  memory.mapping_ =
      mmap(nullptr, memory.mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory.mapping_ == MAP_FAILED) {
    memory.mapping_ = nullptr;
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", memory.mapped_bytes_, " bytes for the KV cache: ", std::strerror(errno)));
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.mapping_);
  memory.data_ = static_cast<uint8_t*>(memory.mapping_) + ((kHugePage - address % kHugePage) % kHugePage);
  memory.size_ = bytes;
  // Advice only: without huge pages everything works, with more TLB misses.
  madvise(memory.data_, bytes + kReadableTail, MADV_HUGEPAGE);
  const size_t touched = bytes + kReadableTail;
  pool.ParallelFor(static_cast<int64_t>((touched + kHugePage - 1) / kHugePage), [&](int64_t index, int) {
    const size_t begin = static_cast<size_t>(index) * kHugePage;
    std::memset(memory.data_ + begin, 0, std::min(kHugePage, touched - begin));
  });
  return memory;
}

PageMemory::PageMemory(PageMemory&& other) noexcept { *this = std::move(other); }

PageMemory& PageMemory::operator=(PageMemory&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

PageMemory::~PageMemory() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_bytes_);
}

}  // namespace santa::cpu
