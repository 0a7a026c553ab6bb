#include "kernels/sampling/inclusion.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace santa::sampling {
namespace {

template <typename Code>
void CodesAreWithinHalfAStep() {
  for (float score = 0; score > -31.8f; score -= 0.0173f) {
    const Code code = EncodeScore<Code>(2.5f, score + 2.5f);
    EXPECT_NEAR(CodeOctaves(code), -score, 0.5f / kStepsPerOctave<Code> + 1e-5f);
    EXPECT_NE(code, kNoWeight<Code>);
  }
  EXPECT_EQ(EncodeScore<Code>(0, 0), 0);
  for (const float none : {-32.0f, -1e30f, -std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(EncodeScore<Code>(0, none), kNoWeight<Code>) << none;
  }
  EXPECT_EQ(EncodeScore<Code>(0, std::numeric_limits<float>::quiet_NaN()), kNoWeight<Code>);
  const float none = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(EncodeScore<Code>(none, none), kNoWeight<Code>);  // inf - inf
}

TEST(InclusionTest, CodesAreWithinHalfAStep) {
  CodesAreWithinHalfAStep<uint8_t>();
  CodesAreWithinHalfAStep<uint16_t>();
}

TEST(InclusionTest, BinsAreOrderedAndHoldWhatTheyClaim) {
  int last = 0;
  for (float a = 0x1p-28f; a < 8; a *= 1.003f) {
    const int bin = InclusionBin(a * a);
    EXPECT_GE(bin, last);
    last = bin;
    const double top = static_cast<double>(BinTop(bin)) * 0x1p-40;
    EXPECT_LE(a, top);
    EXPECT_GT(a * 1.0320, top) << "a bin is 1/16 octave of the square wide";
  }
  EXPECT_EQ(last, kInclusionBins - 1);
  EXPECT_EQ(InclusionBin(0), 0);
  EXPECT_EQ(InclusionBin(0x1p-100f), 0);
  EXPECT_EQ(InclusionBin(0x1p20f), kInclusionBins - 1);
}

// a_i of random sizes, some shapes of them.
std::vector<float> RandomSquares(int64_t rows, double spread, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> a(rows);
  double sum = 0;
  for (double& x : a) sum += x = std::exp(spread * normal(random));
  std::vector<float> squares;
  squares.reserve(a.size());
  for (const double x : a) squares.push_back(static_cast<float>(x * x / sum / sum));
  return squares;
}

InclusionThreshold Solve(const std::vector<float>& squares, uint32_t samples, double floor) {
  std::vector<uint32_t> counts(kInclusionBins, 0);
  for (const float square : squares) ++counts[InclusionBin(square)];
  const auto rows = static_cast<int64_t>(squares.size());
  return SolveThreshold(counts.data(), rows, InclusionBudget(samples, rows), floor);
}

TEST(InclusionTest, SpendsTheSampleAndNoMore) {
  std::mt19937_64 random(1);
  for (const double spread : {0.0, 1.0, 2.5, 5.0, 12.0}) {
    for (const int64_t rows : {2, 100, 5000, 40000}) {
      const std::vector<float> squares = RandomSquares(rows, spread, random);
      for (const uint32_t samples : {1u, 7u, 64u, 2048u}) {
        if (samples >= rows) continue;
        for (const double share : {0.0, kEvenShare}) {
          const InclusionThreshold threshold = Solve(squares, samples, share * samples / static_cast<double>(rows));
          uint64_t sum = 0;
          for (const float square : squares) sum += Inclusion(threshold, square);
          EXPECT_LE(sum, uint64_t{samples} << kInclusionBits) << "spread " << spread << " rows " << rows;
          // Bins stand for their upper edge, 3 % above the least in them; a row that is nearly certain is taken for it.
          // Of so wide a spread as 12 a row below the lowest bin stands for too much.
          const double least = spread < 10 ? 0.94 : 0;
          EXPECT_GE(static_cast<double>(sum), least * samples * kCertain) << "spread " << spread << " rows " << rows;
        }
      }
    }
  }
}

TEST(InclusionTest, ProbabilitiesFollowTheScoresBetweenFloorAndCertainty) {
  std::mt19937_64 random(2);
  const std::vector<float> squares = RandomSquares(3000, 2, random);
  const double floor = 0.01;
  const InclusionThreshold threshold = Solve(squares, 300, floor);
  for (const float square : squares) {
    const double expected = std::min(1.0, threshold.kappa * std::sqrt(static_cast<double>(square)) + floor);
    EXPECT_NEAR(Inclusion(threshold, square) * 0x1p-20, expected, 1e-6);
  }
  EXPECT_EQ(Inclusion({1, 0}, 0), 0u);
  EXPECT_EQ(Inclusion({1, 0}, 1e-30f), 1u) << "a row with any weight may be read";
  EXPECT_EQ(Inclusion({1, 0}, 4), kCertain);
  EXPECT_EQ(Inclusion({1, 0}, std::numeric_limits<float>::quiet_NaN()), 0u);
}

// Fewer rows with weight than samples, or just as many: all are certain, and those without weight stay out.
TEST(InclusionTest, ASampleForAllRowsIsAllRows) {
  for (const float square : {1.0f, 1e-3f, 1e-30f}) {
    std::vector<float> squares(10, square);
    const InclusionThreshold threshold = Solve(squares, 20, 0);
    EXPECT_EQ(Inclusion(threshold, square), kCertain);
    EXPECT_EQ(Inclusion(threshold, 0), 0u);
  }
}

// Row i is read for Inclusion(i) of the 2^20 offsets, and at most S rows are, whatever the offset.
TEST(InclusionTest, EveryOffsetReadsEachRowAsOftenAsItShould) {
  const std::vector<uint32_t> inclusions = {kCertain, 1, 0, kCertain / 3, kCertain, kCertain - 1, 5, kCertain / 2, 0};
  uint64_t total = 0;
  for (const uint32_t inclusion : inclusions) total += inclusion;
  std::vector<uint32_t> read(inclusions.size(), 0);
  for (uint32_t offset = 0; offset < kCertain; ++offset) {
    uint64_t before = 0;
    uint64_t rows = 0;
    for (size_t i = 0; i < inclusions.size(); ++i) {
      const bool included = IsIncluded(before, inclusions[i], offset);
      read[i] += included;
      rows += included;
      before += inclusions[i];
    }
    ASSERT_LE(rows, (total >> kInclusionBits) + 1);
    ASSERT_GE(rows, total >> kInclusionBits);
  }
  EXPECT_EQ(read, inclusions);
}

TEST(InclusionTest, OffsetsAreUniform) {
  constexpr int kDraws = 1 << 14;
  std::vector<int> counts(16, 0);
  for (int position = 0; position < kDraws; ++position) {
    const uint32_t offset = InclusionOffset(MakeRandomStream(3, 5, 2, position, 1));
    ASSERT_LT(offset, kCertain);
    ++counts[offset >> (kInclusionBits - 4)];
  }
  double chi_squared = 0;
  for (const int count : counts) chi_squared += std::pow(count - kDraws / 16.0, 2) / (kDraws / 16.0);
  EXPECT_LT(chi_squared, 50) << "15 degrees of freedom: above with probability 1e-5";
}

}  // namespace
}  // namespace santa::sampling
