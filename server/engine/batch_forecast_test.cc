#include "server/engine/batch_forecast.h"

#include <gtest/gtest.h>

#include <vector>

namespace santa {
namespace {

using std::chrono::microseconds;
using std::chrono::seconds;

TEST(BatchForecastTest, KnowsNothingAtFirst) {
  EXPECT_EQ(BatchForecast().Patience(1 << 20), BatchForecast::Duration::zero());
}

TEST(BatchForecastTest, WaitsForAShareOfALongBatchAndNotForAShortOne) {
  BatchForecast forecast;
  forecast.Learn(100'000, microseconds(200));
  EXPECT_NEAR(std::chrono::duration<double>(forecast.Patience(500'000)).count(), 0.6 * 1000e-6, 1e-9);
  EXPECT_NEAR(std::chrono::duration<double>(forecast.Patience(100'000)).count(), 50e-6, 1e-9);
  EXPECT_EQ(forecast.Patience(70'000), BatchForecast::Duration::zero());  // 140 us
}

TEST(BatchForecastTest, LeavesTimeToFormTheBatch) {
  BatchForecast forecast;
  forecast.Learn(1000, microseconds(300));
  const auto patience = [&] { return std::chrono::duration<double>(forecast.Patience(1000)).count(); };
  for (int i = 0; i < 100; ++i) forecast.LearnForming(microseconds(20));
  EXPECT_NEAR(patience(), 180e-6, 1e-8);  // by the share
  for (int i = 0; i < 100; ++i) forecast.LearnForming(microseconds(100));
  EXPECT_NEAR(patience(), 70e-6, 1e-8);
  for (int i = 0; i < 100; ++i) forecast.LearnForming(microseconds(1000));
  EXPECT_EQ(patience(), 0);
}

TEST(BatchForecastTest, FollowsWhatBatchesTakeOfLate) {
  BatchForecast forecast;
  forecast.Learn(1000, seconds(1));
  for (int i = 0; i < 100; ++i) forecast.Learn(1000, seconds(2));
  EXPECT_NEAR(std::chrono::duration<double>(forecast.Patience(1000)).count(), 1.2, 1e-3);
  forecast.Learn(0, seconds(100));  // a batch that only appends tells nothing
  EXPECT_NEAR(std::chrono::duration<double>(forecast.Patience(1000)).count(), 1.2, 1e-3);
}

TEST(BatchForecastTest, CountsTheTokensThatQueriesSee) {
  Step step;
  step.items.resize(3);
  const float q = 0;
  step.items[0].q = step.items[1].q = &q;
  step.items[0].position = 99;
  step.items[1].position = 99;
  step.items[1].options.window = 10;
  step.items[2].position = 99;  // no query
  EXPECT_EQ(BatchForecast::TokensOf(std::vector<const Step*>{&step, &step}), 220);
}

}  // namespace
}  // namespace santa
