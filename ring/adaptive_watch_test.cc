#include "ring/adaptive_watch.h"

#include <gtest/gtest.h>

namespace santa {
namespace {

using std::chrono::microseconds;

TEST(AdaptiveWatchTest, SleepsAtFirstAndWatchesOnceGapsAreShort) {
  AdaptiveWatch watch;
  EXPECT_EQ(watch.limit(), AdaptiveWatch::Duration::zero());
  for (int i = 0; i < 20; ++i) watch.Learn(microseconds(50));
  EXPECT_GE(watch.limit(), microseconds(99));
  EXPECT_LE(watch.limit(), microseconds(110));
}

TEST(AdaptiveWatchTest, StopsWatchingAfterAFewLongGaps) {
  AdaptiveWatch watch;
  for (int i = 0; i < 20; ++i) watch.Learn(microseconds(50));
  for (int i = 0; i < 3; ++i) watch.Learn(std::chrono::hours(1));
  EXPECT_EQ(watch.limit(), AdaptiveWatch::Duration::zero());
  for (int i = 0; i < 20; ++i) watch.Learn(microseconds(50));  // however long they were
  EXPECT_GT(watch.limit(), microseconds(99));
}

TEST(AdaptiveWatchTest, TellsWhetherItCame) {
  AdaptiveWatch watch;
  const auto idle = [] { return false; };
  EXPECT_TRUE(watch.For([] { return true; }, idle));  // what is there already it sees without watching
  EXPECT_FALSE(watch.For([] { return false; }, idle));
  int looks = 0;
  EXPECT_TRUE(watch.For([&looks] { return ++looks == 1000; }, [] { return true; }));  // busy: however long it takes
}

TEST(AdaptiveWaitTest, SleepsUntilWorkComesSoonThenWatches) {
  AdaptiveWait wait;
  const auto idle = [] { return false; };
  int sleeps = 0;
  const auto sleep = [&sleeps] { ++sleeps; };
  wait.Until(idle, idle, sleep);  // at first nothing is known
  EXPECT_EQ(sleeps, 1);
  for (int i = 0; i < 20; ++i) wait.Until([] { return true; }, idle, sleep);
  EXPECT_EQ(sleeps, 1);
  int looks = 0;
  wait.Until([&looks] { return ++looks == 1000; }, [] { return true; }, sleep);  // busy all the time
  EXPECT_EQ(sleeps, 1);
}

}  // namespace
}  // namespace santa
