#include "server/rpc/shared_attend_call.h"

#include <unistd.h>

#include <algorithm>
#include <random>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/logging/log.h"
#include "server/rpc/attend_answer_writer.h"

namespace santa {
namespace {

constexpr int64_t kPage = 4096;
int64_t WholePages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// An answer's outputs take as much as its request's queries. Beside them each item has fields of its own, or a refusal.
int64_t AnswerBytes(int64_t request_bytes, const KvLayout& layout, int32_t max_items) {
  constexpr int64_t kFields = 256;
  const int64_t item = kFields + static_cast<int64_t>(sizeof(float)) * layout.num_query_heads +
                       static_cast<int64_t>(AttendAnswerWriter::StatisticsRoom(layout.num_query_heads));
  return std::min(request_bytes + WholePages(item * max_items), kMaxRingSlotBytes);
}

absl::StatusOr<RingShape> ShapeFor(const v1::AttendSharedRequest& request, const ServiceContext& context) {
  if (request.slots() < 1 || request.slots() > kMaxRingSlots) {
    return absl::InvalidArgumentError(
        absl::StrCat("slots is ", request.slots(), "; allowed is [1, ", kMaxRingSlots, "]"));
  }
  const int64_t most = std::min(context.limits.max_message_bytes, kMaxRingSlotBytes);
  if (request.slot_bytes() < 1 || request.slot_bytes() > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot_bytes is ", request.slot_bytes(), "; allowed is [1, ", most, "]"));
  }
  std::random_device random;
  const int64_t request_bytes = WholePages(request.slot_bytes());
  return RingShape{.slots = std::min(request.slots(), context.limits.max_inflight_per_stream),
                   .request_bytes = request_bytes,
                   .answer_bytes = AnswerBytes(request_bytes, context.layout, context.limits.max_items_per_request),
                   .generation = (uint64_t{random()} << 32) | random()};
}

}  // namespace

void SharedAttendCall::Begin() { StartRead(&incoming_); }

void SharedAttendCall::BeginDrain() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (end_.ok()) end_ = absl::UnavailableError("the server is draining; retry on another one");
  Proceed();
}

void SharedAttendCall::OnReadDone(bool ok) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!ok) {
    half_closed_ = true;
  } else if (opened_) {
    if (end_.ok()) end_ = absl::InvalidArgumentError("a second message came; allowed is one");
  } else {
    busy_ = true;
    lock.unlock();
    const absl::StatusOr<v1::AttendSharedResponse> response = Open(incoming_);
    incoming_.Clear();
    lock.lock();
    busy_ = false;
    opened_ = response.ok();
    if (opened_) {
      outgoing_ = Encode(*response);
      writing_ = true;
      StartWrite(&outgoing_);
      StartRead(&incoming_);
    } else if (end_.ok()) {
      end_ = response.status();
    }
  }
  Proceed();
}

absl::StatusOr<v1::AttendSharedResponse> SharedAttendCall::Open(const grpc::ByteBuffer& bytes) {
  v1::AttendSharedRequest request;
  if (absl::Status status = Decode(bytes, &request); !status.ok()) return status;
  const absl::StatusOr<RingShape> shape = ShapeFor(request, *context_);
  if (!shape.ok()) return shape.status();
  absl::StatusOr<SharedMemory> memory = SharedMemory::Create(shape->memory_bytes());
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  ring_.emplace(memory_.bytes(), *shape, StepRing::End::kServer);
  const absl::StatusOr<std::string> doorbell = poller_->Add(this, shape->memory_bytes());
  if (!doorbell.ok()) return doorbell.status();
  mapping_ = context_->engine->MapMemory(memory_.bytes());  // which takes all of it: not before it is granted
  Log(LogLevel::kDebug, "shared memory was opened",
      {{"bytes", shape->memory_bytes()},
       {"mapped", mapping_ != nullptr},
       {"trace_id", steps_.caller().trace.trace_id}});
  v1::AttendSharedResponse response;
  response.set_version(kRingVersion);
  response.set_process(getpid());
  response.set_fd(memory_.descriptor());
  response.set_bytes(shape->memory_bytes());
  response.set_generation(shape->generation);
  response.set_slots(shape->slots);
  response.set_request_bytes(shape->request_bytes);
  response.set_answer_bytes(shape->answer_bytes);
  response.set_doorbell(*doorbell);
  response.set_watch(poller_->watch_in_flight());
  return response;
}

bool SharedAttendCall::Poll() {
  if (!ring_->Waits()) return false;
  const absl::Time read = absl::Now();
  std::unique_lock<std::mutex> lock(mutex_);
  if (!opened_ || !takes_more() || finished_) return false;
  const absl::StatusOr<StepRing::Message> message = ring_->Take();
  if (!message.ok()) {
    end_ = message.status();
    Proceed();
    return true;
  }
  busy_ = true;
  lock.unlock();
  std::unique_ptr<AttendExchange> exchange = steps_.TakeExchange();
  exchange->slot = message->slot;
  const SharedMessage shared = {
      .bytes = message->bytes, .room = ring_->Room(message->slot), .mapped = mapping_ != nullptr};
  const absl::Status status = steps_.Read(shared, read, exchange.get());
  lock.lock();
  busy_ = false;
  if (!status.ok()) {
    if (end_.ok()) end_ = status;
  } else if (takes_more()) {
    Take(std::move(exchange));
  }
  if (exchange != nullptr) steps_.Return(std::move(exchange));
  Proceed();
  return true;
}

void SharedAttendCall::Take(std::unique_ptr<AttendExchange> exchange) {
  AttendExchange* const taken = exchange.get();
  poller_->StepBegins();
  exchange = steps_.Submit(std::move(exchange), Engine::Wake::kInRunHere, [this, taken] { StepDone(taken); });
  if (exchange == nullptr) return;
  Answer(taken, exchange->AnswerInto(ring_->Room(exchange->slot)));
  steps_.Return(std::move(exchange));
}

void SharedAttendCall::StepDone(AttendExchange* exchange) {
  absl::StatusOr<size_t> length = 0;
  steps_.Complete(exchange, [&] { length = exchange->AnswerInto(ring_->Room(exchange->slot)); });
  std::lock_guard<std::mutex> lock(mutex_);
  Answer(exchange, length);
  steps_.Return(steps_.Remove(exchange));
  Proceed();
}

void SharedAttendCall::Answer(AttendExchange* exchange, const absl::StatusOr<size_t>& length) {
  poller_->StepEnds();
  if (!length.ok()) {
    if (end_.ok()) end_ = length.status();
  } else if (!cancelled_ && ring_->Publish(exchange->slot, *length)) {
    ring_->WakeClient();
  }
}

void SharedAttendCall::OnWriteDone(bool ok) {
  std::lock_guard<std::mutex> lock(mutex_);
  writing_ = false;
  outgoing_.Clear();
  if (!ok) Cancel();
  Proceed();
}

void SharedAttendCall::OnCancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  Cancel();
  Proceed();
}

void SharedAttendCall::Cancel() {
  cancelled_ = true;
  steps_.Cancel();
}

void SharedAttendCall::Proceed() {
  if (finished_ || busy_ || writing_ || steps_.size() > 0) return;
  const bool all_taken = half_closed_ && (!opened_ || !ring_->Waits());
  if (takes_more() && !all_taken) return;
  finished_ = true;
  const absl::Status status = cancelled_ ? CancellationStatus(steps_.caller().deadline) : end_;
  RecordCall(context_, kMethod, status, steps_.caller().trace);
  Finish(ToGrpc(status));
}

void SharedAttendCall::OnDone() {
  { std::lock_guard<std::mutex> lock(mutex_); }
  if (opened_) poller_->Remove(this, ring_->shape().memory_bytes());
  context_->streams->Remove(this);
  delete this;
}

}  // namespace santa
