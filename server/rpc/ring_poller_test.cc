#include "server/rpc/ring_poller.h"

#include <gtest/gtest.h>

#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

namespace santa {
namespace {

// Work is a number, in place of a ring.
class FakeCall final : public PolledCall {
 public:
  bool Poll() override {
    if (waiting == 0) return false;
    --waiting;
    ++taken;
    return true;
  }
  void BeginSleep() override { sleeps = true; }
  void EndSleep() override { sleeps = false; }

  // As a client does.
  void Publish(const Doorbell& doorbell) {
    ++waiting;
    if (sleeps.exchange(false)) doorbell.Ring();
  }
  void AwaitTaken(int count) const {
    while (taken < count) std::this_thread::yield();
  }

  std::atomic<int> waiting = 0;
  std::atomic<int> taken = 0;
  std::atomic<bool> sleeps = false;
};

TEST(RingPollerTest, TakesFromEveryCallAwakeOrAsleep) {
  RingPoller poller(false, 1000, [] {});
  std::vector<std::unique_ptr<FakeCall>> calls;
  std::vector<Doorbell> doorbells;
  for (int i = 0; i < 3; ++i) {
    calls.push_back(std::make_unique<FakeCall>());
    const absl::StatusOr<std::string> name = poller.Add(calls.back().get(), 100);
    ASSERT_TRUE(name.ok()) << name.status();
    doorbells.push_back(*Doorbell::Find(*name));
  }
  for (int round = 0; round < 200; ++round) {
    if (round % 20 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));  // it falls asleep
    for (int i = 0; i < 3; ++i) calls[i]->Publish(doorbells[i]);
    for (int i = 0; i < 3; ++i) calls[i]->AwaitTaken(round + 1);
  }
  for (const auto& call : calls) poller.Remove(call.get(), 100);
}

TEST(RingPollerTest, ARemovedCallIsPolledNoMore) {
  RingPoller poller(true, 1000, [] {});
  FakeCall busy;
  poller.StepBegins();  // it never sleeps, from its first call on
  ASSERT_TRUE(poller.Add(&busy, 1).ok());
  for (int i = 0; i < 200; ++i) {
    auto call = std::make_unique<FakeCall>();
    ASSERT_TRUE(poller.Add(call.get(), 1).ok());
    call->waiting = 1;
    poller.Remove(call.get(), 1);
    call.reset();  // the address sanitizer would see it
  }
  busy.waiting = 5;
  busy.AwaitTaken(5);
  poller.StepEnds();
  poller.Remove(&busy, 1);
}

TEST(RingPollerTest, GivesNoMoreMemoryThanItMay) {
  RingPoller poller(false, 1000, [] {});
  FakeCall first;
  FakeCall second;
  ASSERT_TRUE(poller.Add(&first, 600).ok());
  EXPECT_EQ(poller.Add(&second, 401).status(),
            absl::ResourceExhaustedError("a ring of 401 bytes is asked for; 600 of the 1000 bytes for rings "
                                         "(max_shared_bytes) are given away"));
  EXPECT_TRUE(poller.Add(&second, 400).ok());
  poller.Remove(&first, 600);
  poller.Remove(&second, 400);
  EXPECT_TRUE(poller.Add(&first, 1000).ok());
  poller.Remove(&first, 1000);
}

}  // namespace
}  // namespace santa
