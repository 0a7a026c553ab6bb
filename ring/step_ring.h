// Where attention steps pass between two processes of one machine: a slot for each step that may be on its way, and two
// queues of the slots that are ready, in memory that both have mapped.
//
//     Header | queue of requests [slots] | queue of answers [slots] | slot 0: request, answer | slot 1 | ...
//
// At first every slot is the client's. It writes a request into one and publishes it; from then on the slot is the
// server's, until it has written the answer and publishes that. A message is what gRPC would carry. There are as many
// places in a queue as slots, so that neither end ever waits for room.
//
// Neither end trusts what the other can write. The shape is told over gRPC and never read from the memory again; a
// descriptor is copied out once, then checked: its generation, that the slot exists and is the other end's to publish,
// and its length. What a message holds may change while it is read: whoever reads it must copy it first, or read
// each byte once.
#ifndef SANTA_RING_STEP_RING_H_
#define SANTA_RING_STEP_RING_H_

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace santa {

inline constexpr uint32_t kRingVersion = 1;  // of the layout
inline constexpr int32_t kMaxRingSlots = 1024;
inline constexpr int64_t kMaxRingSlotBytes = int64_t{64} << 20;

struct RingShape {
  int32_t slots = 0;          // [1, kMaxRingSlots]
  int64_t request_bytes = 0;  // room in each slot, [1, kMaxRingSlotBytes]; both in whole pages of 4 KiB
  int64_t answer_bytes = 0;
  uint64_t generation = 0;  // of this memory: no other has it, so that what is left of an older one is told apart

  int64_t memory_bytes() const;
};

// OK, or INVALID_ARGUMENT naming field, value and range.
absl::Status Validate(const RingShape& shape);

// One end of it. Take, Waits and the sleep by one thread at a time, Room and Publish likewise; the two may be different
// threads at the same time.
class StepRing {
 public:
  enum class End { kClient, kServer };

  // A valid shape; `memory` has its memory_bytes and outlives the ring. The server's end formats it.
  StepRing(std::span<char> memory, const RingShape& shape, End end);

  // FAILED_PRECONDITION where the memory was not formatted in this version and shape.
  absl::Status CheckFormat() const;

  const RingShape& shape() const { return shape_; }

  // Whether the other end published something that was not taken.
  bool Waits() const { return theirs_->published.load(std::memory_order_acquire) != taken_; }

  struct Message {
    int32_t slot = 0;
    std::span<const char> bytes;  // in the memory
  };
  // The next message, once something waits; its slot is this end's from then on. INVALID_ARGUMENT, naming what is
  // wrong, where the other end broke a rule above; nothing is to be taken any more then.
  absl::StatusOr<Message> Take();

  // Where this end writes, in a slot of its own.
  std::span<char> Room(int32_t slot) const;
  // Gives the slot away, with a message of `length` bytes in its room. True: the other end's reader sleeps, and the
  // caller is to wake it.
  bool Publish(int32_t slot, size_t length);

  // This end's reader goes to sleep: between the two calls Publish of the other end says so, once. Look whether
  // something waits after the first.
  void BeginSleep();
  void EndSleep();
  // Whether it does.
  bool Sleeps() const { return mine_->sleeps.load(std::memory_order_relaxed) != 0; }

  // The client's reader sleeps in the memory itself: after BeginSleep, until it is woken, or for this long, or not at
  // all where EndSleep came first.
  void SleepFor(int64_t nanoseconds) const;
  // By either end.
  void WakeClient() const;

 private:
  struct Descriptor {
    std::atomic<uint64_t> generation;
    std::atomic<uint32_t> slot;
    std::atomic<uint32_t> length;
  };
  // What one end tells the other. A line of the cache for each thing that is polled.
  struct Side {
    alignas(64) std::atomic<uint64_t> published;  // messages, ever
    alignas(64) std::atomic<uint32_t> sleeps;     // 1: the reader of this end
  };
  struct Header {
    uint64_t magic;
    uint64_t generation;
    uint32_t version;
    int32_t slots;
    int64_t request_bytes;
    int64_t answer_bytes;
    Side client;
    Side server;
  };

  friend struct RingShape;
  static size_t HeadBytes(int32_t slots);  // of all that is before the slots

  Header* header() const { return reinterpret_cast<Header*>(memory_.data()); }
  Descriptor* queue_of(End end) const;
  std::span<char> room_of(End writer, int32_t slot) const;

  const std::span<char> memory_;
  const RingShape shape_;
  const End end_;
  Side* const mine_;
  Side* const theirs_;
  Descriptor* const my_queue_;
  Descriptor* const their_queue_;
  uint64_t taken_ = 0;
  uint64_t published_ = 0;
  std::vector<std::atomic<bool>> held_;  // slots that are this end's
};

}  // namespace santa

#endif  // SANTA_RING_STEP_RING_H_
