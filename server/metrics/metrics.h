// Every metric of the server: names, help texts, labels and buckets in one place (metrics.cc).
//
// Counters and base units, rates are PromQL's business; labels have few values. santa_kv_bytes_read_total over
// santa_device_seconds_total is bandwidth; santa_kv_bytes_read_total over santa_dense_kv_bytes_total is the share of
// the cache that a method read.
#ifndef SANTA_SERVER_METRICS_METRICS_H_
#define SANTA_SERVER_METRICS_METRICS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/engine/audit.h"
#include "server/engine/engine.h"
#include "server/engine/step.h"

namespace santa {

// What is read off the server at the moment of a scrape.
struct GaugeValues {
  int64_t running_items = 0;
  int64_t waiting_items = 0;
  int64_t total_pages = 0;
  int64_t free_pages = 0;
  int64_t kv_bytes = 0;  // of all pages
  int64_t sketch_bytes = 0;
  int64_t sequences = 0;
  bool serving = false;
  std::function<int64_t(Method)> fallback_layers = {};  // empty: none
};

// Thread safe. Recording takes a short lock at most.
class Metrics {
 public:
  Metrics(const std::string& version, const std::string& backend);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // A batch that the device ran.
  void RecordBatch(const BatchReport& report);
  // A step whose items have their status, whether the device ran it or not.
  void RecordStep(const Step& step);
  // An attend item that was refused before it reached the engine. `method` as the API names it, without the prefix.
  void RecordRefusedItem(std::string_view method, absl::StatusCode code);
  // A call of the API that ended.
  void RecordRpc(std::string_view method, absl::StatusCode code);
  void RecordExpired(int64_t sequences);

  void RecordAudit(const AuditReport& report);
  void RecordAuditSkip(AuditSkip reason);
  void RecordAuditTime(absl::Duration device_time);
  void RecordFallback(const Fallback& fallback);
  void RecordFallbackItem(Method method);

  // Prometheus' text format, version 0.0.4.
  std::string Render(const GaugeValues& gauges);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// "OK", "INVALID_ARGUMENT", ...: the canonical name.
std::string CodeName(absl::StatusCode code);

}  // namespace santa

#endif  // SANTA_SERVER_METRICS_METRICS_H_
