#include "kernels/sampling/pilot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace santa::sampling {
namespace {

TEST(Pilot, SlicesAreInOrderAndStandForAll) {
  for (const int32_t first : {0, 7, 100000}) {
    for (const int32_t count : {129, 130, 238, 240, 2048, 2049, 65536, 1 << 27}) {
      int64_t stood_for = 0;
      int32_t before = first - 1;
      for (int i = 0; i < kPilotSlices; ++i) {
        const PilotSlice pilot = MakePilotSlice(first, count, i);
        ASSERT_GT(pilot.slice, before) << count << " slices, the " << i << "th";
        // It is one of those that it stands for.
        ASSERT_GE(pilot.slice, first + stood_for);
        stood_for += pilot.stands_for;
        ASSERT_LT(pilot.slice, first + stood_for);
        before = pilot.slice;
      }
      EXPECT_EQ(stood_for, count);
      EXPECT_EQ(MakePilotSlice(first, count, 0).slice, first);
      for (int i = 1; i <= kPilotTail; ++i) {
        EXPECT_EQ(MakePilotSlice(first, count, kPilotSlices - i).slice, first + count - i);
      }
    }
  }
}

// A pattern in the tokens meets the pilot at any phase.
TEST(Pilot, ChoosesAnyPlaceOfAStretch) {
  constexpr int kStretches = kPilotSlices - kPilotTail - 1, kLength = 16;
  std::set<int32_t> places;
  for (int i = 1; i <= kStretches; ++i) {
    const int32_t stretch = 1 + kLength * (i - 1);
    places.insert(MakePilotSlice(0, kStretches * kLength + 1 + kPilotTail, i).slice - stretch);
  }
  EXPECT_EQ(places.size(), 16u);
}

TEST(Pilot, RunsDrawIndependently) {
  const RandomStream stream = MakeRandomStream(1, 2, 3, 4, 5);
  std::set<uint32_t> offsets = {InclusionOffset(stream), InclusionOffset(stream, 1)};
  for (uint32_t run = 0; run < 100; ++run) {
    const uint32_t offset = RunOffset(stream, run);
    EXPECT_LT(offset, kCertain);
    EXPECT_EQ(offset, RunOffset(stream, run));
    offsets.insert(offset);
  }
  EXPECT_GE(offsets.size(), 100u);
}

// Scores of a group of four heads, of standard deviation `sigma`: 60 % of the variance is common to the heads. By
// stretches, half of it is common to 256 tokens too, as in a text that keeps to a subject.
std::vector<std::vector<double>> MakeScores(int64_t tokens, double sigma, bool by_stretches, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<std::vector<double>> scores(4, std::vector<double>(tokens));
  double stretch = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    if (i % 256 == 0) stretch = normal(random);
    const double common = normal(random);
    for (std::vector<double>& head : scores) {
      head[i] = sigma * (std::sqrt(0.6) * common + std::sqrt(0.4) * normal(random));
      if (by_stretches) head[i] = std::sqrt(0.5) * (head[i] + sigma * stretch);
    }
  }
  return scores;
}

// What all pi sum to by the pilot's threshold, over S.
double ShareOfRows(const std::vector<std::vector<double>>& scores, uint32_t samples) {
  const auto tokens = static_cast<int64_t>(scores[0].size());
  std::vector<int32_t> times(tokens, 0);
  for (int i = 0; i < kPilotSlices; ++i) {
    const PilotSlice pilot = MakePilotSlice(0, static_cast<int32_t>(tokens / kSliceTokens), i);
    std::fill_n(times.begin() + int64_t{pilot.slice} * kSliceTokens, kSliceTokens, pilot.stands_for);
  }
  std::vector<double> squares(tokens, 0.0);
  for (const std::vector<double>& head : scores) {
    double sum = 0;
    for (int64_t i = 0; i < tokens; ++i) sum += times[i] * std::exp(head[i]);
    for (int64_t i = 0; i < tokens; ++i) squares[i] += std::pow(std::exp(head[i]) / sum, 2);
  }
  std::vector<uint32_t> counts(kInclusionBins, 0);
  for (int64_t i = 0; i < tokens; ++i) counts[InclusionBin(static_cast<float>(squares[i]))] += times[i];
  const InclusionThreshold threshold = SolveThreshold(counts.data(), tokens, InclusionBudget(samples, tokens),
                                                      kEvenShare * samples / static_cast<double>(tokens));
  double rows = 0;
  for (const double square : squares) rows += Inclusion(threshold, static_cast<float>(square));
  return rows / kCertain / samples;
}

// docs/methods.md has the deviations that this finds.
TEST(Pilot, RowsAreAboutTheSampleCount) {
  constexpr int kDraws = 20;
  std::mt19937_64 random(1);
  for (const bool by_stretches : {false, true}) {
    for (const double sigma : {1.5, 2.5, 4.0}) {
      double mean = 0, square = 0;
      for (int draw = 0; draw < kDraws; ++draw) {
        const double share = ShareOfRows(MakeScores(32768, sigma, by_stretches, random), 2048);
        EXPECT_NEAR(share, 1, 0.5) << sigma;
        mean += share / kDraws;
        square += share * share / kDraws;
      }
      const double deviation = std::sqrt(square - mean * mean);
      EXPECT_NEAR(mean, 1, by_stretches ? 0.1 : 0.05) << sigma;
      EXPECT_LT(deviation, by_stretches ? 0.2 : 0.1) << sigma;
      RecordProperty(std::string(by_stretches ? "stretches" : "independent") + " sigma " + std::to_string(sigma),
                     "mean " + std::to_string(mean) + ", deviation " + std::to_string(deviation));
    }
  }
}

}  // namespace
}  // namespace santa::sampling
