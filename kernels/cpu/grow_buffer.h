// Scratch memory that grows to what was once needed and stays there.
#ifndef SANTA_KERNELS_CPU_GROW_BUFFER_H_
#define SANTA_KERNELS_CPU_GROW_BUFFER_H_

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "hwy/aligned_allocator.h"

namespace santa::cpu {

// Elements at a multiple of 64 bytes, zeroed when allocated.
template <typename T>
class GrowBuffer {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  // At least `count` elements; what was there is lost where it grows.
  T* AtLeast(size_t count) {
    if (count > capacity_) {
      capacity_ = std::max(count, capacity_ + capacity_ / 2);
      data_ = hwy::AllocateAligned<T>(capacity_);
      std::fill_n(data_.get(), capacity_, T());
    }
    return data_.get();
  }

  T* data() const { return data_.get(); }
  size_t capacity() const { return capacity_; }

 private:
  hwy::AlignedFreeUniquePtr<T[]> data_;
  size_t capacity_ = 0;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_GROW_BUFFER_H_
