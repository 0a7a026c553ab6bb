#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "client/attend_carrier.h"
#include "client/client_ring.h"
#include "client/encode.h"
#include "ring/adaptive_watch.h"

namespace santa::client_internal {
namespace {

// Threads of this process that watch without sleeping: as many as leave most CPUs to others. What is a gain for a few
// streams would be a loss for a hundred, whose threads keep each other from the CPUs.
class Watchers {
 public:
  // Whether one more may watch; if so, End() is due.
  static bool Begin() {
    if (count_.fetch_add(1, std::memory_order_relaxed) < Most()) return true;
    End();
    return false;
  }
  static void End() { count_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  static int Most() {
    static const int most = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 2);
    return most;
  }
  static inline std::atomic<int> count_ = 0;
};

// The stream opens the memory, keeps it and ends it. A thread of the carrier's own waits for answers; owner and gRPC's
// threads publish requests.
class RingCarrier final : public AttendCarrier,
                          public grpc::ClientBidiReactor<v1::AttendSharedRequest, v1::AttendSharedResponse> {
 public:
  RingCarrier(const Connection& connection, CarrierOwner& owner, size_t slot_bytes, size_t slots)
      : connection_(connection), owner_(owner) {
    ask_.set_slot_bytes(static_cast<int64_t>(slot_bytes));
    ask_.set_slots(static_cast<int32_t>(slots));
  }

  void Start() override {
    const std::lock_guard lock(mutex_);
    connection_.Authorize(context_);
    connection_.stub->async()->AttendShared(&context_, this);
    AddHold();  // for EndWrites; it ends with the reads, as in StreamCarrier
    StartRead(&told_);
    StartWrite(&ask_);
    StartCall();
  }

  bool Write(const RequestPointer& request) override {
    const std::lock_guard lock(mutex_);
    if (Send(*request)) return true;
    waiting_ = request;
    return false;
  }

  ClientRing* ring() override { return ring_.get(); }
  void EndWrites() override { StartWritesDone(); }
  void Cancel() override { context_.TryCancel(); }
  size_t outgrown_by() const override { return outgrown_by_; }

  void OnReadDone(bool ok) override {
    if (!ok) {
      owner_.OnReadsEnd();
      RemoveHold();
      return;
    }
    const absl::Status status =
        thread_.joinable() ? absl::InternalError("the server told of its memory twice") : Open();
    if (status.ok()) {
      thread_ = std::thread([this] { Run(); });
      owner_.OnOpened();
    } else {
      Fail(ToGrpc(status));
    }
    StartRead(&more_);  // nothing comes, until the end
  }

  void OnDone(const grpc::Status& status) override {
    if (thread_.joinable()) {
      ended_ = true;
      ring_->Wake();
      thread_.join();  // answers that are there are taken first
    }
    owner_.OnEnd(std::unique_ptr<AttendCarrier>(this), Failure().value_or(status));
  }

 private:
  // Of ours, in place of the CANCELLED that gRPC makes of it.
  void Fail(const grpc::Status& status) {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = status;
    }
    context_.TryCancel();
  }

  std::optional<grpc::Status> Failure() {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  absl::Status Open() {
    const absl::StatusOr<std::shared_ptr<ClientRing>> ring = ClientRing::Open(told_);
    if (ring.ok()) ring_ = *ring;
    return ring.status();
  }

  // With the mutex held. False: not now.
  bool Send(const v1::AttendRequest& request) {
    const ClientRing::Sent sent = ring_->Send(request);
    if (sent == ClientRing::Sent::kTooLarge) {
      outgrown_by_ = request.ByteSizeLong();
      context_.TryCancel();
    }
    return sent == ClientRing::Sent::kYes;
  }

  void SendWaiting() {
    {
      const std::lock_guard lock(mutex_);
      if (waiting_ == nullptr || !Send(*waiting_)) return;
      waiting_.reset();
    }
    owner_.OnWritten();
  }

  void Run() {
    AdaptiveWait wait;
    while (true) {
      bool watches = false;
      wait.Until([this] { return ring_->answer_waits() || ended_; },
                 [&] {
                   if (!ring_->may_watch()) return false;
                   watches = watches || Watchers::Begin();
                   return watches;
                 },
                 [this] { ring_->Sleep(ended_); });
      if (watches) Watchers::End();
      if (ring_->answer_waits()) {
        if (!TakeAnswer()) return;
      } else if (ended_) {
        return;
      }
    }
  }

  bool TakeAnswer() {
    const absl::StatusOr<ClientRing::Answer> taken = ring_->Take();
    std::optional<AttendAnswer> answer;
    if (!taken.ok() || !(taken->placed ? DecodeInPlace : DecodeFrom)(taken->message.bytes, &answer)) {
      Fail(taken.ok() ? UnreadableAnswer() : ToGrpc(absl::InternalError(taken.status().message())));
      return false;
    }
    const auto give_back = [&] {
      ring_->Free(taken->message.slot);
      SendWaiting();
    };
    // What is read where it lies keeps its slot until it has been.
    if (!taken->placed) give_back();
    owner_.OnAnswer(*std::move(answer));
    if (taken->placed) give_back();
    return true;
  }

  const Connection& connection_;
  CarrierOwner& owner_;
  grpc::ClientContext context_;
  v1::AttendSharedRequest ask_;
  v1::AttendSharedResponse told_;
  v1::AttendSharedResponse more_;

  std::shared_ptr<ClientRing> ring_;  // before OnOpened there is none
  std::thread thread_;
  std::atomic<bool> ended_ = false;

  std::mutex mutex_;
  RequestPointer waiting_;  // for a slot
  size_t outgrown_by_ = 0;
  std::optional<grpc::Status> failure_;
};

}  // namespace

std::unique_ptr<AttendCarrier> MakeRingCarrier(const Connection& connection, CarrierOwner& owner, size_t slot_bytes,
                                               size_t slots) {
  return std::make_unique<RingCarrier>(connection, owner, slot_bytes, slots);
}

}  // namespace santa::client_internal
