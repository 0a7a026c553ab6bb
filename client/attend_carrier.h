// What carries an AttendStream's messages to the server and back: gRPC's own stream, or memory that both share.
#ifndef SANTA_CLIENT_ATTEND_CARRIER_H_
#define SANTA_CLIENT_ATTEND_CARRIER_H_

#include <grpcpp/support/status.h>

#include <cstddef>
#include <memory>

#include "client/client_ring.h"
#include "client/connection.h"
#include "client/placed_step.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::client_internal {

using RequestPointer = std::shared_ptr<const attention::v1::AttendRequest>;

class AttendCarrier;

// Who uses a carrier, and outlives it. Called without a lock of the carrier's, from threads of its own and of gRPC's.
class CarrierOwner {
 public:
  virtual ~CarrierOwner() = default;
  virtual void OnOpened() = 0;                     // of a ring: its memory is there; no write may begin before
  virtual void OnWritten() = 0;                    // the write that was in flight is done
  virtual void OnAnswer(AttendAnswer answer) = 0;  // its views are good until it returns
  virtual void OnReadsEnd() = 0;                   // OnEnd will follow; no write may begin
  // The last call. UNAVAILABLE and the like: what is unanswered may be sent again.
  virtual void OnEnd(std::unique_ptr<AttendCarrier> carrier, const grpc::Status& status) = 0;
};

// Made, started, then owned by itself until OnEnd gives it back. One write at a time; Start, Write, EndWrites and
// Cancel call nothing of the owner's before they return, and may be called with its locks held.
class AttendCarrier {
 public:
  virtual ~AttendCarrier() = default;
  virtual void Start() = 0;
  // True: it is written. False: it is in flight, and OnWritten will come unless the stream ends first.
  virtual bool Write(const RequestPointer& request) = 0;
  // Where steps may be placed, which are then sent there and not written; or null. From OnOpened on.
  virtual ClientRing* ring() { return nullptr; }
  virtual void EndWrites() = 0;  // none is in flight, and none will follow
  virtual void Cancel() = 0;

  // After the end: the bytes of a request that was larger than this carrier takes; 0: there was none.
  virtual size_t outgrown_by() const { return 0; }
};

// Over Attend.
std::unique_ptr<AttendCarrier> MakeStreamCarrier(const Connection& connection, CarrierOwner& owner);

// Over AttendShared, with requests of up to slot_bytes, `slots` of them unanswered at a time. It ends with an error
// that is not to be retried where the server has none to share, or it cannot be opened from here.
std::unique_ptr<AttendCarrier> MakeRingCarrier(const Connection& connection, CarrierOwner& owner, size_t slot_bytes,
                                               size_t slots);

}  // namespace santa::client_internal

#endif  // SANTA_CLIENT_ATTEND_CARRIER_H_
