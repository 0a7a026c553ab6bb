#include "kernels/cuda/decode_plan.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <utility>
#include <vector>

namespace santa::cuda {
namespace {

TEST(DecodePlanTest, SplitsGrowWithTheVisibleTokens) {
  const std::pair<int64_t, int32_t> cases[] = {{1, 256},       {512, 256},      {4096, 256},    {4097, 512},
                                               {8192, 512},    {8193, 1024},    {32768, 1024},  {131072, 1024},
                                               {131073, 2048}, {1 << 20, 2048}, {1 << 30, 2048}};
  for (const auto& [visible, tokens] : cases) EXPECT_EQ(SplitTokens(visible), tokens) << visible;
}

TEST(DecodePlanTest, SplitsCoverTheVisibleTokensAndNoMore) {
  for (const int64_t tokens : {1, 255, 256, 257, 4096, 5000, 70000, 200001}) {
    for (const uint32_t window : {0u, 1u, 300u, 4097u, 250000u}) {
      const ItemPlan plan = PlanItem({.num_tokens = tokens, .options = {.window = window}});
      EXPECT_EQ(plan.end, tokens);
      EXPECT_EQ(plan.visible(), window == 0 || window > tokens ? tokens : window);
      EXPECT_EQ(plan.split_tokens % 256, 0);
      const int32_t first = plan.begin / plan.split_tokens;
      EXPECT_GT((first + 1) * plan.split_tokens, plan.begin);
      EXPECT_GE((first + plan.num_splits) * plan.split_tokens, plan.end);
      EXPECT_LT((first + plan.num_splits - 1) * plan.split_tokens, plan.end);
    }
  }
}

TEST(DecodePlanTest, EachMethodHasItsKernel) {
  const auto kernel = [](Method method, uint32_t samples, int64_t tokens, uint32_t window = 0) {
    return PlanItem({.num_tokens = tokens, .options = {.method = method, .sample_count = samples, .window = window}})
        .kernel;
  };
  EXPECT_EQ(kernel(Method::kExact, 0, 5000), Kernel::kExact);
  EXPECT_EQ(kernel(Method::kSystematic, 5000, 5000), Kernel::kExact);
  EXPECT_EQ(kernel(Method::kSystematic, 4999, 5000), Kernel::kStoredScores);
  EXPECT_EQ(kernel(Method::kSystematic, 4999, 50000, 4999), Kernel::kExact);
  EXPECT_EQ(kernel(Method::kS2antaFlash, 20, 5000), Kernel::kS2antaFlash);
  EXPECT_EQ(kernel(Method::kS2antaFlash, 19, 5000), Kernel::kStoredScores);  // 20 tiles: they must be larger
  EXPECT_EQ(kernel(Method::kS2antaProp, 100, 5000), Kernel::kStoredScores);
  EXPECT_EQ(PlanItem({.num_tokens = 10, .options = {.method = Method::kSanta, .sample_count = 10}}).sample_count, 0u);
}

TEST(DecodePlanTest, WorkHasEverySplitOnceLongItemsFirst) {
  const AttentionOptions flash = {.method = Method::kS2antaFlash, .sample_count = 2048};
  std::vector<ItemPlan> plans;
  for (const int64_t tokens : {100, 131072, 600, 5000, 200000, 600}) {
    plans.push_back(PlanItem({.num_tokens = tokens, .options = {}}));
    plans.push_back(PlanItem({.num_tokens = tokens, .options = flash}));
  }
  int32_t splits = 0;
  for (const ItemPlan& plan : plans) splits += plan.num_splits;
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
      EXPECT_LT(work[i].split, plan.num_splits);
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
