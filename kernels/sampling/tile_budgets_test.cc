#include "kernels/sampling/tile_budgets.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace santa::sampling {
namespace {

TEST(TileBudgetsTest, FlashBudgetsSumToSAndAreEqual) {
  for (const int64_t begin : {0, 100, 255, 3000}) {
    for (const int64_t tokens : {1, 300, 4096, 33000}) {
      for (const uint32_t draws : {1u, 2u, 50u, 2048u, 40000u}) {
        const Tiling tiling = MakeTiling(begin, begin + tokens, draws);
        int64_t sum = 0;
        for (int64_t tile = 0; tile < tiling.count; ++tile) {
          const uint32_t budget = FlashBudget(tiling, tile, draws);
          EXPECT_GE(budget, 1u);
          EXPECT_NEAR(budget, static_cast<double>(draws) / static_cast<double>(tiling.count), 1.0);
          sum += budget;
        }
        EXPECT_EQ(sum, draws);
      }
    }
  }
}

TEST(TileBudgetsTest, SystematicBudgetsAverageToTheirShare) {
  const std::vector<uint64_t> masses = {5, 0, 1, 20, 0, 3};
  const uint64_t total = 29;
  for (const uint32_t draws : {1u, 4u, 29u, 64u}) {
    const DrawGrid grid = MakeDrawGrid(total, draws);
    std::vector<uint64_t> sums(masses.size(), 0);
    for (uint64_t offset = 0; offset < total; ++offset) {
      std::vector<uint32_t> budgets(masses.size());
      SystematicBudgets(masses.data(), masses.size(), grid, offset, budgets.data());
      EXPECT_EQ(std::accumulate(budgets.begin(), budgets.end(), 0u), draws);
      for (size_t i = 0; i < masses.size(); ++i) sums[i] += budgets[i];
    }
    for (size_t i = 0; i < masses.size(); ++i) EXPECT_EQ(sums[i], draws * masses[i]);
  }
}

// By the definition, with a sort.
std::vector<uint32_t> SortedLargestRemainder(const std::vector<uint64_t>& masses, uint64_t total, uint32_t draws) {
  std::vector<uint32_t> budgets;
  std::vector<uint64_t> remainders;
  for (const uint64_t mass : masses) {
    budgets.push_back(static_cast<uint32_t>(mass * draws / total));
    remainders.push_back(mass * draws % total);
  }
  std::vector<size_t> order(masses.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  const uint32_t left = draws - std::accumulate(budgets.begin(), budgets.end(), 0u);
  for (uint32_t i = 0; i < left; ++i) ++budgets[order[i]];
  return budgets;
}

TEST(TileBudgetsTest, LargestRemainderMatchesItsDefinition) {
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 500; ++trial) {
    const uint64_t limit = uint64_t{1} << (random() % 36 + 1);  // small limits make ties
    std::vector<uint64_t> masses(1 + random() % 60);
    for (uint64_t& mass : masses) mass = random() % 4 == 0 ? 0 : random() % limit;
    masses[random() % masses.size()] += 1;
    const uint64_t total = std::accumulate(masses.begin(), masses.end(), uint64_t{0});
    const uint32_t draws = 1 + random() % 500;
    std::vector<uint32_t> budgets(masses.size());
    std::vector<uint64_t> scratch(masses.size());
    LargestRemainderBudgets(masses.data(), masses.size(), total, draws, budgets.data(), scratch.data());
    EXPECT_EQ(budgets, SortedLargestRemainder(masses, total, draws)) << "trial " << trial;
    EXPECT_EQ(std::accumulate(budgets.begin(), budgets.end(), 0u), draws);
    for (size_t i = 0; i < masses.size(); ++i) EXPECT_TRUE(masses[i] > 0 || budgets[i] == 0);
  }
}

TEST(TileBudgetsTest, LargestRemainderGivesTiesToTheLowerIndex) {
  const std::vector<uint64_t> masses = {1, 1, 1, 1};
  std::vector<uint32_t> budgets(4);
  std::vector<uint64_t> scratch(4);
  LargestRemainderBudgets(masses.data(), 4, 4, 6, budgets.data(), scratch.data());
  EXPECT_EQ(budgets, (std::vector<uint32_t>{2, 2, 1, 1}));
}

}  // namespace
}  // namespace santa::sampling
