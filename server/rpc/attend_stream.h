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
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/wire.h"

namespace santa {

using AttendReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

// The reactor for a call: an AttendCall, or one that only refuses. Deletes itself.
AttendReactor* NewAttendStream(ServiceContext* context, ExchangePool* exchanges,
                               const grpc::CallbackServerContext& call);

class AttendCall final : public AttendReactor, public DrainableStream {
 public:
  AttendCall(ServiceContext* context, ExchangePool* exchanges, std::string tenant, uint64_t client, absl::Time deadline,
             TraceContext trace);
  void Begin();  // starts reading; the stream is in the registry by then

  void BeginDrain() override;
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // All but StepDone with mutex_ held.
  void Take(std::unique_ptr<AttendExchange> exchange);
  void StepDone(AttendExchange* exchange);  // device thread
  std::unique_ptr<AttendExchange> Remove(AttendExchange* exchange);
  void Cancel();
  void Proceed();  // starts every operation that may start now
  void FinishWith(const absl::Status& status);
  size_t unanswered() const { return computing_.size() + answers_.size() + (writing_ ? 1 : 0); }

  ServiceContext* const context_;
  ExchangePool* const exchanges_;
  const std::string tenant_;
  const uint64_t client_;
  const absl::Time deadline_;
  const TraceContext trace_;

  // Held across gRPC's Start* and Finish, none of which runs a reaction inline. OnDone takes it before it deletes, so
  // that whoever called Finish has left.
  std::mutex mutex_;
  std::vector<std::unique_ptr<AttendExchange>> computing_;
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
