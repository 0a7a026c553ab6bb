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
    for (const grpc::Slice& slice : slices) later_ += slice.size();
    NextSlice();
  }

  size_t left() const { return later_ + here_left(); }  // bytes not read yet

  // False when the bytes end first, or the number is longer than 10 bytes.
  bool ReadVarint(uint64_t* value) {
    if (here_ == end_ && !NextSlice()) return false;
    const uint8_t byte = Next();
    *value = byte;
    return byte < 0x80 || ReadRest(value);  // most are tags and small numbers
  }

  // `count` <= left(). `ahead`: as PrefetchingCopy has it.
  void Copy(size_t count, char* to, size_t ahead) {
    while (count > 0) {
      if (here_ == end_) NextSlice();
      const size_t part = std::min(count, here_left());
      PrefetchingCopy(to, reinterpret_cast<const char*>(here_), part, ahead);
      to += part;
      here_ += part;
      count -= part;
    }
  }
  // The bytes themselves, where they lie in one slice; else null, and nothing is read.
  const char* Borrow(size_t count) {
    if (here_ == end_) NextSlice();
    if (count > here_left()) return nullptr;
    const auto* const bytes = reinterpret_cast<const char*>(here_);
    here_ += count;
    return bytes;
  }
  void Skip(size_t count) {
    while (count > 0) {
      if (here_ == end_) NextSlice();
      const size_t part = std::min(count, here_left());
      here_ += part;
      count -= part;
    }
  }

 private:
  size_t here_left() const { return static_cast<size_t>(end_ - here_); }

  uint8_t Next() { return *static_cast<const volatile uint8_t*>(here_++); }

  // Of a number whose first byte was read.
  bool ReadRest(uint64_t* value) {
    uint64_t number = *value & 0x7f;
    for (int shift = 7; shift < 70; shift += 7) {
      if (here_ == end_ && !NextSlice()) return false;
      const uint8_t byte = Next();
      number |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte >= 0x80) continue;
      *value = number;
      return true;
    }
    return false;
  }

  // Whether there is another one with bytes in it. Not inlined: a message in shared memory is one slice, and its few
  // small fields are most of what is read of it.
  __attribute__((noinline)) bool NextSlice() {
    here_ = end_ = nullptr;
    while (here_ == end_ && next_ < slices_.size()) {
      const grpc::Slice& slice = slices_[next_++];
      here_ = slice.begin();
      end_ = slice.end();
      later_ -= slice.size();
    }
    return here_ != end_;
  }

  const std::span<const grpc::Slice> slices_;
  size_t next_ = 0;
  size_t later_ = 0;  // bytes of the slices behind this one
  const uint8_t* here_ = nullptr;
  const uint8_t* end_ = nullptr;
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_SLICE_CURSOR_H_
