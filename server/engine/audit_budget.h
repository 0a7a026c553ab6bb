// How much device time audits may take.
#ifndef SANTA_SERVER_ENGINE_AUDIT_BUDGET_H_
#define SANTA_SERVER_ENGINE_AUDIT_BUDGET_H_

#include <algorithm>

#include "absl/time/time.h"

namespace santa {

// A share of the time that passes, saved up for a minute at most: a burst of audits is paid from savings, and one that
// costs more than there is leaves a debt to wait for. Not thread safe.
class AuditBudget {
 public:
  // share in (0, 1]. Begins with a full minute's savings.
  AuditBudget(double share, absl::Time now) : share_(share), saved_(share * kSavings), at_(now) {}

  bool Allows(absl::Time now) {
    saved_ = std::min(saved_ + share_ * (now - at_), share_ * kSavings);
    at_ = now;
    return saved_ > absl::ZeroDuration();
  }

  void Charge(absl::Duration device_time) { saved_ -= device_time; }

 private:
  static constexpr absl::Duration kSavings = absl::Minutes(1);

  const double share_;
  absl::Duration saved_;
  absl::Time at_;
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_AUDIT_BUDGET_H_
