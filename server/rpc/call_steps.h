// The steps of one call that are in flight: what every carrier of their messages has in common, be it gRPC's stream or
// shared memory.
#ifndef SANTA_SERVER_RPC_CALL_STEPS_H_
#define SANTA_SERVER_RPC_CALL_STEPS_H_

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/rpc/service_context.h"
#include "server/rpc/wire.h"

namespace santa {

// A step's way: TakeExchange and its Read by any thread; Submit; the `done` that it was given, on a thread of the
// engine's or in RunHere, in which come Complete and Remove. Submit, Remove, Cancel and size need the call's mutex; the
// others do not.
class CallSteps {
 public:
  CallSteps(ServiceContext* context, Caller caller, ExchangePool* exchanges)
      : context_(context), caller_(std::move(caller)), exchanges_(exchanges) {}

  const Caller& caller() const { return caller_; }
  size_t size() const { return computing_.size(); }

  std::unique_ptr<AttendExchange> TakeExchange() { return exchanges_->Take(); }
  void Return(std::unique_ptr<AttendExchange> exchange) { exchanges_->Return(std::move(exchange)); }

  // The message that came at `read`, as AttendExchange takes it. An error ends the call.
  template <typename Bytes>
  absl::Status Read(const Bytes& bytes, absl::Time read, AttendExchange* exchange) const {
    absl::Status status =
        exchange->Read(bytes, context_->layout, context_->limits.max_items_per_request, context_->metrics);
    exchange->times = {.read = read, .submitted = absl::Now(), .done = {}, .answered = {}};
    return status;
  }

  // Hands the step to the engine, which calls `done` once; what follows from `wake` does not, before the call's mutex
  // is free. Null; or the exchange, where it is to be answered at once: nothing in it was valid, or the engine took no
  // more.
  std::unique_ptr<AttendExchange> Submit(std::unique_ptr<AttendExchange> exchange, Engine::Wake wake,
                                         std::function<void()> done);

  // Counts it, and logs it where it was slow. `answer` makes the answer.
  template <typename Answer>
  void Complete(AttendExchange* exchange, const Answer& answer) const {
    exchange->times.done = absl::Now();
    context_->metrics->RecordStep(*exchange->step());
    answer();
    exchange->times.answered = absl::Now();
    LogIfSlow(*exchange);
  }

  std::unique_ptr<AttendExchange> Remove(AttendExchange* exchange);

  // What is still queued fails.
  void Cancel() const;

 private:
  void LogIfSlow(AttendExchange& exchange) const;

  ServiceContext* const context_;
  const Caller caller_;
  ExchangePool* const exchanges_;
  std::vector<std::unique_ptr<AttendExchange>> computing_;
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_CALL_STEPS_H_
