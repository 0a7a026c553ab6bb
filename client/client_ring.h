// The client's end of a ring in shared memory (ring/step_ring.h), and which of its slots are free.
#ifndef SANTA_CLIENT_CLIENT_RING_H_
#define SANTA_CLIENT_CLIENT_RING_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/placed_step.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "ring/doorbell.h"
#include "ring/shared_memory.h"
#include "ring/step_ring.h"

namespace santa::client_internal {

class PlacedRequest;

// Lives as long as the carrier that opened it, and as requests that were placed in it. Thread safe, but that one thread
// at a time takes answers, and waits for them.
class ClientRing : public std::enable_shared_from_this<ClientRing> {
 public:
  // An error where what the server told does not hold, or the memory cannot be had from here.
  static absl::StatusOr<std::shared_ptr<ClientRing>> Open(const v1::AttendSharedResponse& told);

  // Requests go out in the order of these calls. kTooLarge: it has request.ByteSizeLong() bytes, more than a slot, and
  // no other will be sent.
  enum class Sent { kYes, kNoSlot, kTooLarge };
  Sent Send(const v1::AttendRequest& request);

  // In a slot of its own; null: there is none to spare, or it is too large for one. One slot is never given, so that
  // what is sent by the call above waits for the server and nobody else.
  std::unique_ptr<PlacedRequest> Place(const v1::AttendRequest& request);
  // A request that was placed here.
  void Send(PlacedRequest& placed, uint64_t request_id);

  // An answer; its slot is the caller's until Free.
  struct Answer {
    StepRing::Message message;
    bool placed = false;  // what it answers was
  };
  absl::StatusOr<Answer> Take();
  void Free(int32_t slot);

  bool answer_waits() const { return ring_.Waits(); }
  // The server watches for requests without sleeping, and so may its clients for answers.
  bool may_watch() const { return watch_ && in_flight_.load(std::memory_order_relaxed) > 0; }
  // Sleeps until an answer may wait, or `ended`, or for a second.
  void Sleep(const std::atomic<bool>& ended);
  void Wake() const { ring_.WakeClient(); }

 private:
  friend class PlacedRequest;

  ClientRing(SharedMemory memory, Doorbell doorbell, const RingShape& shape, bool watch);
  void Publish(int32_t slot, size_t bytes);  // with the mutex held

  const SharedMemory memory_;
  Doorbell doorbell_;
  const bool watch_;  // worth it
  std::atomic<int> in_flight_ = 0;

  StepRing ring_;
  std::vector<std::atomic<bool>> placed_;  // of each slot: what was sent in it was placed there

  std::mutex mutex_;  // of Room and Publish, and of what follows
  std::vector<int32_t> free_;
  bool outgrown_ = false;
};

// A request whose tensors are being written: in a slot of a ring, or in a message.
class PlacedRequest {
 public:
  // In a message: tensors have dtype and shape, and get data.
  explicit PlacedRequest(const v1::AttendRequest& request);
  // In a slot that is the request's until it is sent; `bytes` of it are taken.
  PlacedRequest(std::shared_ptr<ClientRing> ring, int32_t slot, size_t bytes, std::vector<TensorRooms> rooms)
      : ring_(std::move(ring)), slot_(slot), bytes_(bytes), rooms_(std::move(rooms)) {}
  ~PlacedRequest();
  PlacedRequest(const PlacedRequest&) = delete;
  PlacedRequest& operator=(const PlacedRequest&) = delete;

  const ClientRing* ring() const { return ring_.get(); }  // or null
  size_t bytes() const { return bytes_; }
  const std::vector<TensorRooms>& rooms() const { return rooms_; }

  // The whole request, with this id; a copy where it lies in a slot, sent or not.
  std::shared_ptr<v1::AttendRequest> ToMessage(uint64_t request_id) const;

 private:
  friend class ClientRing;

  std::shared_ptr<ClientRing> ring_;
  int32_t slot_ = 0;
  bool sent_ = false;  // the slot is the ring's again
  std::shared_ptr<v1::AttendRequest> message_;
  size_t bytes_ = 0;
  std::vector<TensorRooms> rooms_;
};

}  // namespace santa::client_internal

#endif  // SANTA_CLIENT_CLIENT_RING_H_
