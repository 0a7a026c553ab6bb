// Pinned buffers that kernels read in place, taken in turn. What a kernel reads once is sooner there than by a copy:
// the copy engine costs a change of engines, which takes longer than a small copy.
#ifndef SANTA_KERNELS_CUDA_STAGING_H_
#define SANTA_KERNELS_CUDA_STAGING_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device_memory.h"

namespace santa::cuda {

// Not thread safe.
class Staging {
 public:
  struct Slot {
    PinnedMemory pinned;
    Event released;  // when the device has done with it
    bool used = false;

    // For the host and for the device.
    uint8_t* at(size_t offset) const { return static_cast<uint8_t*>(pinned.get()) + offset; }
  };

  static absl::StatusOr<Staging> Make(size_t slot_bytes);

  size_t slot_bytes() const { return slot_bytes_; }

  // The slot released longest ago; waits for the device where that is still in use.
  absl::StatusOr<Slot*> Next();
  // To be called once what uses the slot is queued.
  static absl::Status Release(Slot& slot, cudaStream_t stream);

 private:
  static constexpr int kSlots = 3;
  std::array<Slot, kSlots> slots_;
  size_t slot_bytes_ = 0;
  int next_ = 0;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_STAGING_H_
