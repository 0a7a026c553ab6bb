#include "kernels/sampling/tiles.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace santa::sampling {
namespace {

TEST(TilesTest, TilesCoverTheVisibleTokensOnce) {
  for (const int64_t begin : {0, 1, 255, 256, 300, 5000}) {
    for (const int64_t tokens : {1, 2, 255, 256, 257, 4096, 100000}) {
      for (const uint32_t draws : {1u, 2u, 3u, 64u, 4096u}) {
        const Tiling tiling = MakeTiling(begin, begin + tokens, draws);
        EXPECT_LE(tiling.count, draws);
        EXPECT_GE(tiling.count, 1);
        int64_t next = begin;
        for (int64_t tile = 0; tile < tiling.count; ++tile) {
          EXPECT_EQ(TileBegin(tiling, tile), next);
          EXPECT_GT(TileEnd(tiling, tile), next);
          EXPECT_EQ(next / tiling.size, tiling.first + tile);
          EXPECT_EQ((TileEnd(tiling, tile) - 1) / tiling.size, tiling.first + tile);
          next = TileEnd(tiling, tile);
        }
        EXPECT_EQ(next, begin + tokens);
      }
    }
  }
}

TEST(TilesTest, TheSizeIsTheSmallestThatGivesEveryTileADraw) {
  EXPECT_EQ(MakeTiling(0, 32768, 2048).size, 256);
  EXPECT_EQ(MakeTiling(0, 32768, 128).size, 256);
  EXPECT_EQ(MakeTiling(0, 32768, 127).size, 512);
  EXPECT_EQ(MakeTiling(0, 1, 1).size, 256);
  // Two visible tokens on either side of a multiple of 256, one draw: only 512 holds both.
  EXPECT_EQ(MakeTiling(255, 257, 1).size, 512);
  EXPECT_EQ(MakeTiling((int64_t{1} << 30) - 1, (int64_t{1} << 30) + 1, 1).count, 1);
}

}  // namespace
}  // namespace santa::sampling
