#include "server/engine/fallback_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace santa {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();
constexpr Method kMethod = Method::kSystematic;

TEST(FallbackTableTest, FallsBackByTheMeanOfSeveralItemsInTheirLayerAlone) {
  FallbackTable table(0.1, absl::Minutes(1));
  for (int i = 0; i < FallbackTable::kItems - 1; ++i) EXPECT_EQ(table.Add(kMethod, 3, 0.2, kStart), std::nullopt);
  EXPECT_FALSE(table.Contains(kMethod, 3, kStart));
  const std::optional<double> error = table.Add(kMethod, 3, 0.2, kStart);
  ASSERT_TRUE(error.has_value());
  EXPECT_NEAR(*error, 0.2, 1e-12);
  EXPECT_TRUE(table.Contains(kMethod, 3, kStart));
  EXPECT_FALSE(table.Contains(kMethod, 2, kStart));
  EXPECT_FALSE(table.Contains(Method::kSanta, 3, kStart));
  EXPECT_EQ(table.CountLayers(kMethod, kStart), 1);
  EXPECT_EQ(table.CountLayers(Method::kSanta, kStart), 0);
}

TEST(FallbackTableTest, TriesAgainLaterAndForgetsWhatItKnew) {
  FallbackTable table(0.1, absl::Minutes(1));
  for (int i = 0; i < FallbackTable::kItems; ++i) table.Add(kMethod, 0, 0.2, kStart);
  EXPECT_EQ(table.Add(kMethod, 0, 0.2, kStart), std::nullopt) << "it has fallen back already";
  const absl::Time later = kStart + absl::Minutes(1);
  EXPECT_FALSE(table.Contains(kMethod, 0, later));
  EXPECT_EQ(table.CountLayers(kMethod, later), 0);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(table.Add(kMethod, 0, 0.09, later), std::nullopt);
}

// One bad item among good ones is not enough; what went well long ago does not excuse what goes wrong now.
TEST(FallbackTableTest, ItIsARunningMean) {
  FallbackTable table(0.1, absl::Minutes(1));
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(table.Add(kMethod, 0, 0.01, kStart), std::nullopt);
  EXPECT_EQ(table.Add(kMethod, 0, 0.2, kStart), std::nullopt);
  int items = 0;
  while (!table.Add(kMethod, 0, 0.2, kStart).has_value()) ASSERT_LT(++items, 10);
}

TEST(FallbackTableTest, AnAnswerThatIsNoNumberIsEnough) {
  FallbackTable table(0.1, absl::Minutes(1));
  EXPECT_TRUE(table.Add(kMethod, 0, std::nan(""), kStart).has_value());
  EXPECT_TRUE(table.Contains(kMethod, 0, kStart));
}

TEST(FallbackTableTest, WithoutABoundNothingFallsBack) {
  FallbackTable table(0, absl::Minutes(1));
  for (int i = 0; i < 20; ++i) EXPECT_EQ(table.Add(kMethod, 0, 1e9, kStart), std::nullopt);
  EXPECT_FALSE(table.Contains(kMethod, 0, kStart));
}

}  // namespace
}  // namespace santa
