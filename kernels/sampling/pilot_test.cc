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
  std::vector<double> sums(scores.size());
  const auto weigh = [&](const auto& times_of) {
    for (int i = 0; i < kPilotSlices; ++i) {
      const PilotSlice pilot = MakePilotSlice(0, static_cast<int32_t>(tokens / kSliceTokens), i);
      const int64_t from = int64_t{pilot.slice} * kSliceTokens;
      std::fill_n(times.begin() + from, kSliceTokens, times_of(pilot.stands_for, from));
    }
    std::vector<double> of_all;
    for (const std::vector<double>& head : scores) {
      double sum = 0;
      for (int64_t i = 0; i < tokens; ++i) sum += times[i] * std::exp(head[i]);
      of_all.push_back(sum);
    }
    sums = of_all;
  };
  weigh([](int32_t stands_for, int64_t) { return stands_for; });
  weigh([&](int32_t stands_for, int64_t from) {
    double share = 0;
    for (size_t h = 0; h < scores.size(); ++h) {
      double sum = 0;
      for (int64_t i = from; i < from + kSliceTokens; ++i) sum += std::exp(scores[h][i]);
      share = std::max(share, sum / sums[h]);
    }
    return PilotTimes(stands_for, static_cast<float>(share));
  });
  std::vector<double> squares(tokens, 0.0);
  for (size_t h = 0; h < scores.size(); ++h) {
    for (int64_t i = 0; i < tokens; ++i) squares[i] += std::pow(std::exp(scores[h][i]) / sums[h], 2);
  }
  std::vector<uint32_t> counts(kInclusionBins, 0);
  int64_t rows_counted = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    counts[InclusionBin(static_cast<float>(squares[i]))] += times[i];
    rows_counted += times[i];
  }
  const InclusionThreshold threshold = SolveThreshold(counts.data(), rows_counted, InclusionBudget(samples, tokens),
                                                      kEvenShare * samples / static_cast<double>(rows_counted));
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

TEST(Pilot, ASliceCountsForNoMoreThanAQuarter) {
  EXPECT_EQ(PilotTimes(10, 0.0f), 10);
  EXPECT_EQ(PilotTimes(10, 0.025f), 10);
  EXPECT_EQ(PilotTimes(10, 0.06f), 4);
  EXPECT_EQ(PilotTimes(10, 0.5f), 1);
  EXPECT_EQ(PilotTimes(1, 0.9f), 1);
}

// Half of a head's attention goes to one slice, which is the pilot's: rows are not spent on others like it.
TEST(Pilot, APhraseThatThePilotMeetsIsNoMeasureOfTheRest) {
  std::mt19937_64 random(2);
  std::vector<std::vector<double>> scores = MakeScores(131072, 1.5, false, random);
  const PilotSlice met = MakePilotSlice(0, 131072 / kSliceTokens, 50);
  ASSERT_GT(met.stands_for, 50);
  scores.resize(1);
  for (int64_t i = 0; i < kSliceTokens; ++i) scores[0][int64_t{met.slice} * kSliceTokens + i] = 10;
  EXPECT_NEAR(ShareOfRows(scores, 2048), 1, 0.35);
}

}  // namespace
}  // namespace santa::sampling
