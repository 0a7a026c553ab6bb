#include "kernels/sampling/draws.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace santa::sampling {
namespace {

std::vector<uint64_t> Cumulative(const std::vector<uint64_t>& masses) {
  std::vector<uint64_t> sums(masses.size());
  std::partial_sum(masses.begin(), masses.end(), sums.begin());
  return sums;
}

std::vector<uint32_t> CursorCounts(const std::vector<uint64_t>& cumulative, const DrawGrid& grid, uint64_t offset) {
  std::vector<uint32_t> counts;
  SystematicCursor cursor(grid, offset);
  for (const uint64_t sum : cumulative) {
    uint32_t count = 0;
    for (; cursor.position() < sum; cursor.Advance()) ++count;
    counts.push_back(count);
  }
  return counts;
}

// Small enough to try every offset: the average over them is the expectation, to the last bit.
TEST(DrawsTest, SystematicCountsAreUnbiasedFloorOrCeilAndSumToS) {
  const std::vector<std::vector<uint64_t>> cases = {{1}, {5}, {1, 1, 1}, {7, 0, 2, 0, 1}, {0, 0, 9, 30, 0}, {3, 50, 4}};
  for (const auto& masses : cases) {
    const std::vector<uint64_t> cumulative = Cumulative(masses);
    const uint64_t total = cumulative.back();
    for (const uint32_t draws : {1u, 2u, 3u, 7u, 16u, 100u}) {
      const DrawGrid grid = MakeDrawGrid(total, draws);
      std::vector<uint64_t> sums(masses.size(), 0);
      for (uint64_t offset = 0; offset < total; ++offset) {
        const std::vector<uint32_t> counts = CursorCounts(cumulative, grid, offset);
        EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), 0u), draws);
        for (size_t i = 0; i < masses.size(); ++i) {
          EXPECT_GE(counts[i], draws * masses[i] / total);
          EXPECT_LE(counts[i], (draws * masses[i] + total - 1) / total);
          sums[i] += counts[i];
        }
      }
      for (size_t i = 0; i < masses.size(); ++i) EXPECT_EQ(sums[i], draws * masses[i]) << "row " << i;
    }
  }
}

// The three ways to the same systematic draw agree, from tiny totals to the largest that are allowed.
TEST(DrawsTest, CursorPositionsAndCountsAgree) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    const uint64_t row_limit = uint64_t{1} << (random() % 55 + 1);
    std::vector<uint64_t> masses(1 + random() % 100);
    for (uint64_t& mass : masses) mass = random() % 3 == 0 ? 0 : random() % row_limit;
    masses[random() % masses.size()] += 1;
    const std::vector<uint64_t> cumulative = Cumulative(masses);
    const DrawGrid grid = MakeDrawGrid(cumulative.back(), 1 + random() % (trial % 10 == 0 ? 1u << 20 : 300u));
    const uint64_t offset = random() % grid.total;
    SystematicCursor cursor(grid, offset);
    for (uint32_t draw = 0; draw < grid.draws; ++draw, cursor.Advance()) {
      ASSERT_EQ(cursor.position(), DrawPosition(grid, draw, offset));
    }
    EXPECT_GE(cursor.position(), grid.total);
    const std::vector<uint32_t> counts = CursorCounts(cumulative, grid, offset);
    uint32_t before = 0;
    for (size_t i = 0; i < masses.size(); ++i) {
      const uint32_t below = SystematicDrawsBelow(grid, cumulative[i], offset);
      EXPECT_EQ(below - before, counts[i]) << "row " << i << " of trial " << trial;
      if (masses[i] == 0) {
        EXPECT_EQ(counts[i], 0u);
      }
      before = below;
    }
    EXPECT_EQ(before, grid.draws);
  }
}

TEST(DrawsTest, CursorStartsAtAnyDraw) {
  for (const uint64_t total : {uint64_t{3}, uint64_t{1000}, (uint64_t{1} << 50) + 77}) {
    const DrawGrid grid = MakeDrawGrid(total, 29);
    const uint64_t offset = total / 3;
    for (uint32_t start = 0; start <= grid.draws; ++start) {
      SystematicCursor cursor(grid, offset, start);
      for (uint32_t draw = start; draw < grid.draws; ++draw, cursor.Advance()) {
        ASSERT_EQ(cursor.position(), DrawPosition(grid, draw, offset)) << "from draw " << start;
      }
      EXPECT_GE(cursor.position(), total);
    }
  }
}

TEST(DrawsTest, LargestTotalDoesNotOverflow) {
  const uint64_t total = uint64_t{1} << 62;
  const DrawGrid grid = MakeDrawGrid(total, 1u << 20);
  EXPECT_EQ(DrawPosition(grid, 0, 0), 0u);
  EXPECT_EQ(DrawPosition(grid, (1u << 20) - 1, total - 1), total - 1);
  EXPECT_EQ(SystematicDrawsBelow(grid, total, total - 1), 1u << 20);
  EXPECT_EQ(SystematicDrawsBelow(grid, 0, 0), 0u);
}

TEST(DrawsTest, StratifiedDrawsStayInTheirStrataAndAscend) {
  std::mt19937_64 random(2);
  for (const uint64_t total : {uint64_t{1}, uint64_t{10}, (uint64_t{1} << 45) + 12345}) {
    const DrawGrid grid = MakeDrawGrid(total, 37);
    uint64_t before = 0;
    for (uint32_t draw = 0; draw < grid.draws; ++draw) {
      const uint64_t position = DrawPosition(grid, draw, random() % total);
      EXPECT_GE(position, DrawPosition(grid, draw, 0));
      EXPECT_LE(position, DrawPosition(grid, draw, total - 1));
      EXPECT_GE(position, before);
      EXPECT_LT(position, total);
      before = position;
    }
  }
}

TEST(DrawsTest, RowAtSkipsRowsWithoutMass) {
  const std::vector<uint64_t> cumulative = {0, 3, 3, 3, 4, 4};
  const std::vector<int64_t> expected = {1, 1, 1, 4};
  for (uint64_t position = 0; position < 4; ++position) {
    EXPECT_EQ(RowAt(cumulative.data(), 6, position), expected[position]);
  }
}

}  // namespace
}  // namespace santa::sampling
