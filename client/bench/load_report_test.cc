#include "client/bench/load_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace santa::bench {
namespace {

// Two steps of 1 ms: 0.1 ms late, 0.2 in the queue, 0.4 on the device.
LoadResult Result() {
  LoadResult result;
  result.seconds = 2;
  result.counts.steps = 2;
  result.counts.items = 8;
  result.counts.latency.Record(500000);
  result.counts.latency.Record(1500000);
  result.counts.late_seconds = 2 * 0.1e-3;
  result.counts.queue_seconds = 2 * 0.2e-3;
  result.counts.device_seconds = 2 * 0.4e-3;
  result.counts.device_seconds_share = 0.5;
  result.counts.batch_items = 2 * 6;
  result.counts.failed_steps = 1;
  result.counts.failed_items[absl::StatusCode::kResourceExhausted] = 4;
  return result;
}

TEST(LoadReportTest, StagesSumToTheMeanLatency) {
  const Stages stages = MeanStages(Result().counts);
  EXPECT_NEAR(stages.late, 100, 1e-6);
  EXPECT_NEAR(stages.queue, 200, 1e-6);
  EXPECT_NEAR(stages.device, 400, 1e-6);
  EXPECT_NEAR(stages.transport_and_reply, 300, 1e-6);
}

TEST(LoadReportTest, BusyShareIsTheServersOwnWhereItIsKnown) {
  LoadResult result = Result();
  EXPECT_DOUBLE_EQ(DeviceBusyShare(result), 0.25);
  result.server_counters = ServerCounters{.device_seconds = 1.5};
  result.server_seconds = 3;
  EXPECT_DOUBLE_EQ(DeviceBusyShare(result), 0.5);
}

TEST(LoadReportTest, Json) {
  LoadResult result = Result();
  const auto json = nlohmann::json::parse(LoadJson({.method = v1::METHOD_SANTA}, result));
  EXPECT_EQ(json["load"]["method"], "SANTA");
  EXPECT_EQ(json["steps_per_second"], 1.0);
  EXPECT_EQ(json["items_per_second"], 4.0);
  EXPECT_EQ(json["latency_us"]["max"], 1500.0);
  EXPECT_EQ(json["latency_us"]["mean"], 1000.0);
  EXPECT_NEAR(json["latency_us"]["p50"].get<double>(), 500, 5);
  EXPECT_EQ(json["step_batch_items"], 6.0);
  EXPECT_EQ(json["device_busy_share_source"], "answers");
  EXPECT_EQ(json["errors"]["RESOURCE_EXHAUSTED"], 4);
  EXPECT_FALSE(json.contains("server_metrics"));
  result.server_counters = ServerCounters{.batches = 3};
  EXPECT_EQ(nlohmann::json::parse(LoadJson({}, result))["server_metrics"]["batches"], 3.0);
}

TEST(LoadReportTest, AnEchoStandsBesideTheSteps) {
  LoadResult result = Result();
  result.counts.without_device.Record(300000);
  result.echo.emplace().Record(200000);
  result.request_bytes = 12345;
  const LoadOptions options = {.echo = EchoKind::kRaw};
  EXPECT_NEAR(OverEcho(result), 1.5, 0.02);
  const auto json = nlohmann::json::parse(LoadJson(options, result));
  EXPECT_EQ(json["echo"]["kind"], "raw");
  EXPECT_EQ(json["echo"]["request_bytes"], 12345);
  EXPECT_EQ(json["echo"]["latency_us"]["max"], 200.0);
  EXPECT_EQ(json["without_device_us"]["max"], 300.0);
  EXPECT_NE(LoadTable(options, result).find("12345 bytes there"), std::string::npos);
  EXPECT_FALSE(nlohmann::json::parse(LoadJson({}, Result())).contains("echo"));
}

TEST(LoadReportTest, ClientsAreCompared) {
  LoadResult result = Result();
  result.client_p99 = {1000, 2000, 6000};
  const auto json = nlohmann::json::parse(LoadJson({}, result));
  EXPECT_EQ(json["client_p99_us"]["least"], 1.0);
  EXPECT_EQ(json["client_p99_us"]["median"], 2.0);
  EXPECT_EQ(json["client_p99_us"]["greatest"], 6.0);
  EXPECT_NE(LoadTable({}, result).find("of the worst 6.0 us: 3.00 times"), std::string::npos);
}

TEST(LoadReportTest, PromptsAreTold) {
  LoadResult result = Result();
  result.counts.prompt_tokens = 500;
  result.counts.prompts.Record(1000000);
  const LoadOptions options = {.clients = 2, .prefill_clients = 1};
  const auto json = nlohmann::json::parse(LoadJson(options, result));
  EXPECT_EQ(json["prefill"]["tokens_per_second"], 250.0);
  EXPECT_EQ(json["prefill"]["latency_us"]["max"], 1000.0);
  EXPECT_NE(LoadTable(options, result).find("1 clients upload prompts"), std::string::npos);
}

TEST(LoadReportTest, TheTableNamesWhatFailed) {
  const std::string table = LoadTable({.rate = 10}, Result());
  EXPECT_NE(table.find("RESOURCE_EXHAUSTED: 4 items"), std::string::npos) << table;
  EXPECT_NE(table.find("open loop, 10 steps/s"), std::string::npos) << table;
  EXPECT_NE(table.find("p99.9"), std::string::npos) << table;
}

TEST(LoadReportTest, AServerThatWentAwayIsNamed) {
  LoadResult result = Result();
  result.metrics_error = "http://host:1/metrics: Connection refused";
  EXPECT_EQ(nlohmann::json::parse(LoadJson({}, result))["metrics_error"], result.metrics_error);
  EXPECT_NE(LoadTable({}, result).find(result.metrics_error), std::string::npos);
}

TEST(LoadReportTest, NothingMeasuredIsNoDivisionByZero) {
  const auto json = nlohmann::json::parse(LoadJson({}, LoadResult()));
  EXPECT_EQ(json["steps_per_second"], 0.0);
  EXPECT_EQ(json["device_busy_share"], 0.0);
}

}  // namespace
}  // namespace santa::bench
