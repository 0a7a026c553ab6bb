#include "server/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace santa {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsTest, AStepCountsOnceInEachFamily) {
  Metrics metrics("1.2.3", "cpu");
  const float q = 0;
  Step step;
  step.queue_time = absl::Milliseconds(1);
  step.device_time = absl::Milliseconds(2);
  step.items.resize(3);
  step.items[0].q = &q;
  step.items[0].options.method = Method::kS2antaFlash;
  step.items[0].tokens_appended = 1;
  step.items[0].statistics = {.visible_tokens = 10, .value_rows_read = 4, .kv_bytes_read = 300, .dense_kv_bytes = 500};
  std::vector<float> errors = {0.03F, 0.04F, 0.05F};  // root mean square 0.0408
  step.items[0].relative_standard_error = errors;
  step.items[1].q = &q;
  step.items[1].status = absl::NotFoundError("gone");
  step.items[2].tokens_appended = 5;  // an upload: no attend item
  metrics.RecordStep(step);
  const Step* const steps[] = {&step};
  metrics.RecordBatch({.device_time = absl::Seconds(2), .steps = steps});
  metrics.RecordExpired(2);
  metrics.RecordRpc("Attend", absl::StatusCode::kUnavailable);

  const std::string text = metrics.Render({.running_items = 1,
                                           .waiting_items = 2,
                                           .total_pages = 8,
                                           .free_pages = 6,
                                           .kv_bytes = 4096,
                                           .sketch_bytes = 1024,
                                           .sequences = 3});
  for (const char* line : {
           "santa_build_info{backend=\"cpu\",version=\"1.2.3\"} 1",
           "santa_requests_running 1",
           "santa_requests_waiting 2",
           "santa_request_queue_seconds_count 1",
           "santa_attend_seconds_count{method=\"S2ANTA_FLASH\"} 1",
           "santa_attend_seconds_bucket{method=\"S2ANTA_FLASH\",le=\"0.002\"} 0",
           "santa_attend_seconds_bucket{method=\"S2ANTA_FLASH\",le=\"0.005\"} 1",
           "santa_device_seconds_total 2",
           "santa_kv_bytes_read_total{method=\"S2ANTA_FLASH\"} 300",
           "santa_dense_kv_bytes_total{method=\"S2ANTA_FLASH\"} 500",
           "santa_value_rows_read_total{method=\"S2ANTA_FLASH\"} 4",
           "santa_attend_items_total{code=\"OK\",method=\"S2ANTA_FLASH\"} 1",
           "santa_attend_items_total{code=\"NOT_FOUND\",method=\"EXACT\"} 1",
           "santa_relative_standard_error_bucket{method=\"S2ANTA_FLASH\",le=\"0.03\"} 0",
           "santa_relative_standard_error_bucket{method=\"S2ANTA_FLASH\",le=\"0.05\"} 1",
           "santa_kv_memory_bytes{part=\"pages\"} 4096",
           "santa_kv_memory_bytes{part=\"sketches\"} 1024",
           "santa_tokens_appended_total 6",
           "santa_kv_cache_usage_ratio 0.25",
           "santa_kv_pages{state=\"free\"} 6",
           "santa_kv_pages{state=\"used\"} 2",
           "santa_sequences 3",
           "santa_sequences_expired_total 2",
           "santa_grpc_requests_total{code=\"UNAVAILABLE\",method=\"Attend\"} 1",
           "santa_batch_items_sum 3",
       }) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
}

TEST(MetricsTest, AnAuditCountsForItsMethod) {
  Metrics metrics("1.2.3", "cpu");
  metrics.RecordBatch({.background = true, .device_time = absl::Seconds(9), .steps = {}});
  metrics.RecordAudit({.method = Method::kS2antaProp,
                       .layer = 3,
                       .exact_time = absl::Milliseconds(30),
                       .sampled_time = absl::Milliseconds(20),
                       .relative_errors = {0.015, 0.04},
                       .predictions = {{.seen = 0.0016, .predicted = 0.0001}},
                       .changed_answers = 1});
  metrics.RecordAuditTime(absl::Milliseconds(50));
  metrics.RecordAuditSkip(AuditSkip::kTruncated);
  metrics.RecordFallback({.method = Method::kSanta, .layer = 1, .relative_error = 0.5});
  metrics.RecordFallbackItem(Method::kSanta);
  const std::string text = metrics.Render(
      {.serving = true, .fallback_layers = [](Method method) { return int64_t{method == Method::kSanta ? 2 : 0}; }});
  for (const char* line : {
           "santa_serving 1",
           "santa_device_seconds_total 0",
           "santa_audit_speedup_ratio_bucket{method=\"S2ANTA_PROP\",le=\"1.25\"} 0",
           "santa_audit_speedup_ratio_bucket{method=\"S2ANTA_PROP\",le=\"1.5\"} 1",
           "santa_audit_relative_error_bucket{method=\"S2ANTA_PROP\",le=\"0.02\"} 1",
           "santa_audit_relative_error_count{method=\"S2ANTA_PROP\"} 2",
           "santa_audit_relative_error_count{method=\"SANTA\"} 0",
           "santa_audit_error_over_predicted_ratio_bucket{method=\"S2ANTA_PROP\",le=\"3\"} 0",
           "santa_audit_error_over_predicted_ratio_bucket{method=\"S2ANTA_PROP\",le=\"5\"} 1",
           "santa_audit_squared_error_total{kind=\"seen\",method=\"S2ANTA_PROP\"} 0.0016",
           "santa_audit_squared_error_total{kind=\"predicted\",method=\"S2ANTA_PROP\"} 0.0001",
           "santa_audit_seconds_total{method=\"S2ANTA_PROP\",run=\"exact\"} 0.03",
           "santa_audit_seconds_total{method=\"S2ANTA_PROP\",run=\"sampled\"} 0.02",
           "santa_audit_device_seconds_total 0.05",
           "santa_audit_skipped_total{reason=\"truncated\"} 1",
           "santa_audit_skipped_total{reason=\"gone\"} 0",
           "santa_audit_changed_answers_total{method=\"S2ANTA_PROP\"} 1",
           "santa_audit_fallback_layers{method=\"SANTA\"} 2",
           "santa_audit_fallbacks_total{method=\"SANTA\"} 1",
           "santa_audit_fallback_items_total{method=\"SANTA\"} 1",
       }) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
  EXPECT_THAT(text, Not(HasSubstr("santa_audit_speedup_ratio_count{method=\"EXACT\"}")));
}

}  // namespace
}  // namespace santa
