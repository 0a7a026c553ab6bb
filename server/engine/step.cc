#include "server/engine/step.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace santa {

int64_t Weight(const Step& step) { return std::max<int64_t>(static_cast<int64_t>(step.items.size()), 1); }

absl::Status QueryIsNotFinite(const QueryFault& fault) {
  return absl::InvalidArgumentError(
      absl::StrCat("q.data: element ", fault.element, " is ", fault.value, "; allowed is finite"));
}

void FailStep(const absl::Status& status, Step* step) {
  for (StepItem& item : step->items) item.status = status;
}

}  // namespace santa
