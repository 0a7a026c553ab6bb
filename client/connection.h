// What the client's calls share: the channel's stub, the credentials of a call, how to retry.
#ifndef SANTA_CLIENT_CONNECTION_H_
#define SANTA_CLIENT_CONNECTION_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/retry_policy.h"
#include "proto/santa/attention/v1/attention.grpc.pb.h"

namespace santa::client_internal {

// Immutable once Connect has returned.
struct Connection {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<attention::v1::AttentionService::Stub> stub;
  std::unique_ptr<grpc::GenericStub> raw_stub;  // of the same channel, for messages that we encode ourselves
  std::string authorization;                    // the header's value; empty: none
  RetryPolicy retry;
  attention::v1::ServerInfo info;

  void Authorize(grpc::ClientContext& context) const {
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  }

  // While the channel is not connected somebody has to wait for it, between calls too: gRPC (1.51) goes on with an
  // attempt to connect only for who waits, else every five seconds.
  bool connected() const { return channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY; }
  void WaitForChannel(absl::Time until) const { channel->WaitForConnected(absl::ToChronoTime(until)); }
};

inline absl::Status ToAbseil(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

inline grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

inline grpc::Status UnreadableAnswer() {
  return {grpc::StatusCode::INTERNAL, "the server's answer is no AttendResponse"};
}

// The call may succeed when it is made again. CANCELLED is what a proxy or a dying server makes of a call that we did
// not cancel.
inline bool IsRetryable(grpc::StatusCode code) {
  return code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::CANCELLED;
}

}  // namespace santa::client_internal

#endif  // SANTA_CLIENT_CONNECTION_H_
