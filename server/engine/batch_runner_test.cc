#include "server/engine/batch_runner.h"

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"

namespace santa {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Call = FakeBackend::Call;

constexpr StoreLimits kLimits = {.max_sequences = 10,
                                 .max_tokens_per_sequence = 60,
                                 .default_lease = absl::Seconds(10),
                                 .max_lease = absl::Seconds(100)};

class BatchRunnerTest : public testing::Test {
 protected:
  SequenceHandle Create() { return store_.Create("a", absl::ZeroDuration(), 0, now_)->handle; }
  SequenceHandle Fork(const SequenceHandle& parent) {
    return store_.Fork("a", parent, std::nullopt, absl::ZeroDuration(), 0, now_)->handle;
  }
  TestStep NewStep(int32_t layer = 0) { return {backend_.layout(), "a", layer}; }

  absl::Status Run(const std::vector<TestStep*>& steps) {
    BatchRunner::Run run;
    for (TestStep* step : steps) run.steps.push_back(&step->step());
    runner_.Begin(now_, &run);
    return runner_.Finish(&run);
  }

  // Appends to both layers.
  void Fill(const SequenceHandle& handle, int64_t position, const std::vector<int>& ids) {
    for (int32_t layer = 0; layer < 2; ++layer) {
      TestStep step = NewStep(layer);
      step.Append(handle, position, ids);
      ASSERT_TRUE(Run({&step}).ok());
      ASSERT_TRUE(step.item(0).status.ok()) << step.item(0).status;
    }
  }

  std::vector<float> AttendAt(const SequenceHandle& handle, int64_t position, int32_t layer = 0) {
    TestStep step = NewStep(layer);
    step.Attend(handle, position);
    EXPECT_TRUE(Run({&step}).ok());
    EXPECT_TRUE(step.item(0).status.ok()) << step.item(0).status;
    return step.o(0);
  }

  std::vector<float> Mean(const std::vector<int>& ids) { return MeanOfTokens(backend_.layout(), ids); }
  std::vector<int64_t> Lengths(const SequenceHandle& handle) { return store_.Get("a", handle, now_)->lengths; }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  FakeBackend backend_{TestLayout(2), 8};
  PagePool pool_{8};
  SequenceStore store_{2, 4, kLimits, &pool_};
  BatchRunner runner_{&backend_, &store_, &pool_};
};

std::string Message(const TestStep& step, size_t item) { return std::string(step.item(item).status.message()); }

TEST_F(BatchRunnerTest, AQuerySeesTheTokensUpToItsPosition) {
  const SequenceHandle handle = Create();
  TestStep step = NewStep();
  step.AppendAndAttend(handle, 0, {10, 20, 30, 40, 50});
  ASSERT_TRUE(Run({&step}).ok());
  ASSERT_EQ(step.code(0), absl::StatusCode::kOk);
  EXPECT_EQ(step.item(0).tokens_appended, 5);
  EXPECT_EQ(step.item(0).statistics.visible_tokens, 5);
  EXPECT_EQ(step.step().batch_items, 1);
  EXPECT_EQ(step.o(0), Mean({10, 20, 30, 40, 50}));
  EXPECT_EQ(step.lse(0)[0], std::log(5.0F));
  EXPECT_EQ(AttendAt(handle, 2), Mean({10, 20, 30}));
  EXPECT_EQ(AttendAt(handle, 4), Mean({10, 20, 30, 40, 50}));
}

TEST_F(BatchRunnerTest, AQueryWithoutTokensNeedsItsTokenStored) {
  const SequenceHandle handle = Create();
  Fill(handle, 0, {1, 2});
  TestStep step = NewStep();
  step.Attend(handle, 2).Attend(Create(), 0).Attend(Fork(handle), -1);
  ASSERT_TRUE(Run({&step}).ok());
  EXPECT_EQ(step.code(0), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(Message(step, 0), HasSubstr("length 2"));
  EXPECT_EQ(step.code(1), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(step.code(2), absl::StatusCode::kInvalidArgument);
}

TEST_F(BatchRunnerTest, AnItemFailsAlone) {
  const SequenceHandle one = Create();
  const SequenceHandle two = Create();
  TestStep step = NewStep();
  step.AppendAndAttend(one, 0, {1}).AppendAndAttend({77, 77}, 0, {2}).AppendAndAttend(two, 1, {3});
  step.Append(one, 1, {4});  // comes twice
  TestStep foreign(backend_.layout(), "b", 1);
  foreign.Append(one, 0, {5});
  TestStep no_layer = NewStep(2);
  no_layer.Append(one, 0, {6});
  ASSERT_TRUE(Run({&step, &foreign, &no_layer}).ok());
  EXPECT_EQ(step.o(0), Mean({1}));
  EXPECT_EQ(step.code(1), absl::StatusCode::kNotFound);
  EXPECT_EQ(step.code(2), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(Message(step, 2), HasSubstr("length 0"));
  EXPECT_EQ(step.code(3), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(foreign.code(0), absl::StatusCode::kNotFound);
  EXPECT_EQ(no_layer.code(0), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Lengths(one), ElementsAre(1, 0));
  EXPECT_THAT(Lengths(two), ElementsAre(0, 0));
  EXPECT_EQ(pool_.free_pages(), 7);
}

// Where nobody has looked at q before the device does.
TEST_F(BatchRunnerTest, AQueryThatIsNotFiniteFailsAloneAndItsTokensStay) {
  backend_.set_maps_memory();
  const SequenceHandle one = Create();
  const SequenceHandle other = Create();
  TestStep bad = NewStep();
  TestStep good = NewStep();
  bad.AppendAndAttend(one, 0, {1});
  good.AppendAndAttend(other, 0, {2});
  std::vector<float> q(4 * 8, 1.0F);
  q[3] = std::numeric_limits<float>::infinity();
  const auto mapping = backend_.MapMemory({reinterpret_cast<char*>(q.data()), q.size() * sizeof(float)});
  for (TestStep* step : {&bad, &good}) {
    step->step().items[0].q = q.data();
    step->step().items[0].maps_query = true;
  }
  ASSERT_TRUE(Run({&bad}).ok());
  EXPECT_EQ(bad.item(0).status, absl::InvalidArgumentError("q.data: element 3 is inf; allowed is finite"));
  EXPECT_EQ(bad.item(0).tokens_appended, 1);
  EXPECT_EQ(AttendAt(one, 0), Mean({1}));
  q[3] = 1;
  TestStep also_bad = NewStep();
  std::vector<float> nan(4 * 8, std::numeric_limits<float>::quiet_NaN());
  const auto another = backend_.MapMemory({reinterpret_cast<char*>(nan.data()), nan.size() * sizeof(float)});
  also_bad.Attend(one, 0);
  also_bad.step().items[0].q = nan.data();
  also_bad.step().items[0].maps_query = true;
  ASSERT_TRUE(Run({&also_bad, &good}).ok());
  EXPECT_EQ(also_bad.code(0), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(good.item(0).status.ok()) << good.item(0).status;
  EXPECT_EQ(good.o(0), Mean({2}));
}

TEST_F(BatchRunnerTest, RefusesItemsThatMakeNoSense) {
  const SequenceHandle handle = Create();
  const std::vector<std::function<void(StepItem*)>> breaks = {
      [](StepItem* item) { item->tokens.k = nullptr; },
      [](StepItem* item) { item->tokens.v = nullptr; },
      [](StepItem* item) { item->o = nullptr; },
      [](StepItem* item) { item->lse = nullptr; },
      [](StepItem* item) { item->position = -1; },
      [](StepItem* item) { item->position = 1; },  // past its own token
      [](StepItem* item) { item->position = std::numeric_limits<int64_t>::max(); },
      [](StepItem* item) { item->tokens.position = -1; },
      [](StepItem* item) { item->tokens.position = std::numeric_limits<int64_t>::min(); },
      [](StepItem* item) { item->tokens.count = -1; },
  };
  for (size_t i = 0; i < breaks.size(); ++i) {
    TestStep step = NewStep();
    step.AppendAndAttend(handle, 0, {1});
    breaks[i](&step.step().items[0]);
    ASSERT_TRUE(Run({&step}).ok());
    EXPECT_EQ(step.code(0), absl::StatusCode::kInvalidArgument) << i;
  }
  EXPECT_THAT(Lengths(handle), ElementsAre(0, 0));
}

TEST_F(BatchRunnerTest, ARetryGetsTheSameAnswerAndStoresNothing) {
  const SequenceHandle handle = Create();
  TestStep first = NewStep();
  first.AppendAndAttend(handle, 0, {5, 6, 7});
  ASSERT_TRUE(Run({&first}).ok());
  Fill(handle, 0, {5, 6, 7, 8, 9});  // overlaps in layer 0
  TestStep again = NewStep();
  again.AppendAndAttend(handle, 0, {5, 6, 7});
  ASSERT_TRUE(Run({&again}).ok());
  ASSERT_EQ(again.code(0), absl::StatusCode::kOk);
  EXPECT_EQ(again.item(0).tokens_appended, 0);
  EXPECT_EQ(again.o(0), first.o(0));
  EXPECT_EQ(again.lse(0), first.lse(0));
  EXPECT_THAT(Lengths(handle), ElementsAre(5, 5));
}

TEST_F(BatchRunnerTest, ARetryThatDiffersStoresNothingAndNamesThePosition) {
  const SequenceHandle handle = Create();
  const SequenceHandle other = Create();
  Fill(handle, 0, {1, 2, 3, 4, 5, 6});
  TestStep step = NewStep();
  step.Append(handle, 3, {4, 99, 6, 7}).Append(other, 0, {8});
  ASSERT_TRUE(Run({&step}).ok());
  EXPECT_EQ(step.code(0), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(step, 0), HasSubstr("position 4 of layer 0"));
  EXPECT_EQ(step.item(0).tokens_appended, 0);
  EXPECT_EQ(step.code(1), absl::StatusCode::kOk);
  EXPECT_THAT(Lengths(handle), ElementsAre(6, 6));
  EXPECT_EQ(AttendAt(handle, 5), Mean({1, 2, 3, 4, 5, 6}));
}

TEST_F(BatchRunnerTest, ForksDoNotSeeEachOthersTokens) {
  const SequenceHandle parent = Create();
  Fill(parent, 0, {1, 2, 3, 4, 5});
  const SequenceHandle left = Fork(parent);
  const SequenceHandle right = Fork(parent);
  // All three write at position 5 of the shared page, in both layers, in one batch.
  TestStep layer0 = NewStep(0);
  TestStep layer1 = NewStep(1);
  layer0.AppendAndAttend(left, 5, {10}).AppendAndAttend(parent, 5, {20}).AppendAndAttend(right, 5, {30});
  layer1.AppendAndAttend(right, 5, {60}).AppendAndAttend(left, 5, {40}).AppendAndAttend(parent, 5, {50});
  ASSERT_TRUE(Run({&layer0, &layer1}).ok());
  EXPECT_EQ(layer0.o(0), Mean({1, 2, 3, 4, 5, 10}));
  EXPECT_EQ(layer0.o(1), Mean({1, 2, 3, 4, 5, 20}));
  EXPECT_EQ(layer0.o(2), Mean({1, 2, 3, 4, 5, 30}));
  EXPECT_EQ(layer1.o(0), Mean({1, 2, 3, 4, 5, 60}));
  EXPECT_EQ(layer1.o(1), Mean({1, 2, 3, 4, 5, 40}));
  EXPECT_EQ(layer1.o(2), Mean({1, 2, 3, 4, 5, 50}));
  EXPECT_EQ(pool_.free_pages(), 4);  // a full page for all, a page for each
}

TEST_F(BatchRunnerTest, AForkWhileABatchRunsSeesWhatItPromised) {
  const SequenceHandle parent = Create();
  Fill(parent, 0, {1, 2});
  for (const Call when : {Call::kAppend, Call::kDecode}) {
    ASSERT_TRUE(store_.Truncate("a", parent, 2, now_).ok());
    SequenceHandle child;
    backend_.set_hook([&](Call call) {
      if (call == when && child == SequenceHandle()) child = Fork(parent);
      return absl::OkStatus();
    });
    TestStep layer0 = NewStep(0);
    TestStep layer1 = NewStep(1);
    layer0.AppendAndAttend(parent, 2, {3});
    layer1.AppendAndAttend(parent, 2, {4});
    ASSERT_TRUE(Run({&layer0, &layer1}).ok());
    EXPECT_THAT(Lengths(child), ElementsAre(3, 3));
    Fill(parent, 3, {5});
    Fill(child, 3, {6});
    EXPECT_EQ(AttendAt(child, 3, 0), Mean({1, 2, 3, 6}));
    EXPECT_EQ(AttendAt(child, 3, 1), Mean({1, 2, 4, 6}));
    EXPECT_EQ(AttendAt(parent, 3, 0), Mean({1, 2, 3, 5}));
    EXPECT_EQ(AttendAt(parent, 3, 1), Mean({1, 2, 4, 5}));
    ASSERT_TRUE(store_.Release("a", child).ok());
  }
}

TEST_F(BatchRunnerTest, AReleaseWhileABatchRunsTakesNoPageFromIt) {
  const SequenceHandle one = Create();
  const SequenceHandle two = Create();
  Fill(one, 0, {1, 2, 3, 4, 5, 6, 7, 8});
  // Between the batch's two locks `one` goes, and `two` asks for more pages than were free before.
  bool released = false;
  backend_.set_hook([&](Call call) {
    if (call == Call::kCompare && !released) released = store_.Release("a", one).ok();
    return absl::OkStatus();
  });
  TestStep step = NewStep();
  step.AppendAndAttend(one, 0, {1, 2, 3}).Append(two, 0, std::vector<int>(28, 9));
  ASSERT_TRUE(Run({&step}).ok());
  EXPECT_TRUE(released);
  EXPECT_EQ(step.code(0), absl::StatusCode::kNotFound);
  EXPECT_EQ(step.code(1), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool_.free_pages(), 8);
  ASSERT_TRUE(Run({&step}).ok());
  EXPECT_EQ(step.code(1), absl::StatusCode::kOk);  // the next batch may have them
}

TEST_F(BatchRunnerTest, ATruncationBetweenComparisonAndPlanComesFirst) {
  const SequenceHandle handle = Create();
  Fill(handle, 0, {1, 2, 3, 4, 5, 6});
  bool truncated = false;
  backend_.set_hook([&](Call call) {
    if (call == Call::kCompare && !truncated) truncated = store_.Truncate("a", handle, 2, now_).ok();
    return absl::OkStatus();
  });
  TestStep step = NewStep();
  step.AppendAndAttend(handle, 1, {2, 3, 4});
  ASSERT_TRUE(Run({&step}).ok());
  EXPECT_TRUE(truncated);
  EXPECT_EQ(step.code(0), absl::StatusCode::kOk);
  EXPECT_EQ(step.item(0).tokens_appended, 2);
  EXPECT_EQ(step.o(0), Mean({1, 2, 3, 4}));
  EXPECT_THAT(Lengths(handle), ElementsAre(4, 2));
}

TEST_F(BatchRunnerTest, AFullPoolHarmsNothingStored) {
  const SequenceHandle one = Create();
  const SequenceHandle two = Create();
  std::vector<int> ids(24);
  std::iota(ids.begin(), ids.end(), 0);
  Fill(one, 0, ids);  // 6 of 8 pages
  TestStep step = NewStep();
  step.Append(two, 0, std::vector<int>(9, 50)).AppendAndAttend(one, 24, {60});
  ASSERT_TRUE(Run({&step}).ok());
  EXPECT_EQ(step.code(0), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(step.code(1), absl::StatusCode::kOk);  // what the failed item did not take is there for the next
  EXPECT_EQ(pool_.free_pages(), 1);
  EXPECT_THAT(Lengths(two), ElementsAre(0, 0));
  EXPECT_EQ(AttendAt(one, 23, 1), Mean(ids));
  ids.push_back(60);
  EXPECT_EQ(step.o(1), Mean(ids));
}

TEST_F(BatchRunnerTest, AFailureOfTheDeviceIsTheStatusOfEveryItem) {
  for (const Call failing : {Call::kCompare, Call::kCopyPages, Call::kAppend, Call::kDecode}) {
    const SequenceHandle parent = Create();
    Fill(parent, 0, {1, 2});
    const SequenceHandle child = Fork(parent);
    backend_.set_hook([&](Call call) { return call == failing ? absl::InternalError("it burns") : absl::OkStatus(); });
    TestStep step = NewStep();
    step.AppendAndAttend(child, 1, {2, 3}).Attend(parent, 0).Attend({77, 77}, 0);
    const absl::Status status = Run({&step});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(step.code(0), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(step, 0), HasSubstr("it burns"));
    EXPECT_EQ(step.item(1).status, status);
    EXPECT_EQ(step.code(2), failing == Call::kCompare ? absl::StatusCode::kUnavailable : absl::StatusCode::kNotFound);
    backend_.set_hook(nullptr);
    ASSERT_TRUE(store_.Release("a", parent).ok());
    ASSERT_TRUE(store_.Release("a", child).ok());
    EXPECT_EQ(pool_.free_pages(), 8);
  }
}

TEST_F(BatchRunnerTest, TokensOfOtherDtypesAreStoredConverted) {
  const SequenceHandle handle = Create();
  std::vector<uint16_t> ones(16, 0x3f80);  // 1 as bf16
  for (int repeat = 0; repeat < 2; ++repeat) {
    TestStep step = NewStep();
    step.AppendAndAttend(handle, 0, {5});
    step.step().items[0].tokens.dtype = DType::kBFloat16;
    step.step().items[0].tokens.k = step.step().items[0].tokens.v = ones.data();
    ASSERT_TRUE(Run({&step}).ok());
    EXPECT_EQ(step.o(0), std::vector<float>(32, 1.0F));
    EXPECT_EQ(step.item(0).tokens_appended, 1 - repeat);
  }
}

TEST_F(BatchRunnerTest, WhatTheBackendHasNotGotFailsAloneAndStoresNothing) {
  backend_.set_unsupported(Method::kSanta);
  const SequenceHandle one = Create();
  const SequenceHandle two = Create();
  TestStep step = NewStep();
  step.AppendAndAttend(one, 0, {1}).AppendAndAttend(two, 0, {2});
  step.step().items[0].options = {.method = Method::kSanta, .sample_count = 1};
  ASSERT_TRUE(Run({&step}).ok());
  EXPECT_EQ(step.item(0).status, absl::UnimplementedError("the fake backend has not got this method"));
  EXPECT_EQ(step.code(1), absl::StatusCode::kOk);
  EXPECT_EQ(store_.Get("a", one, now_)->lengths[0], 0);
  EXPECT_EQ(store_.Get("a", two, now_)->lengths[0], 1);
}

}  // namespace
}  // namespace santa
