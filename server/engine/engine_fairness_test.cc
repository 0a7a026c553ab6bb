// Callers that share a device: no crowd keeps another caller from it, and no tenant fills the queue alone.
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/engine/engine.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"

namespace santa {
namespace {

using ::testing::HasSubstr;

constexpr StoreLimits kLimits = {.max_sequences = 20000,
                                 .max_tokens_per_sequence = 1000,
                                 .default_lease = absl::Hours(1),
                                 .max_lease = absl::Hours(1)};

// The device stands still until Go, so that a test decides what is queued.
class EngineFairnessTest : public testing::Test {
 protected:
  void Start(const EngineOptions& options) {
    backend_.set_hook([this](FakeBackend::Call) {
      std::unique_lock<std::mutex> lock(mutex_);
      reached_ = true;
      changed_.notify_all();
      changed_.wait(lock, [this] { return go_; });
      return absl::OkStatus();
    });
    engine_ = std::make_unique<Engine>(&backend_, &store_, &pool_, options, nullptr);
    // One step of somebody else's keeps the device busy meanwhile.
    ASSERT_TRUE(Submit("first", 0).ok());
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return reached_; });
  }

  // A step of one token on a sequence of its own.
  absl::Status Submit(const std::string& tenant, uint64_t client) {
    TestStep& step = steps_.emplace_back(backend_.layout(), tenant, 0);
    const SequenceHandle sequence = store_.Create(tenant, absl::ZeroDuration(), 0, absl::Now())->handle;
    step.AppendAndAttend(sequence, 0, {1});
    step.step().client = client;
    step.step().done = [this, tenant, client, &step] {
      std::lock_guard<std::mutex> lock(mutex_);
      EXPECT_EQ(step.code(0), absl::StatusCode::kOk) << step.item(0).status;
      done_.push_back({tenant, client});
      changed_.notify_all();
    };
    absl::Status status = engine_->Submit(&step.step());
    if (status.ok()) ++submitted_;
    return status;
  }

  void Go() {
    std::unique_lock<std::mutex> lock(mutex_);
    go_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return done_.size() == submitted_; });
  }

  // How many answers had gone out when the last of the tenant's client's did.
  size_t LastAnswer(const std::string& tenant, uint64_t client) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = done_.size(); i > 0; --i) {
      if (done_[i - 1].tenant == tenant && done_[i - 1].client == client) return i;
    }
    return 0;
  }

  struct Caller {
    std::string tenant;
    uint64_t client;
  };

  FakeBackend backend_{TestLayout(1), 20000};
  PagePool pool_{20000};
  SequenceStore store_{1, 4, kLimits, &pool_};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  bool go_ = false;
  size_t submitted_ = 0;
  std::vector<Caller> done_;
  std::deque<TestStep> steps_;
  std::unique_ptr<Engine> engine_;  // last: its thread uses all of the above
};

TEST_F(EngineFairnessTest, TenThousandQueuedStepsStarveNobody) {
  Start({.max_queued_items = 20000, .max_queued_items_per_tenant = 20000, .max_batch_items = 8});
  for (int i = 0; i < 10000; ++i) ASSERT_TRUE(Submit("t", 1).ok());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Submit("t", 2).ok());
  Go();
  // One of the one's for one of the other's, and what a batch and the first step add.
  EXPECT_LE(LastAnswer("t", 2), 2U * 20 + 8 + 1);
  EXPECT_EQ(LastAnswer("t", 1), 10021U);
}

TEST_F(EngineFairnessTest, ATenantWithManyClientsGetsNoMoreThanOneWithOne) {
  Start({.max_queued_items = 20000, .max_queued_items_per_tenant = 20000, .max_batch_items = 8});
  for (int i = 0; i < 100; ++i) {
    for (uint64_t client = 1; client <= 20; ++client) ASSERT_TRUE(Submit("many", client).ok());
  }
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(Submit("one", 1).ok());
  Go();
  EXPECT_LE(LastAnswer("one", 1), 2U * 100 + 8 + 1);
}

TEST_F(EngineFairnessTest, ATenantFillsNoMoreThanItsPartOfTheQueue) {
  Start({.max_queued_items = 10, .max_queued_items_per_tenant = 6});
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(Submit("greedy", i).ok());
  const absl::Status refused = Submit("greedy", 9);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("the tenant's part of the queue is full: 6 items wait, and 1 more would pass the 6 that may; "
                        "retry in "));
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(Submit("modest", 1).ok());
  EXPECT_THAT(std::string(Submit("modest", 1).message()), HasSubstr("the queue is full: 10 items wait"));
  Go();
  EXPECT_TRUE(Submit("greedy", 9).ok());  // room again
  Go();
}

}  // namespace
}  // namespace santa
