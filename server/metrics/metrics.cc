#include "server/metrics/metrics.h"

#include <array>
#include <cmath>
#include <mutex>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace santa {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;

Histogram::BucketBoundaries SecondsBuckets() {  // 10 us to 10 s
  return {1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10};
}

// Around 1, where nothing is gained; steps of at most a quarter up to 4.
Histogram::BucketBoundaries SpeedupBuckets() {
  return {0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 16};
}

Histogram::BucketBoundaries ErrorBuckets() {
  return {1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1};
}

Histogram::BucketBoundaries PredictionBuckets() { return {0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10}; }

Histogram::BucketBoundaries ItemBuckets() { return {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}; }

template <typename Builder>
auto& Register(Builder builder, const char* name, const char* help, prometheus::Registry& registry) {
  return builder.Name(name).Help(help).Register(registry);
}

// The metrics of one attention method, looked up once.
struct MethodMetrics {
  Histogram* seconds = nullptr;
  Counter* kv_bytes_read = nullptr;
  Counter* dense_kv_bytes = nullptr;
  Counter* value_rows_read = nullptr;
  Counter* items_ok = nullptr;
  Histogram* relative_standard_error = nullptr;  // null for EXACT
};

// Of one sampled method.
struct AuditMetrics {
  Histogram* speedup = nullptr;
  Histogram* relative_error = nullptr;
  Histogram* error_over_predicted = nullptr;
  Counter* squared_error_seen = nullptr;
  Counter* squared_error_predicted = nullptr;
  Counter* exact_seconds = nullptr;
  Counter* sampled_seconds = nullptr;
  Counter* changed_answers = nullptr;
  Gauge* fallback_layers = nullptr;
  Counter* fallbacks = nullptr;
  Counter* fallback_items = nullptr;
};

}  // namespace

struct Metrics::State {
  prometheus::Registry registry;

  Gauge& running =
      Register(BuildGauge(), "santa_requests_running", "Items of steps that the device is computing.", registry)
          .Add({});
  Gauge& waiting =
      Register(BuildGauge(), "santa_requests_waiting", "Items of steps that wait for the device.", registry).Add({});
  Histogram& queue_seconds = Register(BuildHistogram(), "santa_request_queue_seconds",
                                      "Seconds from a step's arrival to the start of its batch.", registry)
                                 .Add({}, SecondsBuckets());
  Family<Histogram>& attend_seconds =
      Register(BuildHistogram(), "santa_attend_seconds",
               "Seconds from an attend item's arrival to its answer: its time in the queue and its batch's on the "
               "device.",
               registry);
  Histogram& batch_items =
      Register(BuildHistogram(), "santa_batch_items", "Items that the device ran together.", registry)
          .Add({}, ItemBuckets());
  Counter& device_seconds =
      Register(BuildCounter(), "santa_device_seconds_total", "Seconds that the device computed.", registry).Add({});
  Family<Counter>& kv_bytes_read = Register(BuildCounter(), "santa_kv_bytes_read_total",
                                            "Bytes of K and V that answers needed, by method.", registry);
  Family<Counter>& dense_kv_bytes =
      Register(BuildCounter(), "santa_dense_kv_bytes_total",
               "Bytes of K and V that exact attention would have read for the same answers, by method.", registry);
  Family<Counter>& value_rows_read =
      Register(BuildCounter(), "santa_value_rows_read_total",
               "Distinct rows of V that contributed to answers, summed over key/value heads, by method.", registry);
  Family<Histogram>& relative_standard_error =
      Register(BuildHistogram(), "santa_relative_standard_error",
               "Standard error of an answer over its norm, as the rows that it read tell it: root mean square over the "
               "query heads, by method. Answers that say nothing of their error are left out.",
               registry);
  Family<Counter>& attend_items = Register(BuildCounter(), "santa_attend_items_total",
                                           "Attend items answered, by method and status code.", registry);
  Counter& tokens_appended = Register(BuildCounter(), "santa_tokens_appended_total",
                                      "Tokens stored in the KV cache, counted once for each layer.", registry)
                                 .Add({});
  Gauge& usage =
      Register(BuildGauge(), "santa_kv_cache_usage_ratio", "Share of the KV cache's pages in use, 0 to 1.", registry)
          .Add({});
  Family<Gauge>& pages =
      Register(BuildGauge(), "santa_kv_pages", "Pages of the KV cache, by state (free, used).", registry);
  Gauge& pages_free = pages.Add({{"state", "free"}});
  Gauge& pages_used = pages.Add({{"state", "used"}});
  Family<Gauge>& memory =
      Register(BuildGauge(), "santa_kv_memory_bytes", "Memory of the KV cache, by part (pages, sketches).", registry);
  Gauge& memory_pages = memory.Add({{"part", "pages"}});
  Gauge& memory_sketches = memory.Add({{"part", "sketches"}});
  Gauge& sequences = Register(BuildGauge(), "santa_sequences", "Sequences that the server holds.", registry).Add({});
  Counter& expired = Register(BuildCounter(), "santa_sequences_expired_total",
                              "Sequences released because their lease ran out.", registry)
                         .Add({});
  Family<Counter>& rpcs = Register(BuildCounter(), "santa_grpc_requests_total",
                                   "Calls of the gRPC API that ended, by method and status code.", registry);
  Family<Gauge>& build_info =
      Register(BuildGauge(), "santa_build_info", "1; the labels tell the version and the backend.", registry);

  Gauge& serving =
      Register(BuildGauge(), "santa_serving",
               "1 while the server takes calls; 0 while it starts or drains, or its device has failed.", registry)
          .Add({});

  Family<Histogram>& audit_speedup =
      Register(BuildHistogram(), "santa_audit_speedup_ratio",
               "Device seconds of a step's items with EXACT over those with their method, of audited steps.", registry);
  Family<Histogram>& audit_relative_error =
      Register(BuildHistogram(), "santa_audit_relative_error",
               "Distance of an answer from the exact one over the exact one's norm, of audited items.", registry);
  Family<Histogram>& audit_error_over_predicted =
      Register(BuildHistogram(), "santa_audit_error_over_predicted_ratio",
               "Error of an answer over the one that its standard errors predict, of audited items whose method has "
               "them: 1 on average, in squares, where predictions are right.",
               registry);
  Family<Counter>& audit_squared_error =
      Register(BuildCounter(), "santa_audit_squared_error_total",
               "Squares of the relative errors of the same items, as they were and as predicted, by kind.", registry);
  Family<Counter>& audit_seconds =
      Register(BuildCounter(), "santa_audit_seconds_total",
               "Device seconds of audited steps, by method and run (exact, sampled).", registry);
  Counter& audit_device_seconds =
      Register(BuildCounter(), "santa_audit_device_seconds_total",
               "Seconds that the device spent on audits, those that were given up among them.", registry)
          .Add({});
  Family<Counter>& audit_skipped =
      Register(BuildCounter(), "santa_audit_skipped_total",
               "Steps that were picked for an audit and did not get one, by reason.", registry);
  Family<Counter>& audit_changed_answers =
      Register(BuildCounter(), "santa_audit_changed_answers_total",
               "Audited items whose repeat was not, bit for bit, the answer that the caller got.", registry);
  Family<Gauge>& fallback_layers =
      Register(BuildGauge(), "santa_audit_fallback_layers",
               "Layers in which a method is answered with EXACT because its audited error passed the bound.", registry);
  Family<Counter>& fallbacks = Register(BuildCounter(), "santa_audit_fallbacks_total",
                                        "Times that a method fell back to EXACT in a layer.", registry);
  Family<Counter>& fallback_items =
      Register(BuildCounter(), "santa_audit_fallback_items_total",
               "Attend items that were answered with EXACT in place of the method that they asked for.", registry);

  std::array<MethodMetrics, kAllMethods.size()> methods;
  std::array<AuditMetrics, kAllMethods.size()> audits;  // but for EXACT
};

Metrics::Metrics(const std::string& version, const std::string& backend) : state_(std::make_unique<State>()) {
  state_->build_info.Add({{"version", version}, {"backend", backend}}).Set(1);
  for (size_t i = 0; i < kAllMethods.size(); ++i) {
    const std::string method(Name(kAllMethods[i]));
    const prometheus::Labels labels = {{"method", method}};
    state_->methods[i] = {
        .seconds = &state_->attend_seconds.Add(labels, SecondsBuckets()),
        .kv_bytes_read = &state_->kv_bytes_read.Add(labels),
        .dense_kv_bytes = &state_->dense_kv_bytes.Add(labels),
        .value_rows_read = &state_->value_rows_read.Add(labels),
        .items_ok = &state_->attend_items.Add({{"method", method}, {"code", "OK"}}),
    };
    if (kAllMethods[i] == Method::kExact) continue;
    state_->methods[i].relative_standard_error = &state_->relative_standard_error.Add(labels, ErrorBuckets());
    state_->audits[i] = {
        .speedup = &state_->audit_speedup.Add(labels, SpeedupBuckets()),
        .relative_error = &state_->audit_relative_error.Add(labels, ErrorBuckets()),
        .error_over_predicted = &state_->audit_error_over_predicted.Add(labels, PredictionBuckets()),
        .squared_error_seen = &state_->audit_squared_error.Add({{"method", method}, {"kind", "seen"}}),
        .squared_error_predicted = &state_->audit_squared_error.Add({{"method", method}, {"kind", "predicted"}}),
        .exact_seconds = &state_->audit_seconds.Add({{"method", method}, {"run", "exact"}}),
        .sampled_seconds = &state_->audit_seconds.Add({{"method", method}, {"run", "sampled"}}),
        .changed_answers = &state_->audit_changed_answers.Add(labels),
        .fallback_layers = &state_->fallback_layers.Add(labels),
        .fallbacks = &state_->fallbacks.Add(labels),
        .fallback_items = &state_->fallback_items.Add(labels),
    };
  }
  for (const AuditSkip reason : kAuditSkips) state_->audit_skipped.Add({{"reason", std::string(Name(reason))}});
}

Metrics::~Metrics() = default;

void Metrics::RecordBatch(const BatchReport& report) {
  if (report.background) return;
  int64_t items = 0;
  for (const Step* step : report.steps) items += static_cast<int64_t>(step->items.size());
  state_->batch_items.Observe(static_cast<double>(items));
  state_->device_seconds.Increment(absl::ToDoubleSeconds(report.device_time));
}

void Metrics::RecordStep(const Step& step) {
  state_->queue_seconds.Observe(absl::ToDoubleSeconds(step.queue_time));
  const double seconds = absl::ToDoubleSeconds(step.queue_time + step.device_time);
  int64_t appended = 0;
  // Of answered items of one method, as those of a step usually are: what is counted goes into the counters at once.
  Method method = Method::kExact;
  DecodeStatistics sums;
  int items = 0;
  const auto count = [&] {
    if (items == 0) return;
    const MethodMetrics& metrics = state_->methods[static_cast<size_t>(method)];
    metrics.items_ok->Increment(items);
    metrics.kv_bytes_read->Increment(static_cast<double>(sums.kv_bytes_read));
    metrics.dense_kv_bytes->Increment(static_cast<double>(sums.dense_kv_bytes));
    metrics.value_rows_read->Increment(static_cast<double>(sums.value_rows_read));
    sums = {};
    items = 0;
  };
  for (const StepItem& item : step.items) {
    appended += item.tokens_appended;
    if (item.q == nullptr) continue;
    if (!item.status.ok()) {
      RecordRefusedItem(Name(item.options.method), item.status.code());
      continue;
    }
    if (item.options.method != method) count();
    method = item.options.method;
    ++items;
    sums.kv_bytes_read += item.statistics.kv_bytes_read;
    sums.dense_kv_bytes += item.statistics.dense_kv_bytes;
    sums.value_rows_read += item.statistics.value_rows_read;
    const MethodMetrics& metrics = state_->methods[static_cast<size_t>(method)];
    metrics.seconds->Observe(seconds);
    if (metrics.relative_standard_error == nullptr || item.relative_standard_error.empty()) continue;
    double squares = 0;
    for (const float error : item.relative_standard_error) squares += double{error} * error;
    if (std::isnan(squares)) continue;
    const auto heads = static_cast<double>(item.relative_standard_error.size());
    metrics.relative_standard_error->Observe(std::sqrt(squares / heads));
  }
  count();
  state_->tokens_appended.Increment(static_cast<double>(appended));
}

void Metrics::RecordRefusedItem(std::string_view method, absl::StatusCode code) {
  state_->attend_items.Add({{"method", std::string(method)}, {"code", CodeName(code)}}).Increment();
}

void Metrics::RecordRpc(std::string_view method, absl::StatusCode code) {
  state_->rpcs.Add({{"method", std::string(method)}, {"code", CodeName(code)}}).Increment();
}

void Metrics::RecordExpired(int64_t sequences) { state_->expired.Increment(static_cast<double>(sequences)); }

void Metrics::RecordAudit(const AuditReport& report) {
  const AuditMetrics& metrics = state_->audits[static_cast<size_t>(report.method)];
  const double exact = absl::ToDoubleSeconds(report.exact_time);
  const double sampled = absl::ToDoubleSeconds(report.sampled_time);
  if (sampled > 0) metrics.speedup->Observe(exact / sampled);
  metrics.exact_seconds->Increment(exact);
  metrics.sampled_seconds->Increment(sampled);
  for (const double error : report.relative_errors) metrics.relative_error->Observe(error);
  for (const ErrorPrediction& prediction : report.predictions) {
    metrics.error_over_predicted->Observe(std::sqrt(prediction.seen / prediction.predicted));
    metrics.squared_error_seen->Increment(prediction.seen);
    metrics.squared_error_predicted->Increment(prediction.predicted);
  }
  metrics.changed_answers->Increment(static_cast<double>(report.changed_answers));
}

void Metrics::RecordAuditSkip(AuditSkip reason) {
  state_->audit_skipped.Add({{"reason", std::string(Name(reason))}}).Increment();
}

void Metrics::RecordAuditTime(absl::Duration device_time) {
  state_->audit_device_seconds.Increment(absl::ToDoubleSeconds(device_time));
}

void Metrics::RecordFallback(const Fallback& fallback) {
  state_->audits[static_cast<size_t>(fallback.method)].fallbacks->Increment();
}

void Metrics::RecordFallbackItem(Method method) {
  state_->audits[static_cast<size_t>(method)].fallback_items->Increment();
}

std::string Metrics::Render(const GaugeValues& gauges) {
  const int64_t used = gauges.total_pages - gauges.free_pages;
  state_->running.Set(static_cast<double>(gauges.running_items));
  state_->waiting.Set(static_cast<double>(gauges.waiting_items));
  state_->usage.Set(gauges.total_pages > 0 ? static_cast<double>(used) / static_cast<double>(gauges.total_pages) : 0);
  state_->pages_free.Set(static_cast<double>(gauges.free_pages));
  state_->pages_used.Set(static_cast<double>(used));
  state_->memory_pages.Set(static_cast<double>(gauges.kv_bytes));
  state_->memory_sketches.Set(static_cast<double>(gauges.sketch_bytes));
  state_->sequences.Set(static_cast<double>(gauges.sequences));
  state_->serving.Set(gauges.serving ? 1 : 0);
  for (size_t i = 0; i < kAllMethods.size(); ++i) {
    if (kAllMethods[i] == Method::kExact || !gauges.fallback_layers) continue;
    state_->audits[i].fallback_layers->Set(static_cast<double>(gauges.fallback_layers(kAllMethods[i])));
  }
  return prometheus::TextSerializer().Serialize(state_->registry.Collect());
}

std::string CodeName(absl::StatusCode code) { return std::string(absl::StatusCodeToString(code)); }

}  // namespace santa
