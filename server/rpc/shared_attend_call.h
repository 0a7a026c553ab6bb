// The reactor of one AttendShared call: its stream opens the shared memory, keeps it and ends it; steps and answers
// pass through the ring in it.
#ifndef SANTA_SERVER_RPC_SHARED_ATTEND_CALL_H_
#define SANTA_SERVER_RPC_SHARED_ATTEND_CALL_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "ring/shared_memory.h"
#include "ring/step_ring.h"
#include "server/rpc/attend_stream.h"
#include "server/rpc/call_steps.h"
#include "server/rpc/ring_poller.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"

namespace santa {

// Deletes itself. No more requests are in flight than the ring has slots, so that nothing has to hold the caller back.
class SharedAttendCall final : public AttendReactor, public DrainableStream, public PolledCall {
 public:
  static constexpr char kMethod[] = "AttendShared";

  SharedAttendCall(ServiceContext* context, Caller caller, ExchangePool* exchanges, RingPoller* poller)
      : context_(context), poller_(poller), steps_(context, std::move(caller), exchanges) {}
  void Begin();

  void BeginDrain() override;
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  bool Poll() override;
  void BeginSleep() override { ring_->BeginSleep(); }
  void EndSleep() override { ring_->EndSleep(); }

 private:
  // Makes memory and ring, in the poller's hands when it returns; what is to be told of them.
  absl::StatusOr<v1::AttendSharedResponse> Open(const grpc::ByteBuffer& request);

  // With mutex_ held.
  bool takes_more() const { return !cancelled_ && end_.ok(); }
  void Take(std::unique_ptr<AttendExchange> exchange);
  void Answer(AttendExchange* exchange, const absl::StatusOr<size_t>& length);
  void Cancel();
  void Proceed();

  void StepDone(AttendExchange* exchange);  // the step's `done`

  ServiceContext* const context_;
  RingPoller* const poller_;
  SharedMemory memory_;
  std::unique_ptr<MappedMemory> mapping_;  // of the memory, where the device has one
  std::optional<StepRing> ring_;           // there before the poller has it

  std::mutex mutex_;  // as in AttendCall; and before the ring's Publish
  CallSteps steps_;
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
  bool opened_ = false;  // the poller has it
  bool busy_ = false;    // a message is being read, without the mutex: the call must not end
  bool writing_ = false;
  bool half_closed_ = false;  // the caller publishes no more
  bool cancelled_ = false;
  bool finished_ = false;
  absl::Status end_;  // not OK: take no more, answer what is in flight, then end with it
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_SHARED_ATTEND_CALL_H_
