#include "server/engine/batch_former.h"

#include <deque>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace santa {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class BatchFormerTest : public testing::Test {
 protected:
  // Queues a step that works on one layer of the sequences of these ids.
  Step* Queue(int32_t layer, const std::vector<uint64_t>& ids) {
    Step& step = steps_.emplace_back();
    step.layer = layer;
    for (const uint64_t id : ids) step.items.emplace_back().sequence = {.id = id, .generation = 1};
    queue_.push_back(&step);
    return &step;
  }

  std::vector<Step*> Form(int32_t max_batch_items = 100) {
    std::vector<Step*> batch;
    BatchFormer(max_batch_items).Form(now_, &queue_, &batch, &dropped_);
    return batch;
  }

  const absl::Time now_ = absl::FromUnixSeconds(1000);
  std::deque<Step> steps_;
  std::vector<Step*> queue_;
  std::vector<Step*> dropped_;
};

TEST_F(BatchFormerTest, TakesStepsOfAllCallersAndLayersInOrder) {
  Step* a = Queue(0, {1, 2});
  Step* b = Queue(0, {3});
  Step* c = Queue(1, {1, 2, 3});
  Step* d = Queue(0, {});
  EXPECT_THAT(Form(), ElementsAre(a, b, c, d));
  EXPECT_THAT(queue_, IsEmpty());
  EXPECT_THAT(dropped_, IsEmpty());
  EXPECT_THAT(Form(), IsEmpty());
}

TEST_F(BatchFormerTest, WorkOnALayerOfASequenceTakesTurns) {
  Step* a = Queue(0, {1});
  Step* b = Queue(0, {1});
  Step* c = Queue(0, {2});
  Step* d = Queue(0, {1});
  EXPECT_THAT(Form(), ElementsAre(a, c));
  EXPECT_THAT(queue_, ElementsAre(b, d));
  EXPECT_THAT(Form(), ElementsAre(b));
  EXPECT_THAT(Form(), ElementsAre(d));
}

TEST_F(BatchFormerTest, NothingPassesAWaitingStepOnAnyOfItsSequences) {
  Step* a = Queue(0, {1});
  Step* b = Queue(0, {1, 2});  // waits for a, as a whole
  Step* c = Queue(0, {2, 3});  // waits for b
  Step* d = Queue(0, {3});     // waits for c
  Step* e = Queue(1, {3});
  EXPECT_THAT(Form(), ElementsAre(a, e));
  EXPECT_THAT(Form(), ElementsAre(b));
  EXPECT_THAT(Form(), ElementsAre(c));
  EXPECT_THAT(Form(), ElementsAre(d));
}

TEST_F(BatchFormerTest, GenerationsAreDifferentSequences) {
  Step* a = Queue(0, {1});
  Step* b = Queue(0, {1});
  b->items[0].sequence.generation = 2;
  EXPECT_THAT(Form(), ElementsAre(a, b));
}

TEST_F(BatchFormerTest, AFullBatchLetsNoSmallStepPassALargeOne) {
  Step* a = Queue(0, {1, 2});
  Step* b = Queue(0, {3, 4, 5});
  Step* c = Queue(0, {6});
  EXPECT_THAT(Form(4), ElementsAre(a));
  EXPECT_THAT(queue_, ElementsAre(b, c));
  EXPECT_THAT(Form(4), ElementsAre(b, c));
}

TEST_F(BatchFormerTest, AnOversizedStepIsABatchOfItsOwn) {
  Step* a = Queue(0, {1});
  Step* b = Queue(0, {2, 3, 4});
  Step* c = Queue(0, {});
  EXPECT_THAT(Form(2), ElementsAre(a));
  EXPECT_THAT(Form(2), ElementsAre(b));
  EXPECT_THAT(Form(2), ElementsAre(c));
}

TEST_F(BatchFormerTest, DropsWhatNobodyWaitsForAnyMore) {
  Step* a = Queue(0, {1});
  Step* cancelled = Queue(0, {1, 2});
  Step* late = Queue(0, {3});
  Step* in_time = Queue(0, {2});
  cancelled->cancelled = true;
  late->deadline = now_;
  in_time->deadline = now_ + absl::Nanoseconds(1);
  Step* beyond_the_batch = Queue(0, {9});
  beyond_the_batch->cancelled = true;
  EXPECT_THAT(Form(2), ElementsAre(a, in_time));  // a dropped step holds up nobody
  EXPECT_THAT(dropped_, ElementsAre(cancelled, late, beyond_the_batch));
  EXPECT_EQ(cancelled->items[0].status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(cancelled->items[1].status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(late->items[0].status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(in_time->items[0].status.ok());
  EXPECT_THAT(queue_, IsEmpty());
}

}  // namespace
}  // namespace santa
