#include "server/engine/audit.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/element.h"

namespace santa {
namespace {

bool IsSampled(const StepItem& item) {
  return item.q != nullptr && item.status.ok() && item.options.method != Method::kExact;
}

void UseExact(AttentionOptions* options) {
  options->method = Method::kExact;
  options->sample_count = 0;
  options->target_relative_error = 0;
  options->score_draws = 0;
}

bool IsFinite(const std::vector<char>& numbers, DType dtype) {
  const auto count = static_cast<int64_t>(numbers.size() / SizeOf(dtype));
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(ElementAsFloat(numbers.data(), i, dtype))) return false;
  }
  return true;
}

// |o - exact| / |exact|; 0 where both are 0.
double RelativeError(const std::vector<char>& o, const std::vector<char>& exact, DType dtype) {
  double difference = 0;
  double norm = 0;
  const auto elements = static_cast<int64_t>(o.size() / SizeOf(dtype));
  for (int64_t i = 0; i < elements; ++i) {
    const double truth = ElementAsFloat(exact.data(), i, dtype);
    const double error = ElementAsFloat(o.data(), i, dtype) - truth;
    difference += error * error;
    norm += truth * truth;
  }
  if (difference == 0) return 0;
  return norm > 0 ? std::sqrt(difference / norm) : std::numeric_limits<double>::infinity();
}

// From the standard errors of the heads that have one. predicted is 0 where there is none.
ErrorPrediction Predict(const std::vector<char>& o, const std::vector<char>& exact, DType dtype,
                        const std::vector<float>& relative_standard_errors) {
  ErrorPrediction sums;
  double norm = 0;
  const auto heads = static_cast<int64_t>(relative_standard_errors.size());
  const auto head_dim = heads == 0 ? 0 : static_cast<int64_t>(o.size() / SizeOf(dtype)) / heads;
  for (int64_t h = 0; h < heads; ++h) {
    double head_difference = 0;
    double head_norm = 0;
    for (int64_t i = h * head_dim; i < (h + 1) * head_dim; ++i) {
      const double truth = ElementAsFloat(exact.data(), i, dtype);
      const double error = ElementAsFloat(o.data(), i, dtype) - truth;
      head_difference += error * error;
      head_norm += truth * truth;
    }
    norm += head_norm;
    const double predicted = relative_standard_errors[h];
    if (!std::isfinite(predicted)) continue;
    sums.seen += head_difference;
    sums.predicted += predicted * predicted * head_norm;
  }
  return norm > 0 ? ErrorPrediction{.seen = sums.seen / norm, .predicted = sums.predicted / norm} : ErrorPrediction();
}

}  // namespace

absl::Status Validate(const AuditOptions& options) {
  const auto bad = [](const char* name, double value, const char* allowed) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; allowed is ", allowed));
  };
  if (!(options.share >= 0 && options.share <= 1)) return bad("audit_share", options.share, "[0, 1]");
  if (!(options.max_device_share > 0 && options.max_device_share <= 1)) {
    return bad("audit_max_device_share", options.max_device_share, "(0, 1]");
  }
  if (!(options.error_bound >= 0)) return bad("audit_error_bound", options.error_bound, "0 (none) or more");
  if (options.fallback_time <= absl::ZeroDuration()) {
    return bad("audit_fallback_time", absl::ToDoubleSeconds(options.fallback_time), "more than 0 seconds");
  }
  return absl::OkStatus();
}

std::string_view Name(AuditSkip reason) {
  switch (reason) {
    case AuditSkip::kBusy:
      return "busy";
    case AuditSkip::kBudget:
      return "budget";
    case AuditSkip::kGone:
      return "gone";
    case AuditSkip::kTruncated:
      return "truncated";
    case AuditSkip::kChanged:
      return "changed";
    case AuditSkip::kFailed:
      break;
  }
  return "failed";
}

// A step's sampled items of one method, with all that they point to.
struct Auditor::Audit {
  // What one turn writes.
  struct Answer {
    std::vector<char> o;
    std::vector<float> lse;
  };
  struct Item {
    StepItem live;  // its pointers are not the audit's
    std::vector<char> q;
    std::vector<float> sink_logits;
    std::vector<float> relative_standard_errors;  // [H], what the caller or the third turn got
    Answer given, exact, sampled, predicting;

    bool repeats() const {
      const auto same = [](const auto& a, const auto& b) {
        return std::memcmp(a.data(), b.data(), a.size() * sizeof(a.front())) == 0;
      };
      return same(given.o, sampled.o) && same(given.lse, sampled.lse);
    }
  };
  std::string tenant;
  int32_t layer = 0;
  Method method = Method::kSanta;
  std::vector<Item> items;
  bool asked_for_errors = true;  // the caller, of every item
  Step turns[3];                 // by Turn
  int turns_done = 0;
};

Auditor::Auditor(const KvLayout& layout, const AuditOptions& options, std::function<absl::Status(Step*)> submit,
                 AuditEvents events)
    : layout_(layout),
      options_(options),
      submit_(std::move(submit)),
      events_(std::move(events)),
      fallbacks_(options.error_bound, options.fallback_time),
      random_(std::random_device()()),
      budget_(options.max_device_share, absl::Now()) {}

Auditor::~Auditor() = default;

void Auditor::ApplyFallbacks(Step* step) {
  for (StepItem& item : step->items) {
    if (item.q == nullptr || item.options.method == Method::kExact) continue;
    if (!fallbacks_.Contains(item.options.method, step->layer, absl::Now())) continue;
    if (events_.on_fallback_item) events_.on_fallback_item(item.options.method);
    UseExact(&item.options);
  }
}

int64_t Auditor::fallback_layers(Method method) const { return fallbacks_.CountLayers(method, absl::Now()); }

void Auditor::Observe(const BatchReport& report) {
  if (report.background || options_.share == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  for (const Step* step : report.steps) {
    if (!std::any_of(step->items.begin(), step->items.end(), IsSampled) || !Pick()) continue;
    if (audit_ != nullptr) {
      Skip(AuditSkip::kBusy);
    } else if (!budget_.Allows(absl::Now())) {
      Skip(AuditSkip::kBudget);
    } else {
      Begin(*step);
    }
  }
}

// At random: every n-th step would be of the same few layers each time.
bool Auditor::Pick() { return std::uniform_real_distribution<double>()(random_) < options_.share; }

void Auditor::Begin(const Step& live) {
  audit_ = std::make_unique<Audit>();
  audit_->tenant = live.tenant;
  audit_->layer = live.layer;
  audit_->method = std::find_if(live.items.begin(), live.items.end(), IsSampled)->options.method;
  const size_t elements = static_cast<size_t>(layout_.num_query_heads) * layout_.head_dim;
  for (const StepItem& item : live.items) {
    if (!IsSampled(item) || item.options.method != audit_->method) continue;
    Audit::Item& copy = audit_->items.emplace_back();
    copy.live = item;
    const size_t bytes = elements * SizeOf(item.io_dtype);
    const auto* q = static_cast<const char*>(item.q);
    const auto* o = static_cast<const char*>(item.o);
    copy.q.assign(q, q + bytes);
    if (item.shared_with_caller && !IsFinite(copy.q, item.io_dtype)) return Skip(AuditSkip::kChanged);
    copy.given.o.assign(o, o + bytes);
    copy.given.lse.assign(item.lse, item.lse + layout_.num_query_heads);
    if (item.relative_standard_error.empty()) audit_->asked_for_errors = false;
    copy.relative_standard_errors.assign(item.relative_standard_error.begin(), item.relative_standard_error.end());
    if (item.sink_logits != nullptr) {
      copy.sink_logits.assign(item.sink_logits, item.sink_logits + layout_.num_query_heads);
    }
  }
  exact_first_ = !exact_first_;  // what runs second finds more in the caches
  Submit(audit_.get(), exact_first_ ? Turn::kExact : Turn::kSampled);
}

void Auditor::Submit(Audit* audit, Turn turn) {
  Step* const step = &audit->turns[static_cast<int>(turn)];
  step->tenant = audit->tenant;
  step->layer = audit->layer;
  for (Audit::Item& item : audit->items) {
    Audit::Answer& answer = turn == Turn::kExact ? item.exact : turn == Turn::kSampled ? item.sampled : item.predicting;
    answer.o.resize(item.given.o.size());
    answer.lse.resize(item.given.lse.size());
    StepItem& repeat = step->items.emplace_back();
    repeat.sequence = item.live.sequence;
    repeat.position = item.live.position;
    repeat.options = item.live.options;
    if (turn == Turn::kExact) {
      UseExact(&repeat.options);
    } else if (turn == Turn::kPredict || audit->asked_for_errors) {
      item.relative_standard_errors.resize(answer.lse.size());
      repeat.relative_standard_error = item.relative_standard_errors;
    }
    repeat.sink_logits = item.sink_logits.empty() ? nullptr : item.sink_logits.data();
    repeat.io_dtype = item.live.io_dtype;
    repeat.q = item.q.data();
    repeat.o = answer.o.data();
    repeat.lse = answer.lse.data();
  }
  step->done = [this, audit, turn] {
    std::lock_guard<std::mutex> lock(mutex_);
    TurnDone(audit, turn);
  };
  if (!submit_(step).ok()) Skip(AuditSkip::kFailed);
}

void Auditor::TurnDone(Audit* audit, Turn turn) {
  const Step& step = audit->turns[static_cast<int>(turn)];
  budget_.Charge(step.device_time);
  if (events_.on_device_time) events_.on_device_time(step.device_time);
  for (size_t i = 0; i < step.items.size(); ++i) {
    const StepItem& repeat = step.items[i];
    const bool truncated = repeat.truncations != audit->items[i].live.truncations;
    switch (repeat.status.code()) {
      case absl::StatusCode::kOk:
        if (truncated) return Skip(AuditSkip::kTruncated);
        break;
      case absl::StatusCode::kOutOfRange:
        return Skip(AuditSkip::kTruncated);
      case absl::StatusCode::kNotFound:
        return Skip(AuditSkip::kGone);
      default:
        return Skip(AuditSkip::kFailed);
    }
  }
  const auto changed = [](const Audit::Item& item) { return item.live.shared_with_caller && !item.repeats(); };
  if (turn == Turn::kSampled && std::any_of(audit->items.begin(), audit->items.end(), changed)) {
    return Skip(AuditSkip::kChanged);
  }
  ++audit->turns_done;
  if (audit->turns_done == 1) return Submit(audit, turn == Turn::kExact ? Turn::kSampled : Turn::kExact);
  const bool can_predict = !predicts_nothing_[static_cast<size_t>(audit->method)];
  if (audit->turns_done == 2 && !audit->asked_for_errors && can_predict) return Submit(audit, Turn::kPredict);
  Report(*audit);
  audit_.reset();
}

void Auditor::Report(const Audit& audit) {
  AuditReport report = {.method = audit.method,
                        .layer = audit.layer,
                        .exact_time = audit.turns[static_cast<int>(Turn::kExact)].device_time,
                        .sampled_time = audit.turns[static_cast<int>(Turn::kSampled)].device_time,
                        .relative_errors = {},
                        .predictions = {}};
  bool says_nothing = audit.turns_done == 3;
  for (const Audit::Item& item : audit.items) {
    const ErrorPrediction prediction =
        Predict(item.given.o, item.exact.o, item.live.io_dtype, item.relative_standard_errors);
    if (prediction.predicted > 0) report.predictions.push_back(prediction);
    for (const float error : item.relative_standard_errors) says_nothing = says_nothing && std::isnan(error);
    report.relative_errors.push_back(RelativeError(item.given.o, item.exact.o, item.live.io_dtype));
    if (!item.repeats()) ++report.changed_answers;
  }
  if (says_nothing) predicts_nothing_[static_cast<size_t>(audit.method)] = true;
  if (events_.on_audit) events_.on_audit(report);
  for (const double error : report.relative_errors) {
    const std::optional<double> mean = fallbacks_.Add(audit.method, audit.layer, error, absl::Now());
    if (mean.has_value() && events_.on_fallback) {
      events_.on_fallback({.method = audit.method, .layer = audit.layer, .relative_error = *mean});
    }
  }
}

// Ends the audit under way, unless it is one that did not begin.
void Auditor::Skip(AuditSkip reason) {
  if (reason != AuditSkip::kBusy && reason != AuditSkip::kBudget) audit_.reset();
  if (events_.on_skip) events_.on_skip(reason);
}

}  // namespace santa
