#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/attend_carrier.h"
#include "client/encode.h"
#include "ring/adaptive_watch.h"
#include "ring/doorbell.h"
#include "ring/shared_memory.h"
#include "ring/step_ring.h"

namespace santa::client_internal {
namespace {

RingShape ShapeOf(const v1::AttendSharedResponse& told) {
  return {.slots = told.slots(),
          .request_bytes = told.request_bytes(),
          .answer_bytes = told.answer_bytes(),
          .generation = told.generation()};
}

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
    if (Publish(*request)) return true;
    waiting_ = request;
    return false;
  }

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
      ring_->WakeClient();
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
    const RingShape shape = ShapeOf(told_);
    if (told_.version() != kRingVersion) {
      return absl::FailedPreconditionError("the server's ring is of another version");
    }
    if (absl::Status status = Validate(shape); !status.ok()) return status;
    if (told_.bytes() != shape.memory_bytes()) return absl::FailedPreconditionError("the ring's bytes do not fit it");
    absl::StatusOr<SharedMemory> memory = SharedMemory::Open(told_.process(), told_.fd(), told_.bytes());
    if (!memory.ok()) return memory.status();
    absl::StatusOr<Doorbell> doorbell = Doorbell::Find(told_.doorbell());
    if (!doorbell.ok()) return doorbell.status();
    memory_ = *std::move(memory);
    doorbell_ = *std::move(doorbell);
    const std::lock_guard lock(mutex_);
    ring_.emplace(memory_.bytes(), shape, StepRing::End::kClient);
    for (int32_t slot = shape.slots; slot-- > 0;) free_.push_back(slot);
    return ring_->CheckFormat();
  }

  // With the mutex held. False: not now.
  bool Publish(const v1::AttendRequest& request) {
    if (free_.empty()) return false;
    const size_t bytes = EncodeInto(request, ring_->Room(free_.back()));
    if (bytes == 0) {
      outgrown_by_ = request.ByteSizeLong();
      free_.clear();  // nothing may pass it
      context_.TryCancel();
      return false;
    }
    in_flight_.fetch_add(1, std::memory_order_relaxed);
    const int32_t slot = free_.back();
    free_.pop_back();  // slots that were used last are in the caches
    if (ring_->Publish(slot, bytes)) doorbell_.Ring();
    if (told_.watch() && ring_->Sleeps()) ring_->WakeClient();
    return true;
  }

  void PublishWaiting() {
    {
      const std::lock_guard lock(mutex_);
      if (waiting_ == nullptr || !Publish(*waiting_)) return;
      waiting_.reset();
    }
    owner_.OnWritten();
  }

  void Run() {
    AdaptiveWait wait;
    while (true) {
      bool watches = false;
      wait.Until([this] { return ring_->Waits() || ended_; },
                 [&] {
                   if (!told_.watch() || in_flight_.load(std::memory_order_relaxed) == 0) return false;
                   watches = watches || Watchers::Begin();
                   return watches;
                 },
                 [this] {
                   ring_->BeginSleep();
                   constexpr int64_t kLongest = 1'000'000'000;
                   if (!ring_->Waits() && !ended_) ring_->SleepFor(kLongest);
                   ring_->EndSleep();
                 });
      if (watches) Watchers::End();
      if (ring_->Waits()) {
        if (!TakeAnswer()) return;
      } else if (ended_) {
        return;
      }
    }
  }

  bool TakeAnswer() {
    const absl::StatusOr<StepRing::Message> message = ring_->Take();
    v1::AttendResponse response;
    if (!message.ok() || !DecodeFrom(message->bytes, &response)) {
      Fail(message.ok() ? UnreadableAnswer() : ToGrpc(absl::InternalError(message.status().message())));
      return false;
    }
    in_flight_.fetch_sub(1, std::memory_order_relaxed);
    {
      const std::lock_guard lock(mutex_);
      if (outgrown_by_ == 0) free_.push_back(message->slot);
    }
    PublishWaiting();
    owner_.OnResponse(std::move(response));
    return true;
  }

  const Connection& connection_;
  CarrierOwner& owner_;
  grpc::ClientContext context_;
  v1::AttendSharedRequest ask_;
  v1::AttendSharedResponse told_;
  v1::AttendSharedResponse more_;

  SharedMemory memory_;
  Doorbell doorbell_;
  std::thread thread_;
  std::atomic<bool> ended_ = false;
  std::atomic<int> in_flight_ = 0;

  std::mutex mutex_;
  std::optional<StepRing> ring_;
  std::vector<int32_t> free_;  // slots
  RequestPointer waiting_;     // for a slot
  size_t outgrown_by_ = 0;
  std::optional<grpc::Status> failure_;
};

}  // namespace

std::unique_ptr<AttendCarrier> MakeRingCarrier(const Connection& connection, CarrierOwner& owner, size_t slot_bytes,
                                               size_t slots) {
  return std::make_unique<RingCarrier>(connection, owner, slot_bytes, slots);
}

}  // namespace santa::client_internal
