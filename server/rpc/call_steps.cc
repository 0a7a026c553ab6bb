#include "server/rpc/call_steps.h"

namespace santa {

std::unique_ptr<AttendExchange> CallSteps::Submit(std::unique_ptr<AttendExchange> exchange, Engine::Wake wake,
                                                  std::function<void()> done) {
  AttendExchange* const submitted = exchange.get();
  Step* const step = submitted->step();
  if (step->items.empty()) return exchange;
  step->tenant = caller_.tenant;
  step->client = caller_.client;
  step->deadline = caller_.deadline;
  step->trace_id = caller_.trace.trace_id;
  step->done = std::move(done);
  submitted->place = computing_.size();
  computing_.push_back(std::move(exchange));
  context_->auditor->ApplyFallbacks(step);
  const absl::Status status = context_->engine->Submit(step, wake);
  if (status.ok()) return nullptr;
  FailStep(status, step);
  for (const StepItem& item : step->items) {
    context_->metrics->RecordRefusedItem(Name(item.options.method), status.code());
  }
  return Remove(submitted);
}

std::unique_ptr<AttendExchange> CallSteps::Remove(AttendExchange* exchange) {
  std::unique_ptr<AttendExchange>& place = computing_[exchange->place];
  std::swap(place, computing_.back());
  place->place = exchange->place;
  std::unique_ptr<AttendExchange> removed = std::move(computing_.back());
  computing_.pop_back();
  return removed;
}

void CallSteps::Cancel() const {
  for (const auto& exchange : computing_) exchange->step()->cancelled = true;
}

void CallSteps::LogIfSlow(AttendExchange& exchange) const {
  if (!context_->slow_steps->IsSlow(exchange.times)) return;
  context_->slow_steps->Write(caller_.trace, exchange.request_id(), *exchange.step(), exchange.times);
}

}  // namespace santa
