// The reactor of one Attend stream.
//
// Several requests are in flight at once: while earlier steps wait or run, the next message is read, until
// max_inflight_per_stream are unanswered; then reading stops, and HTTP/2's flow control holds the caller back. Answers
// go out in the order in which the steps finish, one write at a time.
#ifndef SANTA_SERVER_RPC_ATTEND_STREAM_H_
#define SANTA_SERVER_RPC_ATTEND_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "server/rpc/call_steps.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/wire.h"

namespace santa {

using AttendReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

// Deletes itself.
class AttendCall final : public AttendReactor, public DrainableStream {
 public:
  static constexpr char kMethod[] = "Attend";

  AttendCall(ServiceContext* context, Caller caller, ExchangePool* exchanges)
      : context_(context), steps_(context, std::move(caller), exchanges) {}
  void Begin();  // starts reading; the stream is in the registry by then

  void BeginDrain() override;
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // All but StepDone with mutex_ held.
  void Take(std::unique_ptr<AttendExchange> exchange);
  void StepDone(AttendExchange* exchange);  // the step's `done`
  void Cancel();
  void Proceed();  // starts every operation that may start now
  void FinishWith(const absl::Status& status);
  size_t unanswered() const { return steps_.size() + answers_.size() + (writing_ ? 1 : 0); }

  ServiceContext* const context_;

  // Held across gRPC's Start* and Finish, none of which runs a reaction inline. OnDone takes it before it deletes, so
  // that whoever called Finish has left.
  std::mutex mutex_;
  CallSteps steps_;
  std::deque<grpc::ByteBuffer> answers_;  // wait for the write in flight
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
  bool reading_ = false;
  bool parsing_ = false;
  bool writing_ = false;
  bool half_closed_ = false;  // the caller sends no more
  bool cancelled_ = false;
  bool finished_ = false;
  absl::Status end_;  // not OK: read no more, answer what is in flight, then end with it
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_ATTEND_STREAM_H_
