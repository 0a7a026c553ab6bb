#include "server/engine/audit.h"

#include <array>
#include <condition_variable>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"

namespace santa {
namespace {

using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr StoreLimits kLimits = {.max_sequences = 100,
                                 .max_tokens_per_sequence = 1000,
                                 .default_lease = absl::Hours(1),
                                 .max_lease = absl::Hours(1)};
constexpr int32_t kPages = 64;

// An engine whose background steps wait until the test lets them run, so that it may change the cache before.
class AuditTest : public testing::Test {
 protected:
  void Start(const AuditOptions& options) {
    auditor_ = std::make_unique<Auditor>(
        backend_.layout(), options,
        [this](Step* step) {
          std::lock_guard<std::mutex> lock(mutex_);
          if (hold_) {
            held_.push_back(step);
            changed_.notify_all();
            return absl::OkStatus();
          }
          return engine_->SubmitBackground(step);
        },
        AuditEvents{.on_audit = [this](const AuditReport& report) { Note(report, &reports_); },
                    .on_skip = [this](AuditSkip reason) { Note(reason, &skips_); },
                    .on_device_time = [this](absl::Duration time) { Note(time, &times_); },
                    .on_fallback = [this](const Fallback& fallback) { Note(fallback, &fallbacks_); },
                    .on_fallback_item = [this](Method method) { Note(method, &fallback_items_); }});
    engine_ = std::make_unique<Engine>(&backend_, &store_, &pool_, EngineOptions(),
                                       [this](const BatchReport& report) { auditor_->Observe(report); });
  }

  template <typename T>
  void Note(const T& event, std::vector<T>* events) {
    std::lock_guard<std::mutex> lock(mutex_);
    events->push_back(event);
    changed_.notify_all();
  }
  template <typename T>
  void WaitFor(size_t count, const std::vector<T>& events) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return events.size() >= count; });
  }
  void LetHeldRun() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !held_.empty(); });
    hold_ = false;
    ASSERT_TRUE(engine_->SubmitBackground(held_.front()).ok());
  }

  SequenceHandle Create() { return store_.Create("a", absl::ZeroDuration(), 0, absl::Now())->handle; }

  // Runs the step to its end, every query with `method`.
  TestStep& Run(TestStep* step, Method method) {
    for (StepItem& item : step->step().items) {
      item.options.method = method;
      item.options.sample_count = DrawsValues(method) ? 4 : 0;
      item.options.score_draws = method == Method::kBernoulliQk ? 4 : 0;
    }
    auditor_->ApplyFallbacks(&step->step());
    step->step().done = [this, step] { Note(step, &done_); };
    const size_t before = done_.size();
    EXPECT_TRUE(engine_->Submit(&step->step()).ok());
    WaitFor(before + 1, done_);
    return *step;
  }
  TestStep* NewStep(int32_t layer = 0) { return &steps_.emplace_back(backend_.layout(), "a", layer); }

  FakeBackend backend_{TestLayout(2), kPages};
  PagePool pool_{kPages};
  SequenceStore store_{2, 4, kLimits, &pool_};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hold_ = false;
  std::vector<Step*> held_;
  std::vector<AuditReport> reports_;
  std::vector<AuditSkip> skips_;
  std::vector<absl::Duration> times_;
  std::vector<Fallback> fallbacks_;
  std::vector<Method> fallback_items_;
  std::vector<TestStep*> done_;
  std::deque<TestStep> steps_;
  std::unique_ptr<Auditor> auditor_;
  std::unique_ptr<Engine> engine_;  // last: its thread uses all of the above
};

constexpr AuditOptions kEvery = {.share = 1, .max_device_share = 1};

TEST_F(AuditTest, MeasuresSampledItemsAloneAndTheirErrors) {
  backend_.set_max_decodes_in_flight(2);  // says 0.25 s of device time for each batch
  backend_.set_sampled_error(0.5);
  Start(kEvery);
  const SequenceHandle one = Create();
  const SequenceHandle two = Create();
  Run(&NewStep()->AppendAndAttend(one, 0, {1, 2}).AppendAndAttend(two, 0, {7}), Method::kExact);
  Run(&NewStep(1)->AppendAndAttend(one, 0, {3}).AppendAndAttend(two, 0, {4, 5}), Method::kSystematic);
  WaitFor(1, reports_);
  EXPECT_EQ(reports_[0].method, Method::kSystematic);
  EXPECT_EQ(reports_[0].layer, 1);
  EXPECT_EQ(reports_[0].exact_time, absl::Seconds(0.25));
  EXPECT_EQ(reports_[0].sampled_time, absl::Seconds(0.25));
  EXPECT_THAT(reports_[0].relative_errors, ElementsAre(DoubleNear(0.5, 1e-6), DoubleNear(0.5, 1e-6)));
  EXPECT_EQ(reports_[0].changed_answers, 0);
  EXPECT_THAT(times_, Each(absl::Seconds(0.25)));
  EXPECT_THAT(skips_, IsEmpty());
  EXPECT_EQ(engine_->queued_items(), 0);
  EXPECT_EQ(engine_->running_items(), 0);
}

// Which its exact repeat does not have.
TEST_F(AuditTest, MeasuresScoreDraws) {
  backend_.set_sampled_error(0.5);
  Start(kEvery);
  Run(&NewStep()->AppendAndAttend(Create(), 0, {1, 2}), Method::kBernoulliQk);
  WaitFor(1, reports_);
  EXPECT_EQ(reports_[0].method, Method::kBernoulliQk);
  EXPECT_THAT(reports_[0].relative_errors, ElementsAre(DoubleNear(0.5, 1e-6)));
  EXPECT_EQ(reports_[0].changed_answers, 0);
}

TEST_F(AuditTest, HoldsTheErrorSeenAgainstTheOnePredicted) {
  backend_.set_max_decodes_in_flight(2);  // says 0.25 s of device time for each batch
  backend_.set_sampled_error(0.5);
  Start(kEvery);
  const SequenceHandle one = Create();
  // A method that says nothing is asked once, in a third run.
  for (int i = 0; i < 2; ++i) {
    Run(&NewStep()->AppendAndAttend(one, i, {1}), Method::kSanta);
    WaitFor(i + 1, reports_);
    EXPECT_THAT(reports_[i].predictions, IsEmpty());
  }
  EXPECT_THAT(times_, SizeIs(3 + 2));

  backend_.set_predicted_error(0.25F);
  Run(&NewStep()->AppendAndAttend(one, 2, {1}), Method::kSystematic);
  WaitFor(3, reports_);
  ASSERT_THAT(reports_[2].predictions, SizeIs(1));
  EXPECT_NEAR(reports_[2].predictions[0].seen, 0.25, 1e-6);
  EXPECT_NEAR(reports_[2].predictions[0].predicted, 0.0625, 1e-6);
  EXPECT_EQ(reports_[2].sampled_time, absl::Seconds(0.25));
  EXPECT_THAT(times_, SizeIs(3 + 2 + 3));

  // What the caller asked for need not be asked again.
  std::vector<float> errors(backend_.layout().num_query_heads);
  TestStep* asked = &NewStep()->AppendAndAttend(one, 3, {1});
  asked->step().items[0].relative_standard_error = errors;
  Run(asked, Method::kSystematic);
  WaitFor(4, reports_);
  EXPECT_THAT(reports_[3].predictions, SizeIs(1));
  EXPECT_THAT(times_, SizeIs(3 + 2 + 3 + 2));
}

TEST_F(AuditTest, AppendsAndForksDoNotChangeTheStep) {
  backend_.set_sampled_error(0.25);
  Start(kEvery);
  hold_ = true;
  const SequenceHandle one = Create();
  Run(&NewStep(1)->Append(one, 0, {8, 9}), Method::kExact);
  Run(&NewStep()->AppendAndAttend(one, 0, {1, 2}), Method::kSanta);
  ASSERT_TRUE(store_.Fork("a", one, std::nullopt, absl::ZeroDuration(), 0, absl::Now()).ok());
  Run(&NewStep()->Append(one, 2, {3, 4, 5, 6}), Method::kExact);  // to a copy of the page, and past it
  LetHeldRun();
  WaitFor(1, reports_);
  EXPECT_THAT(reports_[0].relative_errors, ElementsAre(DoubleNear(0.25, 1e-6)));
  EXPECT_EQ(reports_[0].changed_answers, 0);
}

TEST_F(AuditTest, IsGivenUpWhenTheSequenceIsGone) {
  Start(kEvery);
  hold_ = true;
  const SequenceHandle one = Create();
  Run(&NewStep()->AppendAndAttend(one, 0, {1}), Method::kSanta);
  ASSERT_TRUE(store_.Release("a", one).ok());
  EXPECT_EQ(pool_.free_pages(), kPages) << "the audit holds no page";
  LetHeldRun();
  WaitFor(1, skips_);
  EXPECT_THAT(skips_, ElementsAre(AuditSkip::kGone));
  // The next one is audited again.
  Run(&NewStep()->AppendAndAttend(Create(), 0, {1}), Method::kSanta);
  WaitFor(1, reports_);
}

TEST_F(AuditTest, IsGivenUpWhenTheTokensMayBeOthers) {
  Start(kEvery);
  hold_ = true;
  const SequenceHandle one = Create();
  Run(&NewStep()->AppendAndAttend(one, 0, {1, 2}), Method::kSanta);
  ASSERT_TRUE(store_.Truncate("a", one, 1, absl::Now()).ok());
  LetHeldRun();
  WaitFor(1, skips_);
  EXPECT_THAT(skips_, ElementsAre(AuditSkip::kTruncated));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    hold_ = true;
    held_.clear();
  }
  Run(&NewStep()->AppendAndAttend(one, 1, {2}), Method::kSanta);
  ASSERT_TRUE(store_.Truncate("a", one, 1, absl::Now()).ok());
  Run(&NewStep()->Append(one, 1, {3}), Method::kExact);  // as long as it was, with another token
  LetHeldRun();
  WaitFor(2, skips_);
  EXPECT_THAT(skips_, ElementsAre(AuditSkip::kTruncated, AuditSkip::kTruncated));
  EXPECT_THAT(reports_, IsEmpty());
}

TEST_F(AuditTest, OneAtATime) {
  Start(kEvery);
  hold_ = true;
  const SequenceHandle one = Create();
  Run(&NewStep()->AppendAndAttend(one, 0, {1}), Method::kSanta);
  Run(&NewStep()->AppendAndAttend(one, 1, {1}), Method::kSanta);
  WaitFor(1, skips_);
  EXPECT_THAT(skips_, ElementsAre(AuditSkip::kBusy));
  LetHeldRun();
  WaitFor(1, reports_);
}

TEST_F(AuditTest, StopsWhenItHasHadItsShareOfTheDevice) {
  backend_.set_max_decodes_in_flight(2);  // 0.25 s for each batch: an audit's three are past a minute's 0.6 s
  Start({.share = 1, .max_device_share = 0.01});
  const SequenceHandle one = Create();
  Run(&NewStep()->AppendAndAttend(one, 0, {1}), Method::kSanta);
  WaitFor(1, reports_);
  Run(&NewStep()->AppendAndAttend(one, 1, {1}), Method::kSanta);
  WaitFor(1, skips_);
  EXPECT_THAT(skips_, ElementsAre(AuditSkip::kBudget));
}

TEST_F(AuditTest, AnAnswerThatARepeatDoesNotGiveIsCounted) {
  Start(kEvery);
  hold_ = true;
  Run(&NewStep()->AppendAndAttend(Create(), 0, {1}), Method::kSanta);
  backend_.set_sampled_error(0.5);
  LetHeldRun();
  WaitFor(1, reports_);
  EXPECT_EQ(reports_[0].changed_answers, 1);
  EXPECT_THAT(reports_[0].relative_errors, ElementsAre(0)) << "of what the caller got";
}

// A caller that could have changed its answer could otherwise make a method fall back for all.
TEST_F(AuditTest, NothingIsLearntFromMemoryThatTheCallerHasChanged) {
  backend_.set_maps_memory();
  backend_.set_max_decodes_in_flight(2);
  Start(kEvery);
  hold_ = true;
  TestStep* const step = NewStep();
  step->AppendAndAttend(Create(), 0, {1});
  StepItem& item = step->step().items[0];
  std::vector<float> q(4 * 8, 1.0F);
  alignas(16) std::array<float, 4 * 8 + 4> answer;
  const auto of_q = backend_.MapMemory({reinterpret_cast<char*>(q.data()), sizeof(float) * q.size()});
  const auto of_answer = backend_.MapMemory({reinterpret_cast<char*>(answer.data()), sizeof(answer)});
  item.q = q.data();
  item.o = answer.data();
  item.lse = answer.data() + 4 * 8;
  item.maps_query = item.maps_answer = item.shared_with_caller = true;
  Run(step, Method::kSanta);
  backend_.set_sampled_error(0.5);
  LetHeldRun();
  WaitFor(1, skips_);
  EXPECT_THAT(skips_, ElementsAre(AuditSkip::kChanged));
  EXPECT_THAT(reports_, IsEmpty());

  // Or what no repeat may be given: the device looks at no q that is the server's own.
  backend_.set_hook([&q](FakeBackend::Call call) {
    if (call == FakeBackend::Call::kAwaitDecode) q[7] = std::numeric_limits<float>::quiet_NaN();
    return absl::OkStatus();
  });
  Run(step, Method::kSanta);
  ASSERT_TRUE(step->item(0).status.ok()) << step->item(0).status;
  WaitFor(2, skips_);
  EXPECT_THAT(skips_, ElementsAre(AuditSkip::kChanged, AuditSkip::kChanged));
}

TEST_F(AuditTest, AMethodThatErrsTooMuchIsAnsweredExactly) {
  backend_.set_sampled_error(0.5);
  AuditOptions options = kEvery;
  options.error_bound = 0.4;
  Start(options);
  const SequenceHandle one = Create();
  for (int i = 0; i < FallbackTable::kItems; ++i) {
    TestStep& step = Run(&NewStep()->AppendAndAttend(one, i, {i}), Method::kSanta);
    EXPECT_EQ(step.item(0).options.method, Method::kSanta);
    WaitFor(i + 1, reports_);
  }
  WaitFor(1, fallbacks_);
  EXPECT_EQ(fallbacks_[0].method, Method::kSanta);
  EXPECT_EQ(fallbacks_[0].layer, 0);
  EXPECT_NEAR(fallbacks_[0].relative_error, 0.5, 1e-6);
  EXPECT_EQ(auditor_->fallback_layers(Method::kSanta), 1);
  TestStep& exact = Run(&NewStep()->Attend(one, 0), Method::kSanta);
  EXPECT_EQ(exact.item(0).options.method, Method::kExact);
  EXPECT_EQ(exact.o(0), MeanOfTokens(backend_.layout(), {0}));
  EXPECT_THAT(fallback_items_, ElementsAre(Method::kSanta));
  EXPECT_EQ(Run(&NewStep()->Attend(one, 0), Method::kSystematic).item(0).options.method, Method::kSystematic);
  EXPECT_EQ(Run(&NewStep(1)->AppendAndAttend(one, 0, {1}), Method::kSanta).item(0).options.method, Method::kSanta);
}

TEST_F(AuditTest, ADeviceThatFailsUnderItIsReported) {
  Start(kEvery);
  hold_ = true;
  Run(&NewStep()->AppendAndAttend(Create(), 0, {1}), Method::kSanta);
  backend_.set_hook([](FakeBackend::Call) { return absl::InternalError("on fire"); });
  LetHeldRun();
  WaitFor(1, skips_);
  EXPECT_THAT(skips_, ElementsAre(AuditSkip::kFailed));
  EXPECT_FALSE(engine_->device_status().ok());
}

TEST_F(AuditTest, AnEngineThatStopsLeavesNothingBehind) {
  Start(kEvery);
  hold_ = true;
  Run(&NewStep()->AppendAndAttend(Create(), 0, {1}), Method::kSanta);
  engine_->Shutdown();
  EXPECT_FALSE(engine_->SubmitBackground(held_.front()).ok());
}

TEST_F(AuditTest, AShareOfNothingAuditsNothing) {
  Start({.share = 0});
  const SequenceHandle one = Create();
  for (int i = 0; i < 50; ++i) Run(&NewStep()->AppendAndAttend(one, i, {1}), Method::kSanta);
  engine_->Shutdown();
  EXPECT_THAT(reports_, IsEmpty());
  EXPECT_THAT(skips_, IsEmpty());
}

TEST(AuditOptionsTest, ValuesOutOfRangeAreNamed) {
  EXPECT_TRUE(Validate(AuditOptions()).ok());
  EXPECT_EQ(Validate(AuditOptions{.share = 1.5}).message(), "audit_share is 1.5; allowed is [0, 1]");
  EXPECT_EQ(Validate(AuditOptions{.max_device_share = 0}).message(), "audit_max_device_share is 0; allowed is (0, 1]");
  EXPECT_FALSE(Validate(AuditOptions{.error_bound = -1}).ok());
  EXPECT_FALSE(Validate(AuditOptions{.error_bound = std::numeric_limits<double>::quiet_NaN()}).ok());
  EXPECT_FALSE(Validate(AuditOptions{.fallback_time = absl::ZeroDuration()}).ok());
}

}  // namespace
}  // namespace santa
