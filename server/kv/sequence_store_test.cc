#include "server/kv/sequence_store.h"

#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace santa {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kLease = absl::Seconds(10);
constexpr absl::Duration kMaxLease = absl::Seconds(100);
constexpr StoreLimits kLimits = {
    .max_sequences = 4, .max_tokens_per_sequence = 100, .default_lease = kLease, .max_lease = kMaxLease};

// Two layers, pages of 4 tokens.
class SequenceStoreTest : public testing::Test {
 protected:
  SequenceHandle Create(absl::Duration lease = absl::ZeroDuration()) {
    return store_.Create("a", lease, 7, now_)->handle;
  }

  absl::Status Append(const SequenceHandle& handle, int32_t layer, int64_t position, int64_t count,
                      AppendPlan* plan = nullptr, int64_t compared = 0) {
    AppendPlan ignored;
    SequenceStore::Batch batch(&store_, now_);
    const TokenRange range = {.tenant = "a", .handle = handle, .layer = layer, .position = position, .count = count};
    return batch.Append(range, compared, plan == nullptr ? &ignored : plan);
  }

  // Appends to both layers.
  void Fill(const SequenceHandle& handle, int64_t position, int64_t count) {
    ASSERT_TRUE(Append(handle, 0, position, count).ok());
    ASSERT_TRUE(Append(handle, 1, position, count).ok());
  }

  ReadPlan Read(const SequenceHandle& handle, int32_t layer) {
    ReadPlan plan;
    SequenceStore::Batch batch(&store_, now_);
    EXPECT_TRUE(batch.Read("a", handle, layer, &plan).ok());
    return plan;
  }

  SequenceInfo Get(const SequenceHandle& handle) { return *store_.Get("a", handle, now_); }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  PagePool pool_{8};
  SequenceStore store_{2, 4, kLimits, &pool_};
};

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST_F(SequenceStoreTest, CreatesEmptySequencesWithDifferentHandles) {
  const absl::StatusOr<SequenceInfo> one = store_.Create("a", absl::ZeroDuration(), 0, now_);
  const absl::StatusOr<SequenceInfo> two = store_.Create("a", absl::Seconds(20), 5, now_);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_THAT(one->lengths, ElementsAre(0, 0));
  EXPECT_EQ(one->num_tokens(), 0);
  EXPECT_EQ(one->lease, kLease);
  EXPECT_EQ(one->time_left, kLease);
  EXPECT_NE(one->sampling_key, 0);
  EXPECT_NE(one->handle.generation, 0);
  EXPECT_EQ(two->sampling_key, 5);
  EXPECT_EQ(two->lease, absl::Seconds(20));
  EXPECT_NE(one->handle.id, two->handle.id);
  EXPECT_NE(one->handle.generation, two->handle.generation);
  EXPECT_EQ(store_.size(), 2);
}

TEST_F(SequenceStoreTest, RefusesLeasesOutOfRange) {
  for (const absl::Duration lease : {absl::Seconds(-1), kMaxLease + absl::Nanoseconds(1), absl::InfiniteDuration()}) {
    const absl::Status status = store_.Create("a", lease, 0, now_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), HasSubstr("allowed is (0, 100]"));
  }
  EXPECT_TRUE(store_.Create("a", kMaxLease, 0, now_).ok());
  EXPECT_EQ(store_.size(), 1);
}

TEST_F(SequenceStoreTest, HoldsNoMoreSequencesThanAllowed) {
  const SequenceHandle first = Create();
  for (int i = 1; i < 4; ++i) Create();
  EXPECT_EQ(store_.Create("a", kLease, 0, now_).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store_.Fork("a", first, std::nullopt, kLease, 0, now_).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store_.Release("a", first).ok());
  EXPECT_TRUE(store_.Create("a", kLease, 0, now_).ok());
}

TEST_F(SequenceStoreTest, AppendTakesPagesAsTheyAreNeeded) {
  const SequenceHandle handle = Create();
  AppendPlan plan;
  ASSERT_TRUE(Append(handle, 0, 0, 5, &plan).ok());
  EXPECT_EQ(plan.repeated, 0);
  EXPECT_EQ(plan.appended, 5);
  EXPECT_EQ(plan.page_table.size(), 2);
  EXPECT_EQ(plan.sampling_key, 7);
  EXPECT_TRUE(plan.copies.empty());
  EXPECT_EQ(pool_.free_pages(), 6);
  const std::vector<int32_t> table = plan.page_table;
  ASSERT_TRUE(Append(handle, 1, 0, 4, &plan).ok());  // the other layer shares the table
  EXPECT_THAT(plan.page_table, ElementsAre(table[0]));
  EXPECT_EQ(pool_.free_pages(), 6);
  EXPECT_THAT(Get(handle).lengths, ElementsAre(5, 4));
  EXPECT_EQ(Get(handle).num_tokens(), 4);
  EXPECT_EQ(Get(handle).num_pages, 2);
  EXPECT_EQ(Read(handle, 0).page_table, table);
  EXPECT_EQ(Read(handle, 1).page_table.size(), 1);
  EXPECT_EQ(Read(handle, 1).length, 4);
}

TEST_F(SequenceStoreTest, RefusesPositionsThatDoNotFollow) {
  const SequenceHandle handle = Create();
  Fill(handle, 0, 3);
  absl::Status status = Append(handle, 0, 4, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(Message(status), HasSubstr("layer 0 has length 3"));
  EXPECT_EQ(Append(handle, 2, 0, 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Append(handle, -1, 0, 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Append(handle, 0, -1, 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Append(handle, 0, 3, -1).code(), absl::StatusCode::kInvalidArgument);
  const int64_t huge = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(Append(handle, 0, 3, huge).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Append(handle, 0, huge, huge).code(), absl::StatusCode::kOutOfRange);
  status = Append(handle, 0, 3, 98);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(Message(status), HasSubstr("100"));
  EXPECT_THAT(Get(handle).lengths, ElementsAre(3, 3));
  EXPECT_EQ(pool_.free_pages(), 7);
}

TEST_F(SequenceStoreTest, StoresOnlyWhatIsNotStoredYet) {
  const SequenceHandle handle = Create();
  Fill(handle, 0, 6);
  const TokenRange range = {.tenant = "a", .handle = handle, .layer = 0, .position = 3, .count = 5};
  std::vector<int32_t> table;
  EXPECT_EQ(*SequenceStore::Batch(&store_, now_).FindRepeated(range, &table), 3);
  EXPECT_EQ(table, Read(handle, 0).page_table);
  // Without the comparison, it is refused.
  EXPECT_EQ(Append(handle, 0, 3, 5).code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Get(handle).lengths, ElementsAre(6, 6));
  AppendPlan plan;
  ASSERT_TRUE(Append(handle, 0, 3, 5, &plan, 3).ok());
  EXPECT_EQ(plan.repeated, 3);
  EXPECT_EQ(plan.appended, 2);
  EXPECT_THAT(Get(handle).lengths, ElementsAre(8, 6));
  ASSERT_TRUE(Append(handle, 0, 3, 5, &plan, 5).ok());  // all of it again
  EXPECT_EQ(plan.repeated, 5);
  EXPECT_EQ(plan.appended, 0);
  // A truncation between the comparison and the plan leaves less to repeat.
  ASSERT_TRUE(store_.Truncate("a", handle, 4, now_).ok());
  ASSERT_TRUE(Append(handle, 0, 3, 5, &plan, 5).ok());
  EXPECT_EQ(plan.repeated, 1);
  EXPECT_EQ(plan.appended, 4);
}

TEST_F(SequenceStoreTest, ForkSharesPagesUntilOneSideWrites) {
  const SequenceHandle parent = Create();
  Fill(parent, 0, 6);
  const std::vector<int32_t> before = Read(parent, 0).page_table;
  const absl::StatusOr<SequenceInfo> child = store_.Fork("a", parent, std::nullopt, absl::ZeroDuration(), 0, now_);
  ASSERT_TRUE(child.ok());
  EXPECT_THAT(child->lengths, ElementsAre(6, 6));
  EXPECT_EQ(child->sampling_key, 7);
  EXPECT_EQ(pool_.free_pages(), 6);
  EXPECT_EQ(Read(child->handle, 0).page_table, before);

  AppendPlan plan;
  ASSERT_TRUE(Append(parent, 0, 6, 1, &plan).ok());
  ASSERT_EQ(plan.copies.size(), 1);
  EXPECT_EQ(plan.copies[0].from, before[1]);
  EXPECT_EQ(plan.copies[0].to, plan.page_table[1]);
  EXPECT_NE(plan.page_table[1], before[1]);
  EXPECT_EQ(plan.page_table[0], before[0]);  // a full page stays shared
  EXPECT_EQ(pool_.free_pages(), 5);
  // The next layer finds the page private already, and so does the child: it has the old one for itself.
  ASSERT_TRUE(Append(parent, 1, 6, 1, &plan).ok());
  EXPECT_TRUE(plan.copies.empty());
  ASSERT_TRUE(Append(child->handle, 0, 6, 1, &plan).ok());
  EXPECT_TRUE(plan.copies.empty());
  EXPECT_EQ(plan.page_table, before);
}

TEST_F(SequenceStoreTest, ForkKeepsAPrefix) {
  const SequenceHandle parent = Create();
  Fill(parent, 0, 8);
  ASSERT_TRUE(Append(parent, 0, 8, 1).ok());
  EXPECT_EQ(store_.Fork("a", parent, std::nullopt, kLease, 9, now_)->lengths, (std::vector<int64_t>{8, 8}));
  const absl::StatusOr<SequenceInfo> child = store_.Fork("a", parent, 4, absl::Seconds(3), 9, now_);
  EXPECT_THAT(child->lengths, ElementsAre(4, 4));
  EXPECT_EQ(child->num_pages, 1);
  EXPECT_EQ(child->sampling_key, 9);
  EXPECT_EQ(child->lease, absl::Seconds(3));
  AppendPlan plan;  // at a page's start there is nothing to copy
  ASSERT_TRUE(Append(child->handle, 0, 4, 1, &plan).ok());
  EXPECT_TRUE(plan.copies.empty());
  const absl::Status status = store_.Fork("a", parent, 9, kLease, 0, now_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);  // layer 1 lacks the ninth token
  EXPECT_THAT(Message(status), HasSubstr("[0, 8]"));
  EXPECT_EQ(store_.Fork("a", parent, -1, kLease, 0, now_).status().code(), absl::StatusCode::kOutOfRange);
}

TEST_F(SequenceStoreTest, ForkOutlivesItsParent) {
  const SequenceHandle parent = Create();
  Fill(parent, 0, 8);
  const SequenceHandle child = store_.Fork("a", parent, 5, kLease, 0, now_)->handle;
  ASSERT_TRUE(store_.Release("a", parent).ok());
  EXPECT_EQ(pool_.free_pages(), 6);
  ASSERT_TRUE(store_.Release("a", child).ok());
  EXPECT_EQ(pool_.free_pages(), 8);
}

TEST_F(SequenceStoreTest, TruncateDropsTokensOfEveryLayerAndTheirPages) {
  const SequenceHandle handle = Create();
  Fill(handle, 0, 9);
  ASSERT_TRUE(Append(handle, 0, 9, 4).ok());
  EXPECT_EQ(store_.Truncate("a", handle, 14, now_).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(store_.Truncate("a", handle, -1, now_).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(store_.Truncate("a", handle, 10, now_)->lengths, ElementsAre(10, 9));
  EXPECT_EQ(pool_.free_pages(), 5);
  EXPECT_THAT(store_.Truncate("a", handle, 5, now_)->lengths, ElementsAre(5, 5));
  EXPECT_EQ(store_.Truncate("a", handle, 5, now_)->num_pages, 2);
  EXPECT_EQ(pool_.free_pages(), 6);
  EXPECT_EQ(store_.Truncate("a", handle, 0, now_)->num_pages, 0);
  EXPECT_EQ(pool_.free_pages(), 8);
  EXPECT_TRUE(Append(handle, 0, 0, 1).ok());
}

TEST_F(SequenceStoreTest, APeekTellsOfTruncationsAndRenewsNoLease) {
  const SequenceHandle handle = Create();
  Fill(handle, 0, 6);
  const auto peek = [&](absl::Time now) {
    SequenceStore::Batch batch(&store_, now);
    ReadPlan plan;
    EXPECT_TRUE(batch.Peek("a", handle, 1, &plan).ok());
    return plan;
  };
  const ReadPlan before = peek(now_);
  EXPECT_EQ(before.length, 6);
  EXPECT_EQ(before.page_table.size(), 2U);
  Fill(handle, 6, 3);
  EXPECT_EQ(peek(now_).truncations, before.truncations);
  ASSERT_TRUE(store_.Truncate("a", handle, 9, now_).ok());
  EXPECT_EQ(peek(now_).truncations, before.truncations) << "no token was dropped";
  ASSERT_TRUE(store_.Truncate("a", handle, 8, now_).ok());
  Fill(handle, 8, 1);
  EXPECT_NE(peek(now_).truncations, before.truncations);
  {
    SequenceStore::Batch batch(&store_, now_);
    ReadPlan plan;
    EXPECT_EQ(batch.Peek("b", handle, 0, &plan).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(batch.Peek("a", handle, 2, &plan).code(), absl::StatusCode::kInvalidArgument);
  }
  peek(now_ + kLease - absl::Seconds(1));
  EXPECT_EQ(store_.Expire(now_ + kLease), 1);
}

TEST_F(SequenceStoreTest, StaleAndForeignHandlesAreNotFound) {
  const SequenceHandle handle = Create();
  Fill(handle, 0, 1);
  const SequenceHandle other_generation = {handle.id, handle.generation + 1};
  const SequenceHandle other_id = {handle.id + 1, handle.generation};
  const auto expect_not_found = [this](std::string_view tenant, const SequenceHandle& h) {
    const auto not_found = absl::StatusCode::kNotFound;
    EXPECT_EQ(store_.Get(tenant, h, now_).status().code(), not_found);
    EXPECT_EQ(store_.Fork(tenant, h, 0, kLease, 0, now_).status().code(), not_found);
    EXPECT_EQ(store_.Truncate(tenant, h, 0, now_).status().code(), not_found);
    EXPECT_EQ(store_.Release(tenant, h).code(), not_found);
    SequenceStore::Batch batch(&store_, now_);
    ReadPlan read;
    AppendPlan append;
    std::vector<int32_t> table;
    const TokenRange range = {.tenant = tenant, .handle = h, .layer = 0, .position = 0, .count = 1};
    EXPECT_EQ(batch.Read(tenant, h, 0, &read).code(), not_found);
    EXPECT_EQ(batch.FindRepeated(range, &table).status().code(), not_found);
    EXPECT_EQ(batch.Append(range, 1, &append).code(), not_found);
  };
  expect_not_found("b", handle);
  expect_not_found("a", other_generation);
  expect_not_found("a", other_id);
  EXPECT_EQ(Get(handle).num_tokens(), 1);
  ASSERT_TRUE(store_.Release("a", handle).ok());
  expect_not_found("a", handle);
}

TEST_F(SequenceStoreTest, AFullPoolLeavesEverythingAsItWas) {
  const SequenceHandle parent = Create();
  Fill(parent, 0, 26);  // 7 of 8 pages, the last of them half full
  const SequenceHandle child = store_.Fork("a", parent, std::nullopt, kLease, 0, now_)->handle;
  AppendPlan plan;
  // A copy of the shared page and one more: two pages, of which one is free.
  EXPECT_EQ(Append(child, 0, 26, 3, &plan).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(plan.copies.empty());
  EXPECT_EQ(pool_.free_pages(), 1);
  EXPECT_THAT(Get(child).lengths, ElementsAre(26, 26));
  EXPECT_EQ(Read(child, 0).page_table, Read(parent, 0).page_table);
  // What fits still works.
  ASSERT_TRUE(Append(child, 0, 26, 2, &plan).ok());
  EXPECT_EQ(plan.copies.size(), 1);
  EXPECT_EQ(Append(parent, 0, 26, 3, &plan).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(Append(parent, 0, 26, 2, &plan).ok());  // its page is private again
  EXPECT_TRUE(plan.copies.empty());
}

TEST_F(SequenceStoreTest, AnUnusedSequenceExpires) {
  const SequenceHandle handle = Create();
  Fill(handle, 0, 8);
  now_ += kLease - absl::Nanoseconds(1);
  EXPECT_EQ(store_.Expire(now_), 0);
  now_ += absl::Nanoseconds(1);
  // Gone for its tenant at once, and for the pool when it is reaped.
  EXPECT_EQ(store_.Get("a", handle, now_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(store_.List("a", 0, 10, now_).empty());
  EXPECT_EQ(pool_.free_pages(), 6);
  EXPECT_EQ(store_.Expire(now_), 1);
  EXPECT_EQ(pool_.free_pages(), 8);
  EXPECT_EQ(store_.size(), 0);
  EXPECT_EQ(store_.Expire(now_), 0);
}

TEST_F(SequenceStoreTest, EveryUseRenewsTheLease) {
  const SequenceHandle handle = Create();
  const SequenceHandle unused = Create();
  const auto pass = [this] {
    now_ += absl::Seconds(9);
    return store_.Expire(now_);
  };
  EXPECT_EQ(pass(), 0);
  EXPECT_EQ(store_.Get("a", handle, now_)->time_left, kLease);
  EXPECT_EQ(pass(), 1);  // the other one
  ASSERT_TRUE(Append(handle, 0, 0, 1).ok());
  EXPECT_EQ(pass(), 0);
  Read(handle, 0);
  EXPECT_EQ(pass(), 0);
  ASSERT_TRUE(store_.Truncate("a", handle, 0, now_).ok());
  EXPECT_EQ(pass(), 0);
  ASSERT_TRUE(store_.Release("a", store_.Fork("a", handle, 0, kLease, 0, now_)->handle).ok());
  EXPECT_EQ(pass(), 0);
  EXPECT_EQ(store_.List("a", 0, 10, now_).size(), 1);  // no use
  now_ += absl::Seconds(1);
  EXPECT_EQ(store_.Expire(now_), 1);
  EXPECT_EQ(store_.Get("a", unused, now_).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SequenceStoreTest, AClockThatGoesBackShortensNoLease) {
  const SequenceHandle handle = Create();
  now_ -= absl::Seconds(5);
  EXPECT_EQ(Get(handle).time_left, absl::Seconds(15));
}

TEST_F(SequenceStoreTest, ListsATenantsSequencesInOrder) {
  const SequenceHandle one = Create();
  const SequenceHandle two = Create();
  const SequenceHandle foreign = store_.Create("b", kLease, 0, now_)->handle;
  const SequenceHandle three = Create();
  const auto ids = [this](std::string_view tenant, uint64_t after, int limit) {
    std::vector<uint64_t> result;
    for (const SequenceInfo& info : store_.List(tenant, after, limit, now_)) result.push_back(info.handle.id);
    return result;
  };
  EXPECT_THAT(ids("a", 0, 10), ElementsAre(one.id, two.id, three.id));
  EXPECT_THAT(ids("a", 0, 2), ElementsAre(one.id, two.id));
  EXPECT_THAT(ids("a", two.id, 2), ElementsAre(three.id));
  EXPECT_THAT(ids("b", 0, 10), ElementsAre(foreign.id));
  EXPECT_TRUE(ids("c", 0, 10).empty());
  ASSERT_TRUE(store_.Release("a", two).ok());
  EXPECT_THAT(ids("a", one.id, 10), ElementsAre(three.id));
}

}  // namespace
}  // namespace santa
