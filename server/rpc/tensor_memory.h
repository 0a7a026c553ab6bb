// Memory for tensors on their way to a device, which reads them there if it can.
#ifndef SANTA_SERVER_RPC_TENSOR_MEMORY_H_
#define SANTA_SERVER_RPC_TENSOR_MEMORY_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include "kernels/attention.h"

namespace santa {

// Not thread safe.
class TensorMemory {
 public:
  using Map = std::function<std::unique_ptr<MappedMemory>(std::span<char>)>;  // Engine::MapMemory, or none

  explicit TensorMemory(Map map) : map_(std::move(map)) {}
  TensorMemory(const TensorMemory&) = delete;
  TensorMemory& operator=(const TensorMemory&) = delete;

  // At least so many bytes. What was in it is lost where it has to grow.
  void MakeRoom(size_t least) {
    if (least <= size_) return;
    mapped_.reset();
    memory_.reset();
    size_ = (least + kPage - 1) / kPage * kPage;
    memory_.reset(static_cast<char*>(operator new (size_, std::align_val_t{kPage})));
    if (map_ && size_ <= kMostMapped) mapped_ = map_(bytes());
  }

  std::span<char> bytes() const { return {memory_.get(), size_}; }  // aligned to a page
  bool mapped() const { return mapped_ != nullptr; }

 private:
  static constexpr size_t kPage = 4096;
  // Whoever has more is not kept for long (ExchangePool), and to map takes longer than to copy.
  static constexpr size_t kMostMapped = size_t{512} << 10;

  struct Delete {
    void operator()(char* memory) const { operator delete (memory, std::align_val_t{kPage}); }
  };

  const Map map_;
  std::unique_ptr<char, Delete> memory_;
  size_t size_ = 0;
  std::unique_ptr<MappedMemory> mapped_;  // goes before the memory
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_TENSOR_MEMORY_H_
