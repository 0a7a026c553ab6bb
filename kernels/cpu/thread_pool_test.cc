#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace santa::cpu {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, CallsEveryIndexOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
  for (int64_t count : {0, 1, 2, 3, 17, 1000}) {
    std::vector<std::atomic<int>> calls(count);
    pool.ParallelFor(count, [&](int64_t index, int worker) {
      EXPECT_GE(worker, 0);
      EXPECT_LT(worker, GetParam());
      calls[index].fetch_add(1);
    });
    for (int64_t index = 0; index < count; ++index) EXPECT_EQ(calls[index].load(), 1) << "index " << index;
  }
}

// Plain writes: ThreadSanitizer sees it if a loop returns before its last call, or a late thread joins the next one.
TEST_P(ThreadPoolTest, LoopsFollowEachOtherInOrder) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> values(37, 0);
  for (int loop = 0; loop < 2000; ++loop) {
    pool.ParallelFor(values.size(), [&](int64_t index, int) { values[index] += index; });
  }
  for (int64_t index = 0; index < static_cast<int64_t>(values.size()); ++index) {
    EXPECT_EQ(values[index], 2000 * index);
  }
}

TEST_P(ThreadPoolTest, AWorkerIsNeverInTwoCallsAtOnce) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> calls_of_worker(GetParam(), 0);
  for (int loop = 0; loop < 200; ++loop) {
    pool.ParallelFor(50, [&](int64_t, int worker) { ++calls_of_worker[worker]; });
  }
  int64_t calls = 0;
  for (int64_t count : calls_of_worker) calls += count;
  EXPECT_EQ(calls, 200 * 50);
}

TEST_P(ThreadPoolTest, WakesThreadsThatSleep) {
  ThreadPool pool(GetParam());
  for (int loop = 0; loop < 3; ++loop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // longer than the spin
    std::atomic<int> calls{0};
    pool.ParallelFor(8, [&](int64_t, int) { calls.fetch_add(1); });
    EXPECT_EQ(calls.load(), 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

}  // namespace
}  // namespace santa::cpu
