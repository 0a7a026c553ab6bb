#include "server/engine/step.h"

#include <algorithm>

namespace santa {

int64_t Weight(const Step& step) { return std::max<int64_t>(static_cast<int64_t>(step.items.size()), 1); }

void FailStep(const absl::Status& status, Step* step) {
  for (StepItem& item : step->items) item.status = status;
}

}  // namespace santa
