#include "kernels/cuda/decode_plan.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <utility>
#include <vector>

namespace santa::cuda {
namespace {

constexpr KvLayout kLayout = {.num_query_heads = 8, .num_kv_heads = 2, .head_dim = 64, .page_size = 64};

constexpr Kernel kCut[] = {Kernel::kExact,        Kernel::kS2antaFlash, Kernel::kS2antaProp,
                           Kernel::kStoredScores, Kernel::kAllRows,     Kernel::kSketchedOnePass};

TEST(DecodePlanTest, SplitsGrowWithTheVisibleTokens) {
  KvLayout large_groups_of_bytes = kLayout;
  large_groups_of_bytes.num_kv_heads = 1;
  large_groups_of_bytes.dtype = DType::kFloat8E4M3;
  for (const KvLayout& layout : {kLayout, large_groups_of_bytes}) {
    for (const Kernel kernel : kCut) {
      int32_t before = 0;
      for (const int32_t visible : {1, 512, 4096, 4097, 8193, 32768, 131072, 1 << 20, 1 << 30}) {
        const int32_t tokens = CutSplits(kernel, layout, 0, visible).tokens;
        EXPECT_GE(tokens, before);
        before = tokens;
      }
    }
  }
}

int32_t BeginOf(const Splits& splits, int32_t i) { return i == 0 ? splits.begin : splits.EndOf(i - 1); }

TEST(DecodePlanTest, SplitsCoverTheVisibleTokensAndNoMore) {
  for (const int64_t tokens : {1, 255, 256, 257, 4096, 5000, 70000, 200001}) {
    for (const uint32_t window : {0u, 1u, 300u, 4097u, 250000u}) {
      for (const Kernel kernel : kCut) {
        const ItemPlan plan = PlanItem({.num_tokens = tokens, .options = {.window = window}}, kLayout);
        EXPECT_EQ(plan.end, tokens);
        EXPECT_EQ(plan.visible(), window == 0 || window > tokens ? tokens : window);
        const Splits splits = CutSplits(kernel, kLayout, plan.begin, plan.end);
        EXPECT_EQ(splits.EndOf(splits.count - 1), plan.end);
        for (int32_t i = 0; i < splits.count; ++i) {
          const int32_t begin = BeginOf(splits, i);
          EXPECT_LT(begin, splits.EndOf(i));
          EXPECT_LE(splits.EndOf(i) - begin, splits.tokens);
          if (i > 0) {
            EXPECT_EQ(begin % (kernel == Kernel::kExact ? 16 : 256), 0);
          }
        }
      }
    }
  }
}

TEST(DecodePlanTest, FeatureMajorKeysAreScoredBeforeAllElse) {
  KvLayout layout = kLayout;
  layout.key_order = KeyOrder::kFeatureMajor;
  const auto plan = [&](Method method, uint32_t samples, uint32_t score_draws) {
    return PlanItem(
        {.num_tokens = 5000, .options = {.method = method, .sample_count = samples, .score_draws = score_draws}},
        layout);
  };
  for (const ItemPlan& all : {plan(Method::kExact, 0, 0), plan(Method::kBernoulliQk, 0, 9),
                              plan(Method::kSystematic, 5000, 0), plan(Method::kCoordinated, 5000, 9)}) {
    EXPECT_EQ(all.kernel, Kernel::kAllRows);
    EXPECT_EQ(all.sample_count, 0U);
  }
  EXPECT_EQ(plan(Method::kS2antaFlash, 20, 0).kernel, Kernel::kStoredScores);
  EXPECT_EQ(plan(Method::kS2antaProp, 20, 9).kernel, Kernel::kStoredScores);
  EXPECT_EQ(plan(Method::kCoordinated, 4999, 9).kernel, Kernel::kCoordinated);
  EXPECT_EQ(plan(Method::kCoordinated, 4999, 9).score_draws, 9U);
}

TEST(DecodePlanTest, EachMethodHasItsKernel) {
  const auto kernel = [](Method method, uint32_t samples, int64_t tokens, uint32_t window = 0) {
    return PlanItem({.num_tokens = tokens, .options = {.method = method, .sample_count = samples, .window = window}},
                    kLayout)
        .kernel;
  };
  EXPECT_EQ(kernel(Method::kExact, 0, 5000), Kernel::kExact);
  EXPECT_EQ(kernel(Method::kSystematic, 5000, 5000), Kernel::kExact);
  EXPECT_EQ(kernel(Method::kSystematic, 4999, 5000), Kernel::kStoredScores);
  EXPECT_EQ(kernel(Method::kSystematic, 4999, 50000, 4999), Kernel::kExact);
  EXPECT_EQ(kernel(Method::kS2antaFlash, 20, 5000), Kernel::kS2antaFlash);
  EXPECT_EQ(kernel(Method::kS2antaFlash, 19, 5000), Kernel::kStoredScores);  // 20 tiles: they must be larger
  EXPECT_EQ(kernel(Method::kS2antaProp, 20, 5000), Kernel::kS2antaProp);
  EXPECT_EQ(kernel(Method::kS2antaProp, 19, 5000), Kernel::kStoredScores);
  const AttentionOptions published = {
      .method = Method::kS2antaProp, .sample_count = 20, .budget_rounding = BudgetRounding::kLargestRemainder};
  EXPECT_EQ(PlanItem({.num_tokens = 5000, .options = published}, kLayout).kernel, Kernel::kStoredScores);
  EXPECT_EQ(
      PlanItem({.num_tokens = 10, .options = {.method = Method::kSanta, .sample_count = 10}}, kLayout).sample_count,
      0u);
}

TEST(DecodePlanTest, APilotIsOfManyTokensOfUsualShapes) {
  const auto kernel = [](KvLayout layout, int64_t tokens, const AttentionOptions& options) {
    return PlanItem({.num_tokens = tokens, .options = options}, layout).kernel;
  };
  KvLayout layout = kLayout;
  layout.sketch = Sketch::kK4;
  const AttentionOptions sketched = {.method = Method::kSketched, .sample_count = 32};
  EXPECT_EQ(kernel(layout, 16383, sketched), Kernel::kSketched);
  EXPECT_EQ(kernel(layout, 16384, sketched), Kernel::kSketchedOnePass);
  AttentionOptions other = sketched;
  other.method = Method::kCoordinated;
  EXPECT_EQ(kernel(layout, 32767, other), Kernel::kCoordinated);
  EXPECT_EQ(kernel(layout, 32768, other), Kernel::kCoordinatedOnePass);
  other = sketched;
  other.window = 16383;
  EXPECT_EQ(kernel(layout, 50000, other), Kernel::kSketched);
  other = sketched;
  other.sample_count = 31;
  EXPECT_EQ(kernel(layout, 50000, other), Kernel::kSketched);
  other = {.method = Method::kSketched, .target_relative_error = 0.1f};
  EXPECT_EQ(kernel(layout, 50000, other), Kernel::kSketched);
  KvLayout unusual = layout;
  unusual.sketch = Sketch::kK4V4;
  EXPECT_EQ(kernel(unusual, 50000, sketched), Kernel::kSketchedOnePass);
  unusual.page_size = 32;
  EXPECT_EQ(kernel(unusual, 50000, sketched), Kernel::kSketched);
  unusual = layout;
  unusual.sketch = Sketch::kK8V8;
  EXPECT_EQ(kernel(unusual, 50000, sketched), Kernel::kSketchedOnePass);
  unusual.num_query_heads = 5 * layout.num_kv_heads;
  EXPECT_EQ(kernel(unusual, 50000, sketched), Kernel::kSketched);
  other = sketched;
  other.method = Method::kCoordinated;
  EXPECT_EQ(kernel(unusual, 50000, other), Kernel::kCoordinatedOnePass);
  unusual = layout;
  unusual.head_dim = 256;
  EXPECT_EQ(kernel(unusual, 50000, sketched), Kernel::kSketched);
  unusual = layout;
  unusual.num_query_heads = 9 * layout.num_kv_heads;
  EXPECT_EQ(kernel(unusual, 50000, sketched), Kernel::kSketched);
}

TEST(DecodePlanTest, UnitsOfAPilotComeInFours) {
  KvLayout layout = kLayout;
  layout.sketch = Sketch::kK4;
  std::vector<ItemPlan> plans;
  int32_t units = 0;
  for (const int64_t tokens : {16384, 20000, 33000}) {  // 16, 20 and 17 splits
    plans.push_back(
        PlanItem({.num_tokens = tokens, .options = {.method = Method::kSketched, .sample_count = 64}}, layout));
    ASSERT_EQ(plans.back().kernel, Kernel::kSketchedOnePass);
    units += plans.back().num_units();
  }
  EXPECT_EQ(units, 16 + 20 + 20);
  std::vector<WorkUnit> work(units);
  std::vector<int32_t> order;
  std::array<WorkRange, kNumKernels> ranges;
  OrderWork(plans, order, work.data(), ranges);
  EXPECT_EQ(ranges[static_cast<int>(Kernel::kSketchedOnePass)].count, units);
  std::array<int32_t, 3> tokens = {};
  for (int32_t i = 0; i < units; ++i) {
    EXPECT_EQ(work[i].item, work[i / kUnitsOfBlock * kUnitsOfBlock].item);
    EXPECT_EQ(work[i].split % kUnitsOfBlock, i % kUnitsOfBlock);
    EXPECT_EQ(work[i].begin == work[i].end, work[i].split >= plans[work[i].item].splits.count);
    tokens[work[i].item] += work[i].end - work[i].begin;
  }
  EXPECT_EQ(tokens, (std::array<int32_t, 3>{16384, 20000, 33000}));
}

TEST(DecodePlanTest, WorkHasEverySplitOnceLongItemsFirst) {
  const AttentionOptions flash = {.method = Method::kS2antaFlash, .sample_count = 2048};
  std::vector<ItemPlan> plans;
  for (const int64_t tokens : {100, 131072, 600, 5000, 200000, 600}) {
    plans.push_back(PlanItem({.num_tokens = tokens, .options = {}}, kLayout));
    plans.push_back(PlanItem({.num_tokens = tokens, .options = flash}, kLayout));
  }
  int32_t splits = 0;
  for (const ItemPlan& plan : plans) splits += plan.splits.count;
  std::vector<WorkUnit> work(splits);
  std::vector<int32_t> order;
  std::array<WorkRange, kNumKernels> ranges;
  OrderWork(plans, order, work.data(), ranges);
  std::set<std::pair<int32_t, int32_t>> seen;
  int32_t total = 0;
  for (int kernel = 0; kernel < kNumKernels; ++kernel) {
    const WorkRange range = ranges[kernel];
    total += range.count;
    for (int32_t i = range.first; i < range.first + range.count; ++i) {
      const ItemPlan& plan = plans[work[i].item];
      EXPECT_EQ(static_cast<int>(plan.kernel), kernel);
      EXPECT_LT(work[i].split, plan.splits.count);
      EXPECT_EQ(work[i].begin, BeginOf(plan.splits, work[i].split));
      EXPECT_EQ(work[i].end, plan.splits.EndOf(work[i].split));
      EXPECT_TRUE(seen.insert({work[i].item, work[i].split}).second);
      if (i > range.first) {
        EXPECT_GE(plans[work[i - 1].item].visible(), plan.visible());
      }
    }
  }
  EXPECT_EQ(total, splits);
  EXPECT_EQ(ranges[static_cast<int>(Kernel::kStoredScores)].count, 0);
  EXPECT_EQ(work[ranges[0].first].item, 8);
}

}  // namespace
}  // namespace santa::cuda
