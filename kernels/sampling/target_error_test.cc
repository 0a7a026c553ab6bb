#include "kernels/sampling/target_error.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace santa::sampling {
namespace {

// Rows of two heads, and what they are summed up to.
struct Rows {
  explicit Rows(double spread) : counts(kInclusionBins, 0), spreads(2 * kInclusionBins, 0.0f) {
    std::mt19937_64 random(1);
    std::normal_distribution<double> normal;
    std::vector<double> p[2];
    double sums[2] = {0, 0};
    for (int i = 0; i < kCount; ++i) {
      for (int h = 0; h < 2; ++h) sums[h] += p[h].emplace_back(std::exp(spread * normal(random)));
    }
    for (int i = 0; i < kCount; ++i) {
      double square = 0;
      for (int h = 0; h < 2; ++h) square += std::pow(p[h][i] /= sums[h], 2);
      const int bin = InclusionBin(static_cast<float>(square));
      ++counts[bin];
      for (int h = 0; h < 2; ++h) spreads[h * kInclusionBins + bin] += static_cast<float>(p[h][i] * p[h][i]);
    }
  }

  static constexpr int kCount = 20000;
  std::vector<uint32_t> counts;
  std::vector<float> spreads;
};

TEST(TargetErrorTest, ReadsAsManyRowsAsTheLimitTakes) {
  for (const double spread : {1.0, 2.5}) {
    const Rows rows(spread);
    for (const double share : {0.0, kEvenShare}) {
      const InclusionThreshold at = ThresholdAt(1000, share, rows.counts.data(), Rows::kCount);
      double limits[2];
      for (int h = 0; h < 2; ++h) limits[h] = Spread(at, rows.counts.data(), &rows.spreads[h * kInclusionBins]);
      limits[1] *= 2;  // the first head is the one that binds
      const InclusionThreshold found =
          SolveTarget(rows.counts.data(), Rows::kCount, rows.spreads.data(), 2, limits, share);
      EXPECT_NEAR(RowsAt(found, rows.counts.data()) / RowsAt(at, rows.counts.data()), 1, 0.02);
      EXPECT_LE(Spread(found, rows.counts.data(), rows.spreads.data()), 1.0001 * limits[0]);
    }
  }
}

TEST(TargetErrorTest, ReadsAllWhereThatIsCheaper) {
  const Rows rows(1);
  const double limits[2] = {1e-12, 1e-12};
  for (const double share : {0.0, kEvenShare}) {
    const InclusionThreshold found =
        SolveTarget(rows.counts.data(), Rows::kCount, rows.spreads.data(), 2, limits, share);
    EXPECT_EQ(Inclusion(found, 1e-20f), kCertain);
    // With an even share there is no row that may be left out.
    EXPECT_EQ(Inclusion(found, 0), share > 0 ? kCertain : 0);
  }
}

TEST(TargetErrorTest, AHeadThatIsNoNumberHasNoSay) {
  const Rows rows(2);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double limits[2] = {1e-3, nan};
  const double alone[2] = {1e-3, std::numeric_limits<double>::infinity()};
  const auto rows_at = [&](const double* of) {
    return RowsAt(SolveTarget(rows.counts.data(), Rows::kCount, rows.spreads.data(), 2, of, 0), rows.counts.data());
  };
  EXPECT_EQ(rows_at(limits), rows_at(alone));
}

}  // namespace
}  // namespace santa::sampling
