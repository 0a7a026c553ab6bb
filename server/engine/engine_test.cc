#include "server/engine/engine.h"

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/testing/counter.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"

namespace santa {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class EngineTest : public testing::Test {
 protected:
  void Start(const EngineOptions& options = {}) {
    engine_ = std::make_unique<Engine>(&backend_, &store_, &pool_, options, [this](const BatchReport& report) {
      std::lock_guard<std::mutex> lock(mutex_);
      for (const Step* step : report.steps) reported_.push_back(step);
    });
  }

  // From the next call on, the device stops at each of its calls until it is let go.
  void StopDevice() {
    backend_.set_hook([this](FakeBackend::Call) {
      at_gate_.Add();
      gate_.WaitFor(1);
      return absl::OkStatus();
    });
  }
  void LetGo() { gate_.Add(); }

  SequenceHandle Create() { return store_.Create("a", absl::ZeroDuration(), 0, absl::Now())->handle; }

  // A step that notes when it is done.
  TestStep* NewStep(int32_t layer = 0) {
    TestStep* step = &steps_.emplace_back(backend_.layout(), "a", layer);
    step->step().done = [this, step] {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.push_back(step);
      }
      done_count_.Add();
    };
    return step;
  }
  TestStep* Submit(TestStep* step) {
    const absl::Status status = engine_->Submit(&step->step());
    EXPECT_TRUE(status.ok()) << status;
    return step;
  }

  FakeBackend backend_{TestLayout(2), 64};
  PagePool pool_{64};
  SequenceStore store_{2, 4, kTestLimits, &pool_};
  std::mutex mutex_;
  std::vector<const Step*> reported_;
  std::vector<TestStep*> done_;
  Counter done_count_, at_gate_, gate_;
  std::deque<TestStep> steps_;
  std::unique_ptr<Engine> engine_;  // last: its thread uses all of the above
};

TEST_F(EngineTest, AnswersAStepAndReportsItFirst) {
  Start();
  TestStep* step = NewStep();
  step->AppendAndAttend(Create(), 0, {1, 2});
  std::vector<const Step*> reported_before_done;
  step->step().done = [&] {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      reported_before_done = reported_;
    }
    done_count_.Add();
  };
  Submit(step);
  done_count_.WaitFor(1);
  EXPECT_EQ(step->code(0), absl::StatusCode::kOk);
  EXPECT_EQ(step->o(0), MeanOfTokens(backend_.layout(), {1, 2}));
  EXPECT_EQ(step->step().batch_items, 1);
  EXPECT_GE(step->step().queue_time, absl::ZeroDuration());
  EXPECT_THAT(reported_before_done, ElementsAre(&step->step()));
  EXPECT_EQ(engine_->queued_items(), 0);
  EXPECT_EQ(engine_->running_items(), 0);
  EXPECT_TRUE(engine_->device_status().ok());
}

TEST_F(EngineTest, WhatArrivesWhileTheDeviceIsBusyIsTheNextBatch) {
  Start();
  const SequenceHandle one = Create();
  const SequenceHandle two = Create();
  StopDevice();
  TestStep* first = NewStep();
  Submit(&first->AppendAndAttend(one, 0, {1}));
  at_gate_.WaitFor(1);
  EXPECT_EQ(engine_->running_items(), 1);
  EXPECT_EQ(engine_->queued_items(), 0);
  TestStep* second = Submit(&NewStep()->AppendAndAttend(one, 1, {2}));
  TestStep* third = Submit(&NewStep()->AppendAndAttend(one, 2, {3}));  // waits for the second
  TestStep* other = Submit(&NewStep()->AppendAndAttend(two, 0, {4}));
  TestStep* layer1 = Submit(&NewStep(1)->AppendAndAttend(one, 0, {5}));
  EXPECT_EQ(engine_->queued_items(), 4);
  LetGo();
  done_count_.WaitFor(5);
  EXPECT_THAT(done_, ElementsAre(first, second, other, layer1, third));
  EXPECT_EQ(second->step().batch_items, 3);
  EXPECT_EQ(third->step().batch_items, 1);
  EXPECT_EQ(third->o(0), MeanOfTokens(backend_.layout(), {1, 2, 3}));
  EXPECT_EQ(layer1->o(0), MeanOfTokens(backend_.layout(), {5}));
}

TEST_F(EngineTest, ABackgroundStepWaitsForLiveOnesAndRunsAlone) {
  Start({.background_patience = absl::InfiniteDuration()});
  const SequenceHandle one = Create();
  const SequenceHandle two = Create();
  StopDevice();
  Submit(&NewStep()->Append(one, 0, {1}).Append(two, 0, {2}));
  at_gate_.WaitFor(1);
  TestStep* background = NewStep();
  ASSERT_TRUE(engine_->SubmitBackground(&background->Attend(one, 0).step()).ok());
  EXPECT_EQ(engine_->queued_items(), 0);
  TestStep* live = Submit(&NewStep()->Attend(one, 0));
  TestStep* other = Submit(&NewStep()->Attend(two, 0));
  LetGo();
  done_count_.WaitFor(4);
  EXPECT_EQ(done_[1], live);
  EXPECT_EQ(done_[2], other);
  EXPECT_EQ(live->step().batch_items, 2);
  EXPECT_EQ(done_[3], background);
  EXPECT_EQ(background->step().batch_items, 1);
  EXPECT_EQ(background->o(0), MeanOfTokens(backend_.layout(), {1}));
  EXPECT_EQ(engine_->running_items(), 0);
}

TEST_F(EngineTest, ABackgroundStepDoesNotWaitForEver) {
  Start({.background_patience = absl::ZeroDuration()});
  const SequenceHandle one = Create();
  StopDevice();
  Submit(&NewStep()->Append(one, 0, {1}));
  at_gate_.WaitFor(1);
  TestStep* live = Submit(&NewStep()->Attend(one, 0));
  TestStep* background = NewStep();
  ASSERT_TRUE(engine_->SubmitBackground(&background->Attend(one, 0).step()).ok());
  LetGo();
  done_count_.WaitFor(3);
  EXPECT_EQ(done_[1], background);
  EXPECT_EQ(done_[2], live);
}

TEST_F(EngineTest, BackgroundStepsEndWithTheEngine) {
  Start();
  const SequenceHandle one = Create();
  StopDevice();
  Submit(&NewStep()->Append(one, 0, {1}));
  at_gate_.WaitFor(1);
  TestStep* background = NewStep();
  ASSERT_TRUE(engine_->SubmitBackground(&background->Attend(one, 0).step()).ok());
  std::thread stop([this] { engine_->Shutdown(); });
  // Submit refuses from the moment on that the engine stops.
  while (engine_->SubmitBackground(&NewStep()->Attend(one, 0).step()).ok()) std::this_thread::yield();
  LetGo();
  stop.join();
  EXPECT_EQ(background->code(0), absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, CancelledAndLateStepsAreDroppedUnrun) {
  Start();
  const SequenceHandle one = Create();
  StopDevice();
  Submit(&NewStep()->Append(one, 0, {1}));
  at_gate_.WaitFor(1);
  TestStep* cancelled = Submit(&NewStep()->Append(one, 1, {2}).Append(Create(), 0, {2}));
  TestStep* late = NewStep();
  late->step().deadline = absl::Now() - absl::Seconds(1);
  Submit(&late->Append(one, 1, {3}));
  TestStep* last = Submit(&NewStep()->Append(one, 1, {4}));
  cancelled->step().cancelled = true;
  LetGo();
  done_count_.WaitFor(4);
  EXPECT_EQ(cancelled->code(0), absl::StatusCode::kCancelled);
  EXPECT_EQ(cancelled->code(1), absl::StatusCode::kCancelled);
  EXPECT_EQ(late->code(0), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(last->code(0), absl::StatusCode::kOk);
  EXPECT_EQ(store_.Get("a", one, absl::Now())->lengths[0], 2);
  EXPECT_EQ(engine_->queued_items(), 0);
  engine_->Shutdown();
  EXPECT_EQ(reported_.size(), 2);
}

TEST_F(EngineTest, RefusesWhatTheQueueCannotHold) {
  Start({.max_queued_items = 3, .max_batch_items = 100});
  StopDevice();
  Submit(&NewStep()->Append(Create(), 0, {1}));
  at_gate_.WaitFor(1);
  Submit(&NewStep()->Append(Create(), 0, {1}).Append(Create(), 0, {1}));
  TestStep* refused = NewStep();
  refused->Append(Create(), 0, {1}).Append(Create(), 0, {1});
  const absl::Status status = engine_->Submit(&refused->step());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("3"));
  Submit(NewStep());  // without items it still takes a place
  EXPECT_EQ(engine_->Submit(&NewStep()->step()).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine_->queued_items(), 3);
  LetGo();
  done_count_.WaitFor(3);
  Submit(refused);
  engine_->Shutdown();
  EXPECT_EQ(done_count_.count(), 4);
}

TEST_F(EngineTest, AFailedDeviceStaysFailed) {
  Start();
  const SequenceHandle one = Create();
  backend_.set_hook([this](FakeBackend::Call) {
    at_gate_.Add();
    gate_.WaitFor(1);
    return absl::InternalError("it burns");
  });
  TestStep* running = Submit(&NewStep()->AppendAndAttend(one, 0, {1}));
  at_gate_.WaitFor(1);
  TestStep* queued = Submit(&NewStep()->Append(one, 1, {2}).Attend(Create(), 0));
  LetGo();
  done_count_.WaitFor(2);
  for (const absl::Status& status : {running->item(0).status, queued->item(0).status, queued->item(1).status,
                                     engine_->device_status(), engine_->Submit(&NewStep()->step())}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("it burns"));
  }
  engine_->Shutdown();
  EXPECT_EQ(at_gate_.count(), 1);  // nothing more was asked of the device
  EXPECT_EQ(done_count_.count(), 2);
  EXPECT_EQ(engine_->queued_items(), 0);
}

TEST_F(EngineTest, ShutdownRunsWhatIsQueued) {
  Start();
  const SequenceHandle one = Create();
  StopDevice();
  for (int i = 0; i < 5; ++i) Submit(&NewStep()->Append(one, i, {i}));
  at_gate_.WaitFor(1);
  std::thread shutdown([this] { engine_->Shutdown(); });
  TestStep* refused = NewStep();
  absl::Status status;
  do {  // until the shutdown is under way
    status = engine_->Submit(&refused->step());
    if (status.ok()) refused = NewStep();
    std::this_thread::yield();
  } while (!absl::IsUnavailable(status));
  LetGo();
  engine_->Shutdown();  // both wait for the end
  shutdown.join();
  EXPECT_EQ(done_count_.count(), static_cast<int>(steps_.size()) - 1);
  EXPECT_EQ(store_.Get("a", one, absl::Now())->lengths[0], 5);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(steps_[i].code(0), absl::StatusCode::kOk);
}

TEST_F(EngineTest, DoneMayDeleteItsStepAndSubmitAnother) {
  Start();
  const SequenceHandle one = Create();
  std::atomic<int> left = 50;
  std::function<void(int)> submit = [&](int position) {
    auto* step = new TestStep(backend_.layout(), "a", 0);
    step->Append(one, position, {position});
    step->step().done = [&, step, position] {
      EXPECT_EQ(step->code(0), absl::StatusCode::kOk);
      delete step;
      if (--left > 0) submit(position + 1);
      done_count_.Add();
    };
    ASSERT_TRUE(engine_->Submit(&step->step()).ok());
  };
  submit(0);
  done_count_.WaitFor(50);
  EXPECT_EQ(store_.Get("a", one, absl::Now())->lengths[0], 50);
}

// The device holds its answer to the first batch until it has begun the second.
TEST_F(EngineTest, ASecondBatchBeginsWhileTheFirstIsOnTheDevice) {
  backend_.set_max_decodes_in_flight(2);
  Counter decodes;
  Counter awaits;
  backend_.set_hook([&](FakeBackend::Call call) {
    if (call == FakeBackend::Call::kDecode) decodes.Add();
    if (call == FakeBackend::Call::kAwaitDecode) {
      awaits.Add();
      gate_.WaitFor(1);
    }
    return absl::OkStatus();
  });
  Start();
  const SequenceHandle one = Create();
  TestStep* first = Submit(&NewStep()->AppendAndAttend(one, 0, {1}));
  awaits.WaitFor(1);
  TestStep* second = Submit(&NewStep()->AppendAndAttend(one, 1, {2}));  // behind the first on the device
  decodes.WaitFor(2);
  EXPECT_EQ(engine_->running_items(), 2);
  TestStep* third = Submit(&NewStep()->AppendAndAttend(one, 2, {3}));  // a third does not begin
  TestStep* repeated = Submit(&NewStep(1)->Append(one, 0, {9}));
  EXPECT_EQ(engine_->queued_items(), 2);
  EXPECT_EQ(done_count_.count(), 0);
  EXPECT_EQ(decodes.count(), 2);
  LetGo();
  done_count_.WaitFor(4);
  EXPECT_THAT(done_, ElementsAre(first, second, third, repeated));
  EXPECT_EQ(first->o(0), MeanOfTokens(backend_.layout(), {1}));
  EXPECT_EQ(second->o(0), MeanOfTokens(backend_.layout(), {1, 2}));
  EXPECT_EQ(third->o(0), MeanOfTokens(backend_.layout(), {1, 2, 3}));
  EXPECT_EQ(first->step().device_time, absl::Milliseconds(250));  // as the device says
  EXPECT_EQ(engine_->running_items(), 0);
}

TEST_F(EngineTest, ADeviceThatFailsBehindItsCallFailsWhatIsInFlight) {
  backend_.set_max_decodes_in_flight(2);
  Counter decodes;
  backend_.set_hook([&](FakeBackend::Call call) {
    if (call == FakeBackend::Call::kDecode) decodes.Add();
    if (call != FakeBackend::Call::kAwaitDecode) return absl::OkStatus();
    gate_.WaitFor(1);
    return absl::InternalError("it burns");
  });
  Start();
  const SequenceHandle one = Create();
  TestStep* first = Submit(&NewStep()->AppendAndAttend(one, 0, {1}).Attend(Create(), 0));
  decodes.WaitFor(1);
  TestStep* second = Submit(&NewStep()->AppendAndAttend(one, 1, {2}));
  decodes.WaitFor(2);
  TestStep* queued = Submit(&NewStep()->AppendAndAttend(one, 2, {3}));
  LetGo();
  done_count_.WaitFor(3);
  for (const absl::Status& status :
       {first->item(0).status, second->item(0).status, queued->item(0).status, engine_->device_status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("it burns"));
  }
  EXPECT_EQ(first->code(1), absl::StatusCode::kOutOfRange);  // it had failed before
  EXPECT_EQ(decodes.count(), 2);
}

}  // namespace
}  // namespace santa
