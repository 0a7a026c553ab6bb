#include "server/engine/step.h"

namespace santa {

void FailStep(const absl::Status& status, Step* step) {
  for (StepItem& item : step->items) item.status = status;
}

}  // namespace santa
