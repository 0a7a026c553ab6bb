#include "ring/step_ring.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace santa {
namespace {

constexpr uint64_t kMagic = 0x676e697241544e53;  // "SNTAring"
constexpr int64_t kPage = 4096;

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free,
              "a lock would be one process's own");

StepRing::End Other(StepRing::End end) {
  return end == StepRing::End::kClient ? StepRing::End::kServer : StepRing::End::kClient;
}

absl::Status OutOfRange(std::string_view field, int64_t value, int64_t most) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(field), " is ", value, "; allowed is [1, ", most, "]"));
}

}  // namespace

int64_t RingShape::memory_bytes() const {
  return static_cast<int64_t>(StepRing::HeadBytes(slots)) + slots * (request_bytes + answer_bytes);
}

absl::Status Validate(const RingShape& shape) {
  if (shape.slots < 1 || shape.slots > kMaxRingSlots) return OutOfRange("slots", shape.slots, kMaxRingSlots);
  for (const auto& [field, bytes] :
       {std::pair("request_bytes", shape.request_bytes), std::pair("answer_bytes", shape.answer_bytes)}) {
    if (bytes < 1 || bytes > kMaxRingSlotBytes) return OutOfRange(field, bytes, kMaxRingSlotBytes);
    if (bytes % kPage != 0) {
      return absl::InvalidArgumentError(absl::StrCat(field, " is ", bytes, "; allowed is a multiple of ", kPage));
    }
  }
  return absl::OkStatus();
}

size_t StepRing::HeadBytes(int32_t slots) {
  const size_t bytes = sizeof(Header) + 2 * sizeof(Descriptor) * slots;
  return (bytes + kPage - 1) / kPage * kPage;
}

StepRing::StepRing(std::span<char> memory, const RingShape& shape, End end)
    : memory_(memory),
      shape_(shape),
      end_(end),
      mine_(end == End::kClient ? &header()->client : &header()->server),
      theirs_(end == End::kClient ? &header()->server : &header()->client),
      my_queue_(queue_of(end)),
      their_queue_(queue_of(Other(end))),
      held_(shape.slots) {
  for (std::atomic<bool>& held : held_) held.store(end == End::kClient, std::memory_order_relaxed);
  if (end == End::kClient) return;
  // All else is 0.
  Header& header = *this->header();
  header.generation = shape.generation;
  header.version = kRingVersion;
  header.slots = shape.slots;
  header.request_bytes = shape.request_bytes;
  header.answer_bytes = shape.answer_bytes;
  header.magic = kMagic;
}

absl::Status StepRing::CheckFormat() const {
  const Header& found = *header();
  if (found.magic != kMagic || found.version != kRingVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the ring's magic is ", found.magic, " and its version ",
                                                      found.version, "; allowed are ", kMagic, " and ", kRingVersion));
  }
  if (found.generation != shape_.generation || found.slots != shape_.slots ||
      found.request_bytes != shape_.request_bytes || found.answer_bytes != shape_.answer_bytes) {
    return absl::FailedPreconditionError("the ring's generation or shape is not the one agreed upon");
  }
  return absl::OkStatus();
}

StepRing::Descriptor* StepRing::queue_of(End end) const {
  auto* const queues = reinterpret_cast<Descriptor*>(memory_.data() + sizeof(Header));
  return end == End::kClient ? queues : queues + shape_.slots;
}

absl::StatusOr<StepRing::Message> StepRing::Take() {
  const uint64_t published = theirs_->published.load(std::memory_order_acquire);
  if (published == taken_ || published - taken_ > static_cast<uint64_t>(shape_.slots)) {
    return absl::InvalidArgumentError(absl::StrCat("the ring counts ", published, " messages, of which ", taken_,
                                                   " were taken; it has ", shape_.slots, " slots"));
  }
  const Descriptor& descriptor = their_queue_[taken_ % shape_.slots];
  const uint64_t generation = descriptor.generation.load(std::memory_order_relaxed);
  const uint32_t slot = descriptor.slot.load(std::memory_order_relaxed);
  const uint32_t length = descriptor.length.load(std::memory_order_relaxed);
  if (generation != shape_.generation) {
    return absl::InvalidArgumentError("a descriptor in the ring is of another generation");
  }
  if (slot >= static_cast<uint32_t>(shape_.slots)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a descriptor's slot is ", slot, "; allowed is [0, ", shape_.slots, ")"));
  }
  if (held_[slot].load(std::memory_order_acquire)) {
    return absl::InvalidArgumentError(absl::StrCat("slot ", slot, " was published by the end that has not got it"));
  }
  const int64_t most = end_ == End::kServer ? shape_.request_bytes : shape_.answer_bytes;
  if (length > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("a descriptor's length is ", length, "; allowed is [0, ", most, "]"));
  }
  ++taken_;
  held_[slot].store(true, std::memory_order_release);
  return Message{.slot = static_cast<int32_t>(slot),
                 .bytes = room_of(Other(end_), static_cast<int32_t>(slot)).first(length)};
}

std::span<char> StepRing::room_of(End writer, int32_t slot) const {
  const auto request = static_cast<size_t>(shape_.request_bytes);
  const auto answer = static_cast<size_t>(shape_.answer_bytes);
  const std::span<char> both =
      memory_.last(memory_.size() - HeadBytes(shape_.slots)).subspan(slot * (request + answer), request + answer);
  return writer == End::kClient ? both.first(request) : both.last(answer);
}

std::span<char> StepRing::Room(int32_t slot) const { return room_of(end_, slot); }

bool StepRing::Publish(int32_t slot, size_t length) {
  Descriptor& descriptor = my_queue_[published_ % shape_.slots];
  descriptor.generation.store(shape_.generation, std::memory_order_relaxed);
  descriptor.slot.store(static_cast<uint32_t>(slot), std::memory_order_relaxed);
  descriptor.length.store(static_cast<uint32_t>(length), std::memory_order_relaxed);
  held_[slot].store(false, std::memory_order_release);  // the other end may give it back at once
  mine_->published.store(++published_, std::memory_order_seq_cst);
  return theirs_->sleeps.load(std::memory_order_seq_cst) != 0 && theirs_->sleeps.exchange(0) != 0;
}

void StepRing::BeginSleep() {
  mine_->sleeps.store(1, std::memory_order_seq_cst);
  // The order of this store and the reader's next look at `published`, which another process sees the other way around.
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void StepRing::EndSleep() { mine_->sleeps.store(0, std::memory_order_relaxed); }

void StepRing::SleepFor(int64_t nanoseconds) const {
  constexpr int64_t kSecond = 1'000'000'000;
  const timespec timeout = {.tv_sec = nanoseconds / kSecond, .tv_nsec = nanoseconds % kSecond};
  syscall(SYS_futex, &header()->client.sleeps, FUTEX_WAIT, 1, &timeout, nullptr, 0);
}

void StepRing::WakeClient() const {
  header()->client.sleeps.store(0, std::memory_order_seq_cst);
  syscall(SYS_futex, &header()->client.sleeps, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace santa
