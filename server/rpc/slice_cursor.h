// Reads protobuf's wire format out of the slices that a message came in, without joining them first. Reads every byte
// once: in memory that the sender shares they may change meanwhile.
#ifndef SANTA_SERVER_RPC_SLICE_CURSOR_H_
#define SANTA_SERVER_RPC_SLICE_CURSOR_H_

#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ring/prefetching_copy.h"

namespace santa {

// Not thread safe. The slices outlive it.
class SliceCursor {
 public:
  explicit SliceCursor(std::span<const grpc::Slice> slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) left_ += slice.size();
    NextSlice();
  }

  size_t left() const { return left_; }  // bytes not read yet

  // False when the bytes end first, or the number is longer than 10 bytes.
  bool ReadVarint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (left_ == 0) return false;
      if (here_ == end_) NextSlice();
      const uint8_t byte = *static_cast<const volatile uint8_t*>(here_++);
      --left_;
      *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  // `count` <= left(). `ahead`: as PrefetchingCopy has it.
  void Copy(size_t count, char* to, size_t ahead) {
    left_ -= count;
    while (count > 0) {
      if (here_ == end_) NextSlice();
      const size_t part = std::min(count, static_cast<size_t>(end_ - here_));
      PrefetchingCopy(to, reinterpret_cast<const char*>(here_), part, ahead);
      to += part;
      here_ += part;
      count -= part;
    }
  }
  // The bytes themselves, where they lie in one slice; else null, and nothing is read.
  const char* Borrow(size_t count) {
    if (here_ == end_) NextSlice();
    if (count > static_cast<size_t>(end_ - here_)) return nullptr;
    const auto* const bytes = reinterpret_cast<const char*>(here_);
    here_ += count;
    left_ -= count;
    return bytes;
  }
  void Skip(size_t count) {
    left_ -= count;
    while (count > 0) {
      if (here_ == end_) NextSlice();
      const size_t part = std::min(count, static_cast<size_t>(end_ - here_));
      here_ += part;
      count -= part;
    }
  }

 private:
  void NextSlice() {
    here_ = end_ = nullptr;
    while (here_ == end_ && next_ < slices_.size()) {
      here_ = slices_[next_].begin();
      end_ = slices_[next_].end();
      ++next_;
    }
  }

  const std::span<const grpc::Slice> slices_;
  size_t next_ = 0;
  size_t left_ = 0;
  const uint8_t* here_ = nullptr;
  const uint8_t* end_ = nullptr;
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_SLICE_CURSOR_H_
