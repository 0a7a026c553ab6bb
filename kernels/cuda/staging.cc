#include "kernels/cuda/staging.h"

#include <utility>

namespace santa::cuda {

absl::StatusOr<Staging> Staging::Make(size_t slot_bytes) {
  Staging staging;
  staging.slot_bytes_ = slot_bytes;
  for (Slot& slot : staging.slots_) {
    absl::StatusOr<PinnedMemory> pinned = AllocatePinned(slot_bytes, "staging of new tokens");
    if (!pinned.ok()) return pinned.status();
    absl::StatusOr<Event> released = MakeEvent();
    if (!released.ok()) return released.status();
    slot = {.pinned = *std::move(pinned), .released = *std::move(released)};
  }
  return staging;
}

absl::StatusOr<Staging::Slot*> Staging::Next() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kSlots;
  if (slot.used) {
    if (absl::Status status = ToStatus(cudaEventSynchronize(slot.released.get()), "cudaEventSynchronize");
        !status.ok()) {
      return status;
    }
    slot.used = false;
  }
  return &slot;
}

absl::Status Staging::Release(Slot& slot, cudaStream_t stream) {
  slot.used = true;
  return ToStatus(cudaEventRecord(slot.released.get(), stream), "cudaEventRecord");
}

}  // namespace santa::cuda
