#include "server/kv/lease_reaper.h"

#include <condition_variable>
#include <mutex>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace santa {
namespace {

TEST(LeaseReaperTest, ReleasesExpiredSequencesAndCountsThem) {
  PagePool pool(4);
  const StoreLimits limits = {.max_sequences = 10,
                              .max_tokens_per_sequence = 10,
                              .default_lease = absl::Milliseconds(1),
                              .max_lease = absl::Hours(1)};
  SequenceStore store(1, 4, limits, &pool);
  std::mutex mutex;
  std::condition_variable changed;
  int64_t expired = 0;
  LeaseReaper reaper(&store, absl::Milliseconds(2), [&](int64_t count) {
    std::lock_guard<std::mutex> lock(mutex);
    expired += count;
    changed.notify_all();
  });
  const SequenceHandle kept = store.Create("a", absl::Hours(1), 0, absl::Now())->handle;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(store.Create("a", absl::ZeroDuration(), 0, absl::Now()).ok());
  {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return expired >= 3; });
    EXPECT_EQ(expired, 3);
  }
  EXPECT_EQ(store.size(), 1);
  EXPECT_TRUE(store.Get("a", kept, absl::Now()).ok());
  reaper.Stop();
  reaper.Stop();
}

}  // namespace
}  // namespace santa
