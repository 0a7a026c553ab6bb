#include "client/bench/latency_histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace santa::bench {
namespace {

TEST(LatencyHistogramTest, EmptyIsZero) {
  const LatencyHistogram histogram;
  EXPECT_EQ(histogram.count(), 0);
  EXPECT_EQ(histogram.max(), 0);
  EXPECT_EQ(histogram.mean(), 0);
  EXPECT_EQ(histogram.Quantile(0.5), 0);
}

TEST(LatencyHistogramTest, SmallValuesAreExact) {
  LatencyHistogram histogram;
  for (int64_t i = 1; i <= 100; ++i) histogram.Record(i);
  EXPECT_EQ(histogram.Quantile(0.5), 50);
  EXPECT_EQ(histogram.Quantile(0.99), 99);
  EXPECT_EQ(histogram.Quantile(1), 100);
  EXPECT_EQ(histogram.Quantile(1e-9), 1);
  EXPECT_DOUBLE_EQ(histogram.mean(), 50.5);
}

TEST(LatencyHistogramTest, QuantilesAreWithinOnePercentOfTheSortedValues) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> latency(std::log(300e3), 2.0);  // 300 us, with tails of seconds
  LatencyHistogram whole;
  LatencyHistogram parts[3];
  std::vector<int64_t> values(30000);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<int64_t>(latency(random));
    whole.Record(values[i]);
    parts[i % 3].Record(values[i]);
  }
  std::sort(values.begin(), values.end());
  LatencyHistogram merged;
  for (const LatencyHistogram& part : parts) merged.Merge(part);
  for (const double fraction : {0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0}) {
    const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(values.size())));
    const int64_t truth = values[rank - 1];
    EXPECT_GE(whole.Quantile(fraction), truth) << fraction;
    EXPECT_LE(static_cast<double>(whole.Quantile(fraction)), 1.01 * static_cast<double>(truth)) << fraction;
    EXPECT_EQ(merged.Quantile(fraction), whole.Quantile(fraction)) << fraction;
  }
  EXPECT_EQ(merged.max(), values.back());
  EXPECT_EQ(merged.count(), 30000);
}

TEST(LatencyHistogramTest, TakesAnyValue) {
  LatencyHistogram histogram;
  histogram.Record(-5);
  histogram.Record(INT64_MAX / 2);
  EXPECT_EQ(histogram.Quantile(0.5), 0);
  EXPECT_EQ(histogram.Quantile(1), INT64_MAX / 2);
  EXPECT_EQ(histogram.max(), INT64_MAX / 2);
}

}  // namespace
}  // namespace santa::bench
