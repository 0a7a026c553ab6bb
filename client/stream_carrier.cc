#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "client/attend_carrier.h"
#include "client/encode.h"

namespace santa::client_internal {
namespace {

constexpr char kMethod[] = "/santa.attention.v1.AttentionService/Attend";

// Owns its context and messages; one read and at most one write in flight. Its hold keeps it alive for writes that
// start outside a reaction; it ends with the reads, as the owner's writes do.
//
// The owner outlives it, and its context, which refers to the channel, goes before the owner does: the last reference
// to a channel must not go on one of gRPC's own threads, which would have to join itself.
class StreamCarrier final : public AttendCarrier, public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  StreamCarrier(const Connection& connection, CarrierOwner& owner) : connection_(connection), owner_(owner) {}

  void Start() override {
    handoff_.fetch_add(1, std::memory_order_acq_rel);
    connection_.Authorize(context_);
    connection_.raw_stub->PrepareBidiStreamingCall(&context_, kMethod, {}, this);
    AddHold();
    StartRead(&answer_);
    StartCall();
  }

  bool Write(const RequestPointer& request) override {
    request_ = EncodeByReference(request);
    handoff_.fetch_add(1, std::memory_order_acq_rel);
    StartWrite(&request_);
    return false;
  }

  void EndWrites() override { StartWritesDone(); }
  void Cancel() override { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    handoff_.load(std::memory_order_acquire);
    if (!ok) {
      owner_.OnReadsEnd();
      RemoveHold();
      return;
    }
    attention::v1::AttendResponse response;
    if (Decode(answer_, &response)) {
      owner_.OnAnswer(AttendAnswer(std::move(response)));
    } else {
      unreadable_ = true;
      context_.TryCancel();
    }
    handoff_.fetch_add(1, std::memory_order_acq_rel);
    StartRead(&answer_);
  }

  void OnWriteDone(bool ok) override {
    handoff_.load(std::memory_order_acquire);
    request_.Clear();
    if (ok) owner_.OnWritten();  // otherwise the stream is over, and OnDone says why
  }

  void OnDone(const grpc::Status& status) override {
    handoff_.load(std::memory_order_acquire);
    owner_.OnEnd(std::unique_ptr<AttendCarrier>(this), unreadable_ ? UnreadableAnswer() : status);
  }

 private:
  const Connection& connection_;
  CarrierOwner& owner_;
  // Operations started. gRPC orders a reaction after the operation that caused it, but ThreadSanitizer cannot see into
  // the packaged library: a count before each operation and a look at it in each reaction say it again.
  std::atomic<int64_t> handoff_ = 0;
  grpc::ClientContext context_;
  grpc::ByteBuffer request_;  // being written
  grpc::ByteBuffer answer_;   // being read
  bool unreadable_ = false;
};

}  // namespace

std::unique_ptr<AttendCarrier> MakeStreamCarrier(const Connection& connection, CarrierOwner& owner) {
  return std::make_unique<StreamCarrier>(connection, owner);
}

}  // namespace santa::client_internal
