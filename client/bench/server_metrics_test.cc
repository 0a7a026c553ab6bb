#include "client/bench/server_metrics.h"

#include <gtest/gtest.h>

namespace santa::bench {
namespace {

constexpr char kText[] =
    "# HELP santa_device_seconds_total Seconds that the device computed.\n"
    "# TYPE santa_device_seconds_total counter\n"
    "santa_device_seconds_total 1.5\n"
    "santa_request_queue_seconds_count 7\n"
    "santa_request_queue_seconds_sum 0.25\n"
    "santa_request_queue_seconds_bucket{le=\"1e-05\"} 3\n"
    "santa_batch_items_count 4\n"
    "santa_batch_items_sum 12\n"
    "santa_kv_bytes_read_total{method=\"EXACT\"} 100\n"
    "santa_kv_bytes_read_total{method=\"SANTA {of all}\"} 1e3 1700000000\n"
    "santa_tokens_appended_total 9\n"
    "a line that is none\n"
    "\n";

TEST(ServerMetricsTest, SumsOverLabels) {
  const std::map<std::string, double> sums = SumByName(kText);
  EXPECT_EQ(sums.at("santa_kv_bytes_read_total"), 1100);
  EXPECT_EQ(sums.count("santa_request_queue_seconds_bucket"), 0);
  EXPECT_EQ(sums.size(), 7);
}

TEST(ServerMetricsTest, CountersAndTheirDifference) {
  const auto counters = ParseCounters(kText);
  ASSERT_TRUE(counters.ok()) << counters.status();
  ServerCounters later = *counters;
  later.device_seconds += 2;
  later.kv_bytes_read += 50;
  const ServerCounters difference = later - *counters;
  EXPECT_EQ(counters->device_seconds, 1.5);
  EXPECT_EQ(counters->steps, 7);
  EXPECT_EQ(counters->queue_seconds, 0.25);
  EXPECT_EQ(counters->batches, 4);
  EXPECT_EQ(counters->batch_items, 12);
  EXPECT_EQ(counters->tokens_appended, 9);
  EXPECT_EQ(difference.device_seconds, 2);
  EXPECT_EQ(difference.kv_bytes_read, 50);
  EXPECT_EQ(difference.steps, 0);
}

TEST(ServerMetricsTest, SaysWhatIsWrong) {
  EXPECT_EQ(ParseCounters("up 1\n").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ScrapeCounters("127.0.0.1").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ScrapeCounters("127.0.0.1:port").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ScrapeCounters("127.0.0.1:1").status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace santa::bench
