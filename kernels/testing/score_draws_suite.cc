// Score draws: what they put in place of a query, against its closed forms; and that everything else is done with that.
// The draws are asked of the backend (DrawnQuery), so that nothing here shares code with it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/estimators.h"
#include "kernels/reference/ternary_query.h"
#include "kernels/testing/backend_suite.h"
#include "kernels/testing/cache.h"
#include "kernels/testing/shapes.h"

namespace santa::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A cache of one layout, and a query of BERNOULLI_QK over tokens of it.
struct Work {
  Work(const BackendUnderTest& backend, const KvLayout& asked, int64_t tokens, uint32_t score_draws, uint64_t seed,
       int options = 0)
      : backend(backend), cache(Cache::Make(backend, backend.Nearest(asked), 80)) {
    if (cache == nullptr) return;
    std::mt19937_64 random(seed);
    sequence = cache->Add(RandomTokens(cache->layout(), tokens, random));
    query = WithOptions(cache->layout(), sequence, {.method = Method::kBernoulliQk, .score_draws = score_draws},
                        options, random);
  }

  // The query with another value stage.
  Query With(const AttentionOptions& method) const {
    Query other = query;
    other.options.method = method.method;
    other.options.sample_count = method.sample_count;
    other.options.budget_rounding = method.budget_rounding;
    return other;
  }

  std::vector<Answer> DecodeSeeds(int count) {
    std::vector<Query> queries(count, query);
    for (int seed = 0; seed < count; ++seed) queries[seed].options.seed = static_cast<uint64_t>(seed);
    return cache->Decode(queries);
  }

  // With the drawn query in place of its own, the answer is the method's.
  void ExpectAnswerOfDrawnQuery(Query asked) {
    asked.drawn_q = DrawnQuery(*cache, asked);
    ExpectEstimate(Describe(cache->layout()) + ", " + Describe(asked), backend, *cache, asked,
                   cache->Decode({asked})[0], 12);
  }

  const BackendUnderTest& backend;
  std::unique_ptr<Cache> cache;
  Sequence sequence;
  Query query;
};

constexpr KvLayout kSmall = {.num_layers = 1,
                             .num_query_heads = 6,
                             .num_kv_heads = 2,
                             .head_dim = 16,
                             .page_size = 16,
                             .dtype = DType::kFloat32};

// One visible token, whose score is lse. z-tests of 6 heads and 2 groups: a z of 6 has a false-alarm rate of 5e-8 for
// the whole test. Variances over 4,096 seeds are known to within 3 %. The count of features tells that heads share
// their draws: apart they would read more.
TEST_P(BackendSuite, DrawnScoresHaveTheirMeanAndVariance) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  constexpr int kSeeds = 4096;
  for (const uint32_t draws : {1u, 4u, 32u}) {
    Work work(GetParam(), kSmall, 37, draws, 80);
    ASSERT_NE(work.cache, nullptr);
    work.query.options.window = 1;
    const reference::Step step = work.cache->StepOf(work.query);
    const reference::Output exact = reference::Exact(step);
    const std::vector<Answer> answers = work.DecodeSeeds(kSeeds);
    const int32_t dims = work.cache->layout().head_dim;
    const int32_t kv_heads = work.cache->layout().num_kv_heads;
    for (int32_t h = 0; h < work.cache->layout().num_query_heads; ++h) {
      const auto at = [dims](const std::vector<double>& all, int64_t index) {
        return std::vector<double>(all.begin() + index * dims, all.begin() + (index + 1) * dims);
      };
      const int32_t kv_head = h / work.cache->layout().group_size();
      const double variance =
          reference::DotVariance(at(step.q, h), at(step.k, int64_t{36} * kv_heads + kv_head), draws) / dims;
      double mean = 0;
      double squares = 0;
      for (const Answer& answer : answers) {
        mean += (answer.lse[h] - exact.lse[h]) / kSeeds;
        squares += std::pow(answer.lse[h] - exact.lse[h], 2) / kSeeds;
      }
      EXPECT_NEAR(mean, 0, 6 * std::sqrt(variance / kSeeds) + 1e-5) << Describe(work.query) << " head " << h;
      EXPECT_NEAR(squares / variance, 1, 0.15) << Describe(work.query) << " head " << h;
    }
    double features = 0;
    const auto number = static_cast<int64_t>(SizeOf(work.cache->layout().dtype));
    for (const Answer& answer : answers) {
      const int64_t bytes = answer.statistics.kv_bytes_read - answer.statistics.value_rows_read * dims * number;
      features += static_cast<double>(bytes) / static_cast<double>(number) / kSeeds;
    }
    double expected = 0;
    for (int32_t kv_head = 0; kv_head < kv_heads; ++kv_head) expected += reference::ExpectedFeatures(step, kv_head);
    // Each feature is read or not: a deviation of a half at most.
    EXPECT_NEAR(features, expected, 6 * std::sqrt(kv_heads * dims / 4.0 / kSeeds)) << Describe(work.query);
  }
}

// The mass is what its closed form says, and so above the exact one: a z-test of 6 heads by the sample's own deviation.
TEST_P(BackendSuite, MassOfDrawnScoresIsTooLargeByItsClosedForm) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  constexpr int kSeeds = 4096;
  Work work(GetParam(), kSmall, 300, 24, 81);
  ASSERT_NE(work.cache, nullptr);
  const reference::Step step = work.cache->StepOf(work.query);
  const reference::Output exact = reference::Exact(step);
  const std::vector<Answer> answers = work.DecodeSeeds(kSeeds);
  for (int32_t h = 0; h < work.cache->layout().num_query_heads; ++h) {
    double mean = 0;
    double squares = 0;
    for (const Answer& answer : answers) {
      const double mass = std::exp(answer.lse[h] - exact.lse[h]);
      mean += mass / kSeeds;
      squares += mass * mass / kSeeds;
    }
    const double expected = reference::ExpectedMass(step, h);
    EXPECT_GT(expected, 1.01);
    EXPECT_NEAR(mean, expected, 6 * std::sqrt((squares - mean * mean) / kSeeds)) << "head " << h;
  }
}

// Every shape, storage and io type, window, soft cap and sinks, with each value stage: given the drawn query, the
// answer is the method's for that query.
TEST_P(BackendSuite, AnswersAreThoseOfTheDrawnQuery) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  constexpr uint32_t kDraws[] = {1, 3, 40};
  int index = 0;
  int64_t tokens = 300;
  for (const KvLayout& layout : Layouts(GetParam())) {
    const uint32_t draws = kDraws[index % 3];
    Work work(GetParam(), layout, tokens += 11, draws, static_cast<uint64_t>(index), index);
    ASSERT_NE(work.cache, nullptr);
    for (const AttentionOptions& method : ScoreDrawMethods(GetParam(), draws, 60)) {
      // All methods on one layout in seven; on each other one of them, and BERNOULLI_QK.
      if (index % 7 == 0 || method.method == kAllMethods[1 + index % 6] || method.method == Method::kBernoulliQk) {
        work.ExpectAnswerOfDrawnQuery(work.With(method));
      }
    }
    ++index;
  }
}

TEST_P(BackendSuite, DrawnQueriesOverLengthsAroundPagesAndBlocks) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  for (const int64_t tokens : {1, 2, 15, 16, 17, 255, 256, 257, 513}) {
    for (const uint32_t window : {0u, 1u, 15u, 17u}) {
      Work work(GetParam(), kSmall, tokens, 2, 82, static_cast<int>(tokens));
      ASSERT_NE(work.cache, nullptr);
      work.query.options.window = window;
      work.ExpectAnswerOfDrawnQuery(work.query);
    }
  }
}

// With as many samples as tokens the value stage is exact, and the scores are drawn as ever.
TEST_P(BackendSuite, AsManySamplesAsTokensLeaveTheScoreDraws) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  Work work(GetParam(), kSmall, 100, 2, 83);
  ASSERT_NE(work.cache, nullptr);
  const Answer expected = work.cache->Decode({work.query})[0];
  for (const AttentionOptions& method : ScoreDrawMethods(GetParam(), 2, 100)) {
    const Query query = work.With(method);
    ExpectIdentical(Describe(query), work.cache->Decode({query})[0], expected);
  }
}

// Queries that a draw leaves as they are: of zeros (which reads no key at all), of one feature, of features of one
// size.
TEST_P(BackendSuite, QueriesWithoutChanceAreExact) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  Work work(GetParam(), kSmall, 100, 1, 84);
  ASSERT_NE(work.cache, nullptr);
  const auto size = static_cast<int64_t>(work.query.q.size());
  const int64_t dims = work.cache->layout().head_dim;
  std::vector<std::vector<double>> exact(3, std::vector<double>(size, 0.0));
  for (int64_t at = 0; at < size; ++at) {
    if (at % dims == at / dims) exact[1][at] = -1.75;
    exact[2][at] = at % 3 == 0 ? 0.5 : -0.5;
  }
  const int64_t feature = int64_t{100} * static_cast<int64_t>(SizeOf(work.cache->layout().dtype));
  const int64_t values = 2 * dims * feature;
  const int64_t features[] = {0, 6, 2 * dims};
  for (int i = 0; i < 3; ++i) {
    work.query.q = exact[i];
    work.query.drawn_q = exact[i];
    const Answer answer = work.cache->Decode({work.query})[0];
    ExpectEstimate(Describe(work.query), GetParam(), *work.cache, work.query, answer, 0);
    EXPECT_EQ(answer.statistics.kv_bytes_read, values + features[i] * feature);
  }
}

// Features that no draw took are NaN in every key of their key/value head.
TEST_P(BackendSuite, FeaturesThatWereNotDrawnAreNotRead) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    KvLayout layout = kSmall;
    layout.dtype = dtype;
    Work work(GetParam(), layout, 290, 1, 85);
    ASSERT_NE(work.cache, nullptr);
    Query drawn = work.query;
    drawn.drawn_q = DrawnQuery(*work.cache, work.query);
    const int32_t dims = work.cache->layout().head_dim;
    const int32_t kv_heads = work.cache->layout().num_kv_heads;
    Tokens poisoned = work.sequence.tokens;
    int unread = 0;
    for (int32_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
      const std::vector<bool> read = FeaturesRead(work.cache->StepOf(drawn), kv_head);
      for (int32_t j = 0; j < dims; ++j) {
        if (read[j]) continue;
        ++unread;
        for (int64_t i = 0; i < poisoned.count; ++i) poisoned.k[(i * kv_heads + kv_head) * dims + j] = kNan;
      }
    }
    ASSERT_GT(unread, 0);
    for (const AttentionOptions& method : ScoreDrawMethods(GetParam(), 1, 30)) {
      const Query query = work.With(method);
      work.cache->Overwrite(work.sequence, 0, work.sequence.tokens);
      const Answer clean = work.cache->Decode({query})[0];
      work.cache->Overwrite(work.sequence, 0, poisoned);
      ExpectIdentical(Describe(query), work.cache->Decode({query})[0], clean);
    }
  }
}

// Tokens before the window and after the query's position are NaN, as is all that no token was stored in.
TEST_P(BackendSuite, DrawnQueriesNeverUseInvisibleTokens) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  for (const AttentionOptions& method : ScoreDrawMethods(GetParam(), 3, 30)) {
    Work work(GetParam(), kSmall, 900, 3, 86);
    ASSERT_NE(work.cache, nullptr);
    work.cache->Overwrite(work.sequence, 0, PoisonTokens(work.cache->layout(), 300));
    work.cache->Overwrite(work.sequence, 801, PoisonTokens(work.cache->layout(), 99));
    Query query = work.With(method);
    query.num_tokens = 801;
    query.options.window = 501;
    work.ExpectAnswerOfDrawnQuery(query);
  }
}

TEST_P(BackendSuite, DrawnQueriesOfHugeNumbersStayFinite) {
  if (GetParam().key_order != KeyOrder::kFeatureMajor) GTEST_SKIP() << "keys are token-major";
  for (const double sign : {1.0, -1.0}) {
    Work work(GetParam(), kSmall, 300, 3, 87);
    ASSERT_NE(work.cache, nullptr);
    for (double& q : work.query.q) q = 1e30 * std::abs(q);
    Tokens tokens = work.sequence.tokens;
    for (double& k : tokens.k) k = sign * 1e30;
    work.cache->Overwrite(work.sequence, 0, tokens);
    const Answer answer = work.cache->Decode({work.query})[0];
    for (const float lse : answer.lse) EXPECT_TRUE(std::isfinite(lse)) << sign;
    for (const double o : answer.o) EXPECT_TRUE(std::isfinite(o)) << sign;
  }
}

}  // namespace
}  // namespace santa::testing
