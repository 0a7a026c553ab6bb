#include "server/rpc/attend_stream.h"

#include <utility>

#include "absl/time/clock.h"

namespace santa {
void AttendCall::Begin() {
  std::lock_guard<std::mutex> lock(mutex_);
  Proceed();
}

void AttendCall::BeginDrain() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (end_.ok()) end_ = absl::UnavailableError("the server is draining; retry on another one");
  Proceed();
}

void AttendCall::OnReadDone(bool ok) {
  const absl::Time read = absl::Now();
  std::unique_lock<std::mutex> lock(mutex_);
  reading_ = false;
  if (!ok) {
    half_closed_ = true;
    Proceed();
    return;
  }
  grpc::ByteBuffer bytes;
  bytes.Swap(&incoming_);
  parsing_ = true;
  lock.unlock();
  std::unique_ptr<AttendExchange> exchange = steps_.TakeExchange();
  const absl::Status status = steps_.Read(bytes, read, exchange.get());
  bytes.Clear();
  lock.lock();
  parsing_ = false;
  if (!status.ok()) {
    if (end_.ok()) end_ = status;
  } else if (end_.ok() && !cancelled_) {
    Take(std::move(exchange));
  }
  if (exchange != nullptr) steps_.Return(std::move(exchange));
  Proceed();
}

void AttendCall::Take(std::unique_ptr<AttendExchange> exchange) {
  AttendExchange* const taken = exchange.get();
  exchange = steps_.Submit(std::move(exchange), Engine::Wake::kNow, [this, taken] { StepDone(taken); });
  if (exchange == nullptr) return;
  answers_.push_back(exchange->Answer());
  steps_.Return(std::move(exchange));
}

void AttendCall::StepDone(AttendExchange* exchange) {
  grpc::ByteBuffer answer;
  steps_.Complete(exchange, [&] { answer = exchange->Answer(); });
  std::lock_guard<std::mutex> lock(mutex_);
  steps_.Return(steps_.Remove(exchange));
  if (!cancelled_) answers_.push_back(std::move(answer));
  Proceed();
}

void AttendCall::OnWriteDone(bool ok) {
  std::lock_guard<std::mutex> lock(mutex_);
  writing_ = false;
  outgoing_.Clear();
  if (!ok) Cancel();
  Proceed();
}

void AttendCall::OnCancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  Cancel();
  Proceed();
}

void AttendCall::Cancel() {
  cancelled_ = true;
  answers_.clear();
  steps_.Cancel();
}

void AttendCall::Proceed() {
  if (finished_) return;
  const bool ending = half_closed_ || cancelled_ || !end_.ok();
  if (!writing_ && !answers_.empty()) {
    writing_ = true;
    outgoing_.Swap(&answers_.front());
    answers_.pop_front();
    StartWrite(&outgoing_);
  }
  if (!ending && !reading_ && !parsing_ &&
      unanswered() < static_cast<size_t>(context_->limits.max_inflight_per_stream)) {
    reading_ = true;
    StartRead(&incoming_);
  }
  if (ending && !parsing_ && unanswered() == 0)
    FinishWith(cancelled_ ? CancellationStatus(steps_.caller().deadline) : end_);
}

void AttendCall::FinishWith(const absl::Status& status) {
  finished_ = true;
  RecordCall(context_, kMethod, status, steps_.caller().trace);
  Finish(ToGrpc(status));
}

void AttendCall::OnDone() {
  { std::lock_guard<std::mutex> lock(mutex_); }
  context_->streams->Remove(this);
  delete this;
}

}  // namespace santa
