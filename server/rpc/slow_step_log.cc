#include "server/rpc/slow_step_log.h"

#include <algorithm>
#include <utility>

#include "server/logging/log.h"

namespace santa {

void SlowStepLog::Write(const TraceContext& trace, uint64_t request_id, const Step& step, const StepTimes& times) {
  int64_t left_out = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (times.answered - last_ < absl::Seconds(1)) {
      ++left_out_;
      return;
    }
    last_ = times.answered;
    left_out = std::exchange(left_out_, 0);
  }
  int64_t tokens = 0;
  for (const StepItem& item : step.items) tokens = std::max(tokens, item.statistics.visible_tokens);
  const StepItem& first = step.items.front();
  const auto seconds = [](absl::Duration duration) { return absl::ToDoubleSeconds(duration); };
  Log(LogLevel::kWarning, "slow step",
      {{"trace_id", trace.trace_id},
       {"parent_id", trace.parent_id},
       {"tenant", step.tenant},
       {"request_id", static_cast<int64_t>(request_id)},
       {"layer", step.layer},
       {"method", Name(first.options.method)},
       {"items", static_cast<int64_t>(step.items.size())},
       {"longest_item_tokens", tokens},
       {"first_item_code", static_cast<int64_t>(first.status.code())},
       {"seconds", seconds(times.answered - times.read)},
       {"parse_seconds", seconds(times.submitted - times.read)},
       {"queue_seconds", seconds(step.queue_time)},
       {"device_seconds", seconds(step.device_time)},
       // What is neither: other steps of the device, the way between threads.
       {"wait_seconds", std::max(0.0, seconds(times.done - times.submitted - step.queue_time - step.device_time))},
       {"answer_seconds", seconds(times.answered - times.done)},
       {"batch_items", step.batch_items},
       {"left_out", left_out}});
}

}  // namespace santa
