// Many threads at the engine at once, each of which knows what it must get.
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/engine/engine.h"
#include "server/testing/counter.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"

namespace santa {
namespace {

// Owners write and roll back sequences of their own, whose tokens follow from owner and position; a visitor for each
// forks one of them at any moment and reads what it got.
class Crowd {
 public:
  Crowd(Engine* engine, SequenceStore* store, const KvLayout& layout, bool runs_here)
      : engine_(engine), store_(store), layout_(layout), runs_here_(runs_here) {}

  static int Token(int owner, int64_t position) { return 1000 * (owner + 1) + static_cast<int>(position); }
  static std::vector<int> Tokens(int owner, int64_t from, int64_t to) {
    std::vector<int> ids;
    for (int64_t position = from; position < to; ++position) ids.push_back(Token(owner, position));
    return ids;
  }

  void Submit(TestStep* step, Counter* done) {
    step->step().done = [done] { done->Add(); };
    const absl::Status status =
        engine_->Submit(&step->step(), runs_here_ ? Engine::Wake::kInRunHere : Engine::Wake::kNow);
    EXPECT_TRUE(status.ok()) << status;
    if (runs_here_) engine_->RunHere();
  }
  void Run(TestStep* step) {
    Counter done;
    Submit(step, &done);
    done.WaitFor(1);
  }

  void Own(int owner, const SequenceHandle& handle) {
    std::mt19937 random(owner);
    int64_t length = 0;
    for (int round = 0; round < 150; ++round) {
      const int64_t count = 1 + random() % 5;
      // Both layers at once, so that they may share a batch.
      const int64_t from = random() % 3 == 0 ? length / 2 : length;  // sometimes repeats
      TestStep layer0(layout_, "a", 0);
      TestStep layer1(layout_, "a", 1);
      Counter done;
      for (TestStep* step : {&layer0, &layer1}) {
        step->AppendAndAttend(handle, from, Tokens(owner, from, length + count));
        Submit(step, &done);
      }
      done.WaitFor(2);
      for (const TestStep* step : {&layer0, &layer1}) {
        ASSERT_TRUE(step->item(0).status.ok()) << step->item(0).status;
        ASSERT_EQ(step->item(0).tokens_appended, count);
        ASSERT_EQ(step->o(0), MeanOfTokens(layout_, Tokens(owner, 0, length + count)));
      }
      length += count;
      if (length > 25) {
        length = random() % length;
        ASSERT_TRUE(store_->Truncate("a", handle, length, absl::Now()).ok());
      }
    }
  }

  void Visit(int owner, const SequenceHandle& handle) {
    for (int round = 0; round < 100; ++round) {
      const absl::StatusOr<SequenceInfo> fork =
          store_->Fork("a", handle, std::nullopt, absl::ZeroDuration(), 0, absl::Now());
      ASSERT_TRUE(fork.ok()) << fork.status();
      const int64_t length = fork->num_tokens();
      for (int32_t layer = 0; layer < 2; ++layer) {
        std::vector<int> ids = Tokens(owner, 0, length);
        ids.push_back(7);
        TestStep step(layout_, "a", layer);
        step.AppendAndAttend(fork->handle, length, {7});
        Run(&step);
        ASSERT_TRUE(step.item(0).status.ok()) << step.item(0).status;
        ASSERT_EQ(step.o(0), MeanOfTokens(layout_, ids));
      }
      // Every other one goes while work on it is under way.
      TestStep last(layout_, "a", 0);
      last.Attend(fork->handle, length);
      std::thread releasing;
      if (round % 2 == 0) releasing = std::thread([&] { ASSERT_TRUE(store_->Release("a", fork->handle).ok()); });
      Run(&last);
      if (releasing.joinable()) {
        releasing.join();
        EXPECT_TRUE(last.item(0).status.ok() || last.code(0) == absl::StatusCode::kNotFound) << last.item(0).status;
      } else {
        ASSERT_TRUE(store_->Release("a", fork->handle).ok());
      }
    }
  }

 private:
  Engine* const engine_;
  SequenceStore* const store_;
  const KvLayout layout_;
  const bool runs_here_;
};

void RunCrowd(int max_decodes_in_flight, bool runs_here) {
  FakeBackend backend(TestLayout(2), 64);
  backend.set_max_decodes_in_flight(max_decodes_in_flight);
  PagePool pool(64);
  SequenceStore store(2, 4, kTestLimits, &pool);
  Engine engine(&backend, &store, &pool, {.max_queued_items = 100, .max_batch_items = 3}, nullptr);
  Crowd crowd(&engine, &store, backend.layout(), runs_here);
  std::vector<SequenceHandle> handles;
  handles.reserve(3);
  std::vector<std::thread> threads;
  for (int owner = 0; owner < 3; ++owner) {
    handles.push_back(store.Create("a", absl::ZeroDuration(), 0, absl::Now())->handle);
  }
  for (int owner = 0; owner < 3; ++owner) {
    threads.emplace_back([&, owner] { crowd.Own(owner, handles[owner]); });
    threads.emplace_back([&, owner] { crowd.Visit(owner, handles[owner]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const SequenceHandle& handle : handles) EXPECT_TRUE(store.Release("a", handle).ok());
  EXPECT_EQ(store.size(), 0);
  engine.Shutdown();  // the last batch's hold is gone
  EXPECT_EQ(pool.free_pages(), 64);
  std::vector<PageRef> all;
  EXPECT_TRUE(pool.Allocate(64, &all).ok());
}

TEST(EngineCrowdTest, EveryThreadGetsItsOwnAnswers) { RunCrowd(1, false); }
TEST(EngineCrowdTest, EveryThreadGetsItsOwnAnswersWithTwoBatchesInFlight) { RunCrowd(2, false); }
TEST(EngineCrowdTest, EveryThreadGetsItsOwnAnswersWhereSomeRunTheirSteps) { RunCrowd(1, true); }

}  // namespace
}  // namespace santa
