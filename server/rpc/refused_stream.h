// A reactor that ends its stream before it began.
#ifndef SANTA_SERVER_RPC_REFUSED_STREAM_H_
#define SANTA_SERVER_RPC_REFUSED_STREAM_H_

#include <mutex>

#include "absl/status/status.h"
#include "server/rpc/wire.h"

namespace santa {

// Reactor: a server reactor of gRPC whose Finish takes a status alone. Deletes itself.
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

}  // namespace santa

#endif  // SANTA_SERVER_RPC_REFUSED_STREAM_H_
