#include "kernels/sampling/uniform.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace santa::sampling {
namespace {

void ExpectBlock(PhiloxBlock counter, uint32_t key0, uint32_t key1, PhiloxBlock expected) {
  const PhiloxBlock block = Philox4x32(counter, key0, key1);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(block.word[i], expected.word[i]) << "word " << i;
}

// The known answers that the generator's authors publish (Random123, tests/kat_vectors, "philox4x32 10").
TEST(UniformTest, PhiloxGivesItsPublishedAnswers) {
  ExpectBlock({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  ExpectBlock({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff, 0xffffffff,
              {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  ExpectBlock({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
              {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(UniformTest, FloatsLieBelowOneWhateverTheBits) {
  EXPECT_EQ(UniformFloat(0), 0.0f);
  EXPECT_EQ(UniformFloat(~uint64_t{0}), 1.0f - 0x1p-24f);
  EXPECT_LT(UniformFloat(~uint64_t{0}), 1.0f);
}

TEST(UniformTest, IntegersLieBelowTheirBound) {
  for (const uint64_t bound : {uint64_t{1}, uint64_t{3}, uint64_t{1} << 40, uint64_t{1} << 62}) {
    EXPECT_EQ(UniformBelow(0, bound), 0u);
    EXPECT_EQ(UniformBelow(~uint64_t{0}, bound), bound - 1);
  }
}

TEST(UniformTest, EveryPartOfThePlaceChangesTheNumber) {
  std::set<uint64_t> numbers;
  int places = 0;
  for (const uint64_t seed : {0, 1, 2}) {
    for (const uint64_t sampling_key : {0, 1, 2}) {
      for (const int32_t layer : {0, 1}) {
        for (const int64_t position : {int64_t{0}, int64_t{1}, (int64_t{1} << 31) - 1}) {
          for (const int32_t head : {0, 1}) {
            const RandomStream stream = MakeRandomStream(seed, sampling_key, layer, position, head);
            for (const Purpose purpose : {Purpose::kDraw, Purpose::kBudget, Purpose::kTile, Purpose::kScore}) {
              for (const uint32_t index : {0u, 1u, 2u, 0xffffffffu}) {
                numbers.insert(Random64(stream, purpose, index));
                ++places;
              }
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(numbers.size(), places);
}

TEST(UniformTest, APairHoldsTheNumbersOfItsTwoIndices) {
  const RandomStream stream = MakeRandomStream(7, 8, 9, 10, 11);
  for (uint32_t pair = 0; pair < 4; ++pair) {
    const Random64Pair numbers = RandomPair(stream, Purpose::kDraw, pair);
    EXPECT_EQ(numbers.value[0], Random64(stream, Purpose::kDraw, 2 * pair));
    EXPECT_EQ(numbers.value[1], Random64(stream, Purpose::kDraw, 2 * pair + 1));
  }
}

// Chi-square over 64 cells along each coordinate that a decode walks: seeds, positions, heads and indices. 63 degrees
// of freedom: 126.7 is exceeded with probability 4e-6 a walk; the numbers are fixed, so the test either passes or not.
TEST(UniformTest, NumbersAlongEachCoordinateAreUniform) {
  constexpr int kCells = 64;
  constexpr int kNumbers = kCells * 1024;
  for (int walk = 0; walk < 4; ++walk) {
    std::vector<int> cells(kCells, 0);
    for (int i = 0; i < kNumbers; ++i) {
      const RandomStream stream = MakeRandomStream(walk == 0 ? i : 5, 6, 1, walk == 1 ? i : 100, walk == 2 ? i : 3);
      const float uniform = UniformFloat(Random64(stream, Purpose::kTile, walk == 3 ? i : 0));
      ++cells[static_cast<int>(uniform * kCells)];
    }
    constexpr double kExpected = 1024;
    double chi_square = 0;
    for (const int count : cells) chi_square += std::pow(count - kExpected, 2) / kExpected;
    EXPECT_LT(chi_square, 126.7) << "walk " << walk;
  }
}

}  // namespace
}  // namespace santa::sampling
