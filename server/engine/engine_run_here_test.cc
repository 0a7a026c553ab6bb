// Small steps that run on the thread that brought them.
#include <atomic>
#include <deque>
#include <memory>
#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/engine/engine.h"
#include "server/testing/counter.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"

namespace santa {
namespace {

class EngineRunHereTest : public testing::Test {
 protected:
  // The engine learns from one step how long a token takes: more than no time, and less than an hour.
  void Start(absl::Duration longest_here = absl::Hours(1)) {
    StartUntaught(longest_here);
    Submit(NewStep(), Engine::Wake::kNow);
    done_count_.WaitFor(1);
  }
  void StartUntaught(absl::Duration longest_here = absl::Hours(1)) {
    const EngineOptions options = {.longest_here = longest_here};
    engine_ = std::make_unique<Engine>(&backend_, &store_, &pool_, options, nullptr);
  }

  // One that brings the first token of a sequence of its own, and notes which thread it was done on.
  TestStep* NewStep() {
    TestStep* const step = &steps_.emplace_back(backend_.layout(), "a", 0);
    step->AppendAndAttend(store_.Create("a", absl::ZeroDuration(), 0, absl::Now())->handle, 0, {1});
    step->step().done = [this] {
      done_on_ = std::this_thread::get_id();
      done_count_.Add();
    };
    return step;
  }
  void Submit(TestStep* step, Engine::Wake wake) {
    const absl::Status status = engine_->Submit(&step->step(), wake);
    ASSERT_TRUE(status.ok()) << status;
  }

  FakeBackend backend_{TestLayout(1), 64};
  PagePool pool_{64};
  SequenceStore store_{1, 4, kTestLimits, &pool_};
  std::atomic<std::thread::id> done_on_;
  Counter done_count_;
  std::deque<TestStep> steps_;
  std::unique_ptr<Engine> engine_;  // last: its thread uses all of the above
};

TEST_F(EngineRunHereTest, ASmallStepThatFindsTheDeviceIdle) {
  Start();
  for (int i = 0; i < 100; ++i) {
    TestStep* const step = NewStep();
    Submit(step, Engine::Wake::kInRunHere);
    EXPECT_EQ(engine_->queued_items(), 1);
    EXPECT_EQ(done_count_.count(), 1 + i);
    engine_->RunHere();
    ASSERT_EQ(done_count_.count(), 2 + i);
    EXPECT_EQ(done_on_.load(), std::this_thread::get_id());
    EXPECT_EQ(step->o(0), MeanOfTokens(backend_.layout(), {1}));
    EXPECT_EQ(engine_->queued_items(), 0);
    EXPECT_EQ(engine_->running_items(), 0);
    ASSERT_TRUE(store_.Release("a", step->item(0).sequence).ok());
  }
  engine_->RunHere();  // nothing is there
  EXPECT_EQ(done_count_.count(), 101);
}

TEST_F(EngineRunHereTest, ALongStepIsTheDeviceThreads) {
  Start(absl::ZeroDuration());
  Submit(NewStep(), Engine::Wake::kInRunHere);
  done_count_.WaitFor(2);  // without RunHere
  EXPECT_NE(done_on_.load(), std::this_thread::get_id());
  engine_->RunHere();
  EXPECT_EQ(done_count_.count(), 2);
}

TEST_F(EngineRunHereTest, NotBeforeAnyStepHasTaughtHowLongTheyTake) {
  StartUntaught();
  Submit(NewStep(), Engine::Wake::kInRunHere);
  done_count_.WaitFor(1);
  EXPECT_NE(done_on_.load(), std::this_thread::get_id());
}

// Such a device begins the step here, and tells of its end elsewhere. The device thread, if it happens to look, may be
// first.
TEST_F(EngineRunHereTest, ADeviceThatWorksByItselfBeginsHere) {
  backend_.set_max_decodes_in_flight(2);
  std::atomic<int> begun_here{0};
  backend_.set_hook([&, here = std::this_thread::get_id()](FakeBackend::Call call) {
    if (call == FakeBackend::Call::kDecode && std::this_thread::get_id() == here) ++begun_here;
    return absl::OkStatus();
  });
  StartUntaught();
  for (int i = 0; i < 100; ++i) {
    TestStep* const step = NewStep();
    Submit(step, Engine::Wake::kInRunHere);
    engine_->RunHere();
    done_count_.WaitFor(1 + i);
    EXPECT_NE(done_on_.load(), std::this_thread::get_id());
    EXPECT_EQ(step->o(0), MeanOfTokens(backend_.layout(), {1}));
    ASSERT_TRUE(store_.Release("a", step->item(0).sequence).ok());
  }
  EXPECT_GT(begun_here, 0);
}

TEST_F(EngineRunHereTest, NotBesideABatchOnSuchADevice) {
  backend_.set_max_decodes_in_flight(2);
  Counter gate;
  backend_.set_hook([&](FakeBackend::Call call) {
    if (call == FakeBackend::Call::kAwaitDecode) gate.WaitFor(1);
    return absl::OkStatus();
  });
  StartUntaught();
  Submit(NewStep(), Engine::Wake::kInRunHere);
  engine_->RunHere();
  Submit(NewStep(), Engine::Wake::kInRunHere);  // wakes the device thread
  gate.Add();
  done_count_.WaitFor(2);
}

TEST_F(EngineRunHereTest, TwoStepsAreABatchOfTheDeviceThreads) {
  Start();
  TestStep* const first = NewStep();
  TestStep* const second = NewStep();
  Submit(first, Engine::Wake::kInRunHere);
  Submit(second, Engine::Wake::kInRunHere);  // wakes the device thread
  done_count_.WaitFor(3);
  EXPECT_EQ(first->step().batch_items, 2);
  EXPECT_EQ(second->step().batch_items, 2);
}

// What comes while a thread runs its step is the device thread's, once that step is done.
TEST_F(EngineRunHereTest, OthersWaitForItMeanwhile) {
  Start();
  Counter at_gate;
  Counter gate;
  backend_.set_hook([&](FakeBackend::Call call) {
    if (call == FakeBackend::Call::kDecode) {
      at_gate.Add();
      gate.WaitFor(1);
    }
    return absl::OkStatus();
  });
  Submit(NewStep(), Engine::Wake::kInRunHere);
  std::thread running([&] { engine_->RunHere(); });
  at_gate.WaitFor(1);
  EXPECT_EQ(engine_->running_items(), 1);
  Submit(NewStep(), Engine::Wake::kInRunHere);
  engine_->RunHere();  // the device is taken
  Submit(NewStep(), Engine::Wake::kNow);
  EXPECT_EQ(engine_->queued_items(), 2);
  std::thread stopping([&] { engine_->Shutdown(); });  // runs what is queued first
  gate.Add();
  stopping.join();
  running.join();
  EXPECT_EQ(done_count_.count(), 4);
  EXPECT_EQ(engine_->queued_items(), 0);
  EXPECT_EQ(steps_[2].step().batch_items, 2);
}

TEST_F(EngineRunHereTest, ADeviceThatFailsFailsTheServer) {
  Start();
  backend_.set_hook([](FakeBackend::Call) { return absl::InternalError("it burns"); });
  TestStep* const step = NewStep();
  Submit(step, Engine::Wake::kInRunHere);
  engine_->RunHere();
  EXPECT_EQ(step->code(0), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->device_status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->Submit(&NewStep()->step(), Engine::Wake::kInRunHere).code(), absl::StatusCode::kUnavailable);
  engine_->RunHere();
  EXPECT_EQ(done_count_.count(), 2);
}

}  // namespace
}  // namespace santa
