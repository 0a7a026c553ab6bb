#include "server/rpc/attend_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/refused_stream.h"

namespace santa {
namespace {

constexpr char kMethod[] = "Attend";

}  // namespace

AttendReactor* NewAttendStream(ServiceContext* context, ExchangePool* exchanges,
                               const grpc::CallbackServerContext& call) {
  absl::StatusOr<std::string> tenant = TenantOf(call, *context->authenticator);
  absl::Status status = tenant.status();
  if (status.ok()) {
    auto stream = std::make_unique<AttendCall>(context, exchanges, *std::move(tenant), ClientOf(call), DeadlineOf(call),
                                               TraceOf(call));
    status = context->streams->Add(stream.get());
    if (status.ok()) {
      stream->Begin();
      return stream.release();
    }
  }
  RecordCall(context, kMethod, status, TraceOf(call));
  return new RefusedStream<AttendReactor>(status);
}

AttendCall::AttendCall(ServiceContext* context, ExchangePool* exchanges, std::string tenant, uint64_t client,
                       absl::Time deadline, TraceContext trace)
    : context_(context),
      exchanges_(exchanges),
      tenant_(std::move(tenant)),
      client_(client),
      deadline_(deadline),
      trace_(std::move(trace)) {}

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
  std::unique_ptr<AttendExchange> exchange = exchanges_->Take();
  const absl::Status status =
      exchange->Read(bytes, context_->layout, context_->limits.max_items_per_request, context_->metrics);
  bytes.Clear();
  lock.lock();
  parsing_ = false;
  if (!status.ok()) {
    if (end_.ok()) end_ = status;
  } else if (end_.ok() && !cancelled_) {
    exchange->times = {.read = read, .submitted = absl::Now(), .done = {}, .answered = {}};
    Take(std::move(exchange));
  }
  if (exchange != nullptr) exchanges_->Return(std::move(exchange));
  Proceed();
}

void AttendCall::Take(std::unique_ptr<AttendExchange> exchange) {
  AttendExchange* const taken = exchange.get();
  Step* const step = taken->step();
  if (step->items.empty()) {  // nothing valid in it
    answers_.push_back(taken->Answer());
    exchanges_->Return(std::move(exchange));
    return;
  }
  step->tenant = tenant_;
  step->client = client_;
  step->deadline = deadline_;
  step->trace_id = trace_.trace_id;
  step->done = [this, taken] { StepDone(taken); };
  taken->place = computing_.size();
  computing_.push_back(std::move(exchange));
  context_->auditor->ApplyFallbacks(step);
  const absl::Status status = context_->engine->Submit(step);
  if (status.ok()) return;
  FailStep(status, step);
  for (const StepItem& item : step->items) {
    context_->metrics->RecordRefusedItem(Name(item.options.method), status.code());
  }
  answers_.push_back(taken->Answer());
  exchanges_->Return(Remove(taken));
}

std::unique_ptr<AttendExchange> AttendCall::Remove(AttendExchange* exchange) {
  std::unique_ptr<AttendExchange>& place = computing_[exchange->place];
  std::swap(place, computing_.back());
  place->place = exchange->place;
  std::unique_ptr<AttendExchange> removed = std::move(computing_.back());
  computing_.pop_back();
  return removed;
}

void AttendCall::StepDone(AttendExchange* exchange) {
  const Step& step = *exchange->step();
  StepTimes& times = exchange->times;
  times.done = absl::Now();
  context_->metrics->RecordStep(step);
  grpc::ByteBuffer answer = exchange->Answer();
  times.answered = absl::Now();
  if (context_->slow_steps->IsSlow(times)) {
    context_->slow_steps->Write(trace_, exchange->request_id(), step, times);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  exchanges_->Return(Remove(exchange));
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
  for (const auto& exchange : computing_) exchange->step()->cancelled = true;
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
  if (ending && !parsing_ && unanswered() == 0) FinishWith(cancelled_ ? CancellationStatus(deadline_) : end_);
}

void AttendCall::FinishWith(const absl::Status& status) {
  finished_ = true;
  RecordCall(context_, kMethod, status, trace_);
  Finish(ToGrpc(status));
}

void AttendCall::OnDone() {
  { std::lock_guard<std::mutex> lock(mutex_); }
  context_->streams->Remove(this);
  delete this;
}

}  // namespace santa
