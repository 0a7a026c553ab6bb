#include "server/engine/batch_former.h"

#include "absl/status/status.h"

namespace santa {

void BatchFormer::Form(absl::Time now, std::vector<Step*>* queue, std::vector<Step*>* batch,
                       std::vector<Step*>* dropped) {
  busy_.clear();
  int64_t batch_items = 0;
  bool closed = false;
  size_t kept = 0;
  const bool alone = queue->size() == 1;  // it meets nobody; to look takes longer than all else here
  for (Step* step : *queue) {
    if (step->cancelled.load(std::memory_order_relaxed)) {
      FailStep(absl::CancelledError("the call was cancelled while the step was queued"), step);
      dropped->push_back(step);
      continue;
    }
    if (step->deadline <= now) {
      FailStep(absl::DeadlineExceededError("the deadline passed while the step was queued"), step);
      dropped->push_back(step);
      continue;
    }
    bool waits = closed;
    if (!closed && !alone) {
      for (const StepItem& item : step->items) waits |= busy_.contains({item.sequence, step->layer});
      // Whether it waits or runs, what comes later on the same layers of its sequences waits for it.
      for (const StepItem& item : step->items) busy_.insert({item.sequence, step->layer});
      if (!waits && batch_items > 0 && batch_items + Weight(*step) > max_batch_items_) waits = closed = true;
    }
    if (waits) {
      (*queue)[kept++] = step;
    } else {
      batch->push_back(step);
      batch_items += Weight(*step);
    }
  }
  queue->resize(kept);
}

}  // namespace santa
