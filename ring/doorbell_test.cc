#include "ring/doorbell.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace santa {
namespace {

TEST(DoorbellTest, WakesWhoeverWaits) {
  const absl::StatusOr<Doorbell> owner = Doorbell::Open();
  ASSERT_TRUE(owner.ok()) << owner.status();
  const absl::StatusOr<Doorbell> caller = Doorbell::Find(owner->name());
  const absl::StatusOr<Doorbell> other = Doorbell::Find(owner->name());
  ASSERT_TRUE(caller.ok() && other.ok());
  std::atomic<int> woken = 0;
  std::thread waits([&] {
    for (; woken < 100; ++woken) owner->Wait();
  });
  while (woken < 100) {
    caller->Ring();
    other->Ring();
    std::this_thread::yield();
  }
  waits.join();
}

TEST(DoorbellTest, ARingThatCameFirstIsHeard) {
  const absl::StatusOr<Doorbell> owner = Doorbell::Open();
  ASSERT_TRUE(owner.ok());
  const absl::StatusOr<Doorbell> caller = Doorbell::Find(owner->name());
  ASSERT_TRUE(caller.ok());
  for (int i = 0; i < 10'000; ++i) caller->Ring();  // more than there is room for
  owner->Wait();
}

TEST(DoorbellTest, ThereMayBeNone) {
  std::string name;
  {
    const absl::StatusOr<Doorbell> owner = Doorbell::Open();
    ASSERT_TRUE(owner.ok());
    name = owner->name();
  }
  for (const std::string& gone : {name, std::string(), std::string(1000, 'x')}) {
    EXPECT_EQ(Doorbell::Find(gone).status().code(), absl::StatusCode::kFailedPrecondition) << gone;
  }
}

}  // namespace
}  // namespace santa
