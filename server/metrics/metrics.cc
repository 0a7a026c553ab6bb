#include "server/metrics/metrics.h"

#include <array>
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

constexpr std::array kMethods = {Method::kExact,      Method::kSanta,       Method::kStratified,
                                 Method::kSystematic, Method::kS2antaFlash, Method::kS2antaProp};

Histogram::BucketBoundaries SecondsBuckets() {  // 10 us to 10 s
  return {1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10};
}

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
  Gauge& sequences = Register(BuildGauge(), "santa_sequences", "Sequences that the server holds.", registry).Add({});
  Counter& expired = Register(BuildCounter(), "santa_sequences_expired_total",
                              "Sequences released because their lease ran out.", registry)
                         .Add({});
  Family<Counter>& rpcs = Register(BuildCounter(), "santa_grpc_requests_total",
                                   "Calls of the gRPC API that ended, by method and status code.", registry);
  Family<Gauge>& build_info =
      Register(BuildGauge(), "santa_build_info", "1; the labels tell the version and the backend.", registry);

  std::array<MethodMetrics, kMethods.size()> methods;
};

Metrics::Metrics(const std::string& version, const std::string& backend) : state_(std::make_unique<State>()) {
  state_->build_info.Add({{"version", version}, {"backend", backend}}).Set(1);
  for (size_t i = 0; i < kMethods.size(); ++i) {
    const std::string method(Name(kMethods[i]));
    const prometheus::Labels labels = {{"method", method}};
    state_->methods[i] = {
        .seconds = &state_->attend_seconds.Add(labels, SecondsBuckets()),
        .kv_bytes_read = &state_->kv_bytes_read.Add(labels),
        .dense_kv_bytes = &state_->dense_kv_bytes.Add(labels),
        .value_rows_read = &state_->value_rows_read.Add(labels),
        .items_ok = &state_->attend_items.Add({{"method", method}, {"code", "OK"}}),
    };
  }
}

Metrics::~Metrics() = default;

void Metrics::RecordBatch(const BatchReport& report) {
  int64_t items = 0;
  for (const Step* step : report.steps) items += static_cast<int64_t>(step->items.size());
  state_->batch_items.Observe(static_cast<double>(items));
  state_->device_seconds.Increment(absl::ToDoubleSeconds(report.device_time));
}

void Metrics::RecordStep(const Step& step) {
  state_->queue_seconds.Observe(absl::ToDoubleSeconds(step.queue_time));
  const double seconds = absl::ToDoubleSeconds(step.queue_time + step.device_time);
  int64_t appended = 0;
  for (const StepItem& item : step.items) {
    appended += item.tokens_appended;
    if (item.q == nullptr) continue;
    if (!item.status.ok()) {
      RecordRefusedItem(Name(item.options.method), item.status.code());
      continue;
    }
    const MethodMetrics& metrics = state_->methods[static_cast<size_t>(item.options.method)];
    metrics.items_ok->Increment();
    metrics.seconds->Observe(seconds);
    metrics.kv_bytes_read->Increment(static_cast<double>(item.statistics.kv_bytes_read));
    metrics.dense_kv_bytes->Increment(static_cast<double>(item.statistics.dense_kv_bytes));
    metrics.value_rows_read->Increment(static_cast<double>(item.statistics.value_rows_read));
  }
  state_->tokens_appended.Increment(static_cast<double>(appended));
}

void Metrics::RecordRefusedItem(std::string_view method, absl::StatusCode code) {
  state_->attend_items.Add({{"method", std::string(method)}, {"code", CodeName(code)}}).Increment();
}

void Metrics::RecordRpc(std::string_view method, absl::StatusCode code) {
  state_->rpcs.Add({{"method", std::string(method)}, {"code", CodeName(code)}}).Increment();
}

void Metrics::RecordExpired(int64_t sequences) { state_->expired.Increment(static_cast<double>(sequences)); }

std::string Metrics::Render(const GaugeValues& gauges) {
  const int64_t used = gauges.total_pages - gauges.free_pages;
  state_->running.Set(static_cast<double>(gauges.running_items));
  state_->waiting.Set(static_cast<double>(gauges.waiting_items));
  state_->usage.Set(gauges.total_pages > 0 ? static_cast<double>(used) / static_cast<double>(gauges.total_pages) : 0);
  state_->pages_free.Set(static_cast<double>(gauges.free_pages));
  state_->pages_used.Set(static_cast<double>(used));
  state_->sequences.Set(static_cast<double>(gauges.sequences));
  return prometheus::TextSerializer().Serialize(state_->registry.Collect());
}

std::string CodeName(absl::StatusCode code) { return std::string(absl::StatusCodeToString(code)); }

}  // namespace santa
