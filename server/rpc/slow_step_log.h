// A log line for every step that took longer than it should, with where its time went.
#ifndef SANTA_SERVER_RPC_SLOW_STEP_LOG_H_
#define SANTA_SERVER_RPC_SLOW_STEP_LOG_H_

#include <cstdint>
#include <mutex>
#include <string_view>

#include "absl/time/time.h"
#include "server/engine/step.h"
#include "server/rpc/trace_context.h"

namespace santa {

// A step of an Attend stream on its way, apart from what the step itself knows.
struct StepTimes {
  absl::Time read;       // its message had come
  absl::Time submitted;  // it had been parsed and checked
  absl::Time done;       // the engine handed it back
  absl::Time answered;   // the answer was made; sending it follows
};

// Thread safe.
class SlowStepLog {
 public:
  // Zero: logs nothing.
  explicit SlowStepLog(absl::Duration threshold) : threshold_(threshold) {}

  bool IsSlow(const StepTimes& times) const {
    return threshold_ > absl::ZeroDuration() && times.answered - times.read > threshold_;
  }

  // One line a second at most, which counts those left out: where every step is slow, the log shall not make it worse.
  void Write(const TraceContext& trace, uint64_t request_id, const Step& step, const StepTimes& times);

 private:
  const absl::Duration threshold_;
  std::mutex mutex_;
  absl::Time last_ = absl::InfinitePast();
  int64_t left_out_ = 0;
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_SLOW_STEP_LOG_H_
