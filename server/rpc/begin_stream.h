// How a stream of the API begins.
#ifndef SANTA_SERVER_RPC_BEGIN_STREAM_H_
#define SANTA_SERVER_RPC_BEGIN_STREAM_H_

#include <memory>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/rpc/service_context.h"
#include "server/rpc/wire.h"

namespace santa {

// A reactor that ends its stream before it began. Reactor: a server reactor of gRPC whose Finish takes a status alone.
// Deletes itself.
template <typename Reactor>
class RefusedStream final : public Reactor {
 public:
  explicit RefusedStream(const absl::Status& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    this->Finish(ToGrpc(status));
  }
  void OnDone() override {
    { std::lock_guard<std::mutex> lock(mutex_); }
    delete this;
  }

 private:
  std::mutex mutex_;  // orders OnDone after the constructor, as in AttendCall
};

// The reactor of a call: a Stream, made of context, caller and `arguments`, in the registry and begun; or one that only
// refuses.
template <typename Reactor, typename Stream, typename... Arguments>
Reactor* BeginStream(ServiceContext* context, const grpc::CallbackServerContext& call, Arguments... arguments) {
  absl::StatusOr<Caller> caller = Caller::Of(call, *context->authenticator);
  absl::Status status = caller.status();
  if (status.ok()) {
    auto stream = std::make_unique<Stream>(context, *std::move(caller), arguments...);
    status = context->streams->Add(stream.get());
    if (status.ok()) {
      stream->Begin();
      return stream.release();
    }
  }
  RecordCall(context, Stream::kMethod, status, TraceOf(call));
  return new RefusedStream<Reactor>(status);
}

}  // namespace santa

#endif  // SANTA_SERVER_RPC_BEGIN_STREAM_H_
