// The audit: a small share of live steps run again, exactly and as they were, to learn what sampling gains and costs.
//
// A step is picked at random once it is answered. Its sampled items, with copies of their q and answers, then run twice
// more in the engine's background, alone on the device each time: once with EXACT and once as they were, which of the
// two first by turns. The quotient of the two times is the speedup; the answers' distance from the exact ones is the
// error.
//
// A third run, untimed, asks for the standard errors that a method can give with its answers, where the caller has not:
// the error predicted, to be held against the error seen.
//
// The cache may change meanwhile. A repeat reads the sequence as it then is, as a client's retry does: appending adds
// tokens that the query does not see, and forks and copies on write move tokens to other pages unchanged, so the same
// step it is. A sequence that was truncated since may hold other tokens at the same positions, and one that was
// released or expired holds none: then the audit is given up and counted. It holds no page and renews no lease, so that
// it never stands in the way of a live step.
//
// Where q and answer lie in memory that the caller can write, it may have done so since the device used them. It shows
// when the repeat answers otherwise; then nothing is learnt from it, so that no caller makes a method look bad to all.
#ifndef SANTA_SERVER_ENGINE_AUDIT_H_
#define SANTA_SERVER_ENGINE_AUDIT_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/engine/audit_budget.h"
#include "server/engine/engine.h"
#include "server/engine/fallback_table.h"
#include "server/engine/step.h"

namespace santa {

struct AuditOptions {
  double share = 0.001;            // of the steps that have a sampled item, in [0, 1]; 0: none
  double max_device_share = 0.01;  // of all time, device time that audits may take, in (0, 1]
  // A method whose audited relative error passes it in a layer is answered with EXACT there; 0: never. >= 0.
  double error_bound = 0;
  absl::Duration fallback_time = absl::Minutes(10);  // until the method is tried again, > 0
};

// OK, or INVALID_ARGUMENT naming the option (as the flags do), its value and the range.
absl::Status Validate(const AuditOptions& options);

// An item's relative error, squared: as it was, and as the answer's standard errors say that it is on average. Over the
// heads that say anything, and the exact answer's norm.
struct ErrorPrediction {
  double seen = 0;
  double predicted = 0;  // > 0
};

struct AuditReport {
  Method method = Method::kSanta;
  int32_t layer = 0;
  absl::Duration exact_time;                 // of the device, for the audited items alone
  absl::Duration sampled_time;               // likewise, with `method`
  std::vector<double> relative_errors;       // of each item: |o - exact| / |exact|, over all its heads
  std::vector<ErrorPrediction> predictions;  // of the items that have any
  int64_t changed_answers = 0;               // items whose repeat was not, bit for bit, what the caller got
};

// Why a step that was picked was not audited.
enum class AuditSkip : uint8_t {
  kBusy,       // another audit was under way
  kBudget,     // audits have had their share of the device's time
  kGone,       // a sequence was released or expired
  kTruncated,  // a sequence lost tokens
  kChanged,    // the caller has written into the memory that it shares
  kFailed,     // the server stopped, or the device failed
};
inline constexpr AuditSkip kAuditSkips[] = {AuditSkip::kBusy,      AuditSkip::kBudget,  AuditSkip::kGone,
                                            AuditSkip::kTruncated, AuditSkip::kChanged, AuditSkip::kFailed};
std::string_view Name(AuditSkip reason);  // "busy", ...

// A method that from now on is answered exactly in a layer.
struct Fallback {
  Method method = Method::kSanta;
  int32_t layer = 0;
  double relative_error = 0;  // root mean square of the audited ones
};

// Whom to tell. Called on the engine's threads, but for on_fallback_item: must not block. Any may be empty.
struct AuditEvents {
  std::function<void(const AuditReport&)> on_audit;
  std::function<void(AuditSkip)> on_skip;
  std::function<void(absl::Duration)> on_device_time;  // each time that an audit has used the device
  std::function<void(const Fallback&)> on_fallback;
  std::function<void(Method)> on_fallback_item;  // an item that is answered exactly instead; on the caller's thread
};

// Thread safe. Outlives the engine that its steps go to.
class Auditor {
 public:
  // `submit` is the engine's SubmitBackground. The options are valid.
  Auditor(const KvLayout& layout, const AuditOptions& options, std::function<absl::Status(Step*)> submit,
          AuditEvents events);
  ~Auditor();
  Auditor(const Auditor&) = delete;
  Auditor& operator=(const Auditor&) = delete;

  // Makes EXACT of every method of the step that has fallen back in its layer. Before the step is submitted.
  void ApplyFallbacks(Step* step);

  // Picks from a batch that was just answered: for the engine's on_batch.
  void Observe(const BatchReport& report);

  int64_t fallback_layers(Method method) const;

 private:
  struct Audit;
  enum class Turn : uint8_t { kExact, kSampled, kPredict };

  // All with mutex_ held.
  bool Pick();
  void Begin(const Step& live);
  void Submit(Audit* audit, Turn turn);
  void TurnDone(Audit* audit, Turn turn);
  void Report(const Audit& audit);
  void Skip(AuditSkip reason);

  const KvLayout layout_;
  const AuditOptions options_;
  const std::function<absl::Status(Step*)> submit_;
  const AuditEvents events_;
  FallbackTable fallbacks_;

  std::mutex mutex_;  // guards all below
  std::mt19937_64 random_;
  AuditBudget budget_;
  bool exact_first_ = false;
  std::array<bool, kAllMethods.size()> predicts_nothing_ = {};  // methods that were asked and said nothing
  std::unique_ptr<Audit> audit_;                                // under way
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_AUDIT_H_
