// The edges: one token, one page, one draw; a softmax on one row or on all alike; scores at the ends of fp32; and
// caches where whatever must not be read is NaN.
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
#include "kernels/testing/backend_suite.h"
#include "kernels/testing/cache.h"
#include "kernels/testing/shapes.h"

namespace santa::testing {
namespace {

std::vector<AttentionOptions> AllMethods(const BackendUnderTest& backend, uint32_t sample_count) {
  std::vector<AttentionOptions> all = SampledMethods(backend, sample_count, 3);
  all.push_back({});
  return all;
}

KvLayout SmallLayout(const BackendUnderTest& backend, DType dtype = DType::kFloat32) {
  return backend.Nearest(
      {.num_layers = 1, .num_query_heads = 6, .num_kv_heads = 2, .head_dim = 16, .page_size = 16, .dtype = dtype});
}

bool AllFinite(const Answer& answer) {
  return std::all_of(answer.o.begin(), answer.o.end(), [](double x) { return std::isfinite(x); }) &&
         std::all_of(answer.lse.begin(), answer.lse.end(), [](float x) { return std::isfinite(x); });
}

TEST_P(BackendSuite, AsManyDrawsAsTokensAreExact) {
  std::mt19937_64 random(30);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 64);
  ASSERT_NE(cache, nullptr);
  for (const int64_t tokens : {1, 15, 16, 17, 300}) {
    const Sequence sequence = cache->Add(RandomTokens(layout, tokens, random));
    for (const uint32_t draws : {static_cast<uint32_t>(tokens), static_cast<uint32_t>(tokens) + 1, kMaxSampleCount}) {
      for (const AttentionOptions& method : SampledMethods(GetParam(), draws)) {
        const Query query = WithOptions(layout, sequence, method, 4, random);
        ExpectExact(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0]);
      }
    }
    // What counts is the tokens that are visible.
    Query query = WithOptions(layout, sequence, SampledMethods(GetParam(), 12).front(), 0, random);
    query.options.window = 12;
    ExpectExact(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0]);
  }
}

TEST_P(BackendSuite, LengthsAroundPagesAndTiles) {
  std::mt19937_64 random(31);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 600);
  ASSERT_NE(cache, nullptr);
  for (const int64_t tokens : {2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511, 512, 513, 1025}) {
    const Sequence sequence = cache->Add(RandomTokens(layout, tokens, random));
    for (const uint32_t draws : {1u, 2u, 3u, 13u}) {
      if (draws >= tokens) continue;
      for (const AttentionOptions& method : SampledMethods(GetParam(), draws, tokens)) {
        for (const uint32_t window : {0u, static_cast<uint32_t>(tokens - 1)}) {
          Query query = WithOptions(layout, sequence, method, 0, random);
          query.options.window = draws < window ? window : 0;
          ExpectEstimate(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0], 40);
        }
      }
    }
  }
}

TEST_P(BackendSuite, OneDrawIsOneRow) {
  std::mt19937_64 random(32);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 600, random));
  const int32_t dims = layout.head_dim;
  for (const AttentionOptions& method : SampledMethods(GetParam(), 1, 5)) {
    if (DrawsForGroups(method.method)) continue;
    const Query query = WithOptions(layout, sequence, method, 0, random);
    const Answer answer = cache->Decode({query})[0];
    EXPECT_LE(answer.statistics.value_rows_read, layout.num_query_heads) << Describe(query);
    for (int32_t h = 0; h < layout.num_query_heads; ++h) {
      double nearest = std::numeric_limits<double>::infinity();
      for (int64_t i = 0; i < 600; ++i) {
        double distance = 0;
        for (int32_t d = 0; d < dims; ++d) {
          const double v = sequence.tokens.v[(i * layout.num_kv_heads + h / layout.group_size()) * dims + d];
          distance = std::max(distance, std::abs(answer.o[h * dims + d] - v));
        }
        nearest = std::min(nearest, distance);
      }
      EXPECT_LT(nearest, 1e-5) << Describe(query) << " head " << h << " is no row of V";
    }
  }
}

TEST_P(BackendSuite, AllMassOnOneRow) {
  std::mt19937_64 random(33);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 200);
  ASSERT_NE(cache, nullptr);
  for (const int64_t heavy : {0, 255, 256, 599}) {
    Tokens tokens = RandomTokens(layout, 600, random);
    const size_t row = static_cast<size_t>(layout.num_kv_heads) * layout.head_dim;
    std::fill_n(tokens.k.begin() + static_cast<int64_t>(heavy * row), row, 100.0);
    const Sequence sequence = cache->Add(tokens);
    for (AttentionOptions method : AllMethods(GetParam(), 10)) {
      Query query{.sequence = &sequence, .options = method};
      query.q.assign(static_cast<size_t>(layout.num_query_heads) * layout.head_dim, 1.0);
      const std::string what = Describe(query) + " heavy row " + std::to_string(heavy);
      const Answer answer = cache->Decode({query})[0];
      const reference::Step step = cache->StepOf(query);
      const reference::Output exact = reference::Exact(step);
      ExpectClose(what, answer.o, exact.o, RoundingAllowance(GetParam(), step, query.io_dtype, exact.o));
    }
  }
}

TEST_P(BackendSuite, AllScoresEqual) {
  std::mt19937_64 random(34);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
  ASSERT_NE(cache, nullptr);
  Tokens tokens = RandomTokens(layout, 600, random);
  std::fill(tokens.k.begin(), tokens.k.end(), 0.0);
  const Sequence sequence = cache->Add(tokens);
  for (const AttentionOptions& method : SampledMethods(GetParam(), 48, 9)) {
    const Query query = WithOptions(layout, sequence, method, 4, random);
    ExpectEstimate(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0], 12);
  }
  const Query query = WithOptions(layout, sequence, {}, 4, random);
  ExpectExact(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0]);
}

// Scores up to 1e37 in fp32, and one row that wins by a margin no rounding can hide.
TEST_P(BackendSuite, HugeScoresStayFinite) {
  std::mt19937_64 random(35);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const KvLayout layout = SmallLayout(GetParam(), dtype);
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
    ASSERT_NE(cache, nullptr);
    const int32_t dims = layout.head_dim;
    const double size = dtype == DType::kFloat16 ? 1e4 : 1e18;
    std::vector<double> q = RandomNumbers(dims, size, random);
    Tokens tokens = RandomTokens(layout, 400, random);
    for (double& k : tokens.k) k *= size;
    for (int32_t at = 0; at < layout.num_kv_heads * dims; ++at) {
      tokens.k[123 * layout.num_kv_heads * dims + at] = std::copysign(4 * size, q[at % dims]);
    }
    const Sequence sequence = cache->Add(tokens);
    for (const AttentionOptions& method : AllMethods(GetParam(), 20)) {
      for (const float soft_cap : {0.0f, 20.0f}) {
        Query query{.sequence = &sequence, .options = method};
        for (int32_t h = 0; h < layout.num_query_heads; ++h) query.q.insert(query.q.end(), q.begin(), q.end());
        query.options.soft_cap = soft_cap;
        const Answer answer = cache->Decode({query})[0];
        const std::string what = Describe(layout) + ", " + Describe(query);
        EXPECT_TRUE(AllFinite(answer)) << what;
        if (soft_cap == 0) {
          const reference::Step step = cache->StepOf(query);
          const reference::Output exact = reference::Exact(step);
          ExpectClose(what, answer.o, exact.o, RoundingAllowance(GetParam(), step, query.io_dtype, exact.o));
        }
      }
    }
  }
}

// Products beyond fp32: the score is held at its largest finite value.
TEST_P(BackendSuite, ScoresThatOverflowStayFinite) {
  std::mt19937_64 random(36);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 60);
  ASSERT_NE(cache, nullptr);
  for (const double sign : {1.0, -1.0}) {
    Tokens tokens = RandomTokens(layout, 400, random);
    std::fill(tokens.k.begin(), tokens.k.end(), sign * 1e30);
    const Sequence sequence = cache->Add(tokens);
    for (const AttentionOptions& method : AllMethods(GetParam(), 20)) {
      Query query = WithOptions(layout, sequence, method, 0, random);
      std::fill(query.q.begin(), query.q.end(), 1e30);
      EXPECT_TRUE(AllFinite(cache->Decode({query})[0])) << Describe(query) << " sign " << sign;
    }
  }
}

// Scores that are -inf in fp32, whole tiles of them and the first ones too: rows without probability, as if they were
// not there.
TEST_P(BackendSuite, ScoresOfMinusInfinityHaveNoWeight) {
  std::mt19937_64 random(41);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 120);
  ASSERT_NE(cache, nullptr);
  constexpr int64_t kTokens = 900;
  const auto row = static_cast<int64_t>(layout.num_kv_heads) * layout.head_dim;
  Tokens tokens = RandomTokens(layout, kTokens, random);
  Tokens others{.count = 0, .k = {}, .v = {}};
  for (int64_t i = 0; i < kTokens; ++i) {
    const bool minus_infinity = i < 20 || (i >= 256 && i < 512) || i % 5 == 0;
    for (int64_t at = i * row; at < (i + 1) * row; at += layout.head_dim) tokens.k[at] = minus_infinity ? -1e30 : 0;
    if (minus_infinity) continue;
    ++others.count;
    others.k.insert(others.k.end(), tokens.k.begin() + i * row, tokens.k.begin() + (i + 1) * row);
    others.v.insert(others.v.end(), tokens.v.begin() + i * row, tokens.v.begin() + (i + 1) * row);
  }
  const Sequence sequence = cache->Add(tokens);
  const Sequence without = cache->Add(others);
  for (const AttentionOptions& method : AllMethods(GetParam(), 40)) {
    Query query = WithOptions(layout, sequence, method, 0, random);
    for (size_t at = 0; at < query.q.size(); at += layout.head_dim) query.q[at] = 1e30;
    const Answer answer = cache->Decode({query})[0];
    Query shorter = query;
    shorter.sequence = &without;
    shorter.options = {};
    const Answer expected = cache->Decode({shorter})[0];
    for (size_t h = 0; h < answer.lse.size() && method.method != Method::kSketched; ++h) {
      EXPECT_NEAR(answer.lse[h], expected.lse[h], 1e-4) << Describe(query);
    }
    // A sketch of such a column is off by more than any score that counts. To a sample of rows that is all one; what it
    // says of values is worthless.
    if (method.method == Method::kSketched && ValueBits(layout.sketch) > 0) {
      EXPECT_TRUE(AllFinite(answer)) << Describe(query);
      continue;
    }
    if (method.method == Method::kExact) {
      // Without those rows, others share a rounding.
      const std::vector<double> allowed(expected.o.size(), std::max(1e-4, 4 * GetParam().exact_tolerance));
      ExpectClose(Describe(query), answer.o, expected.o, allowed);
    } else {
      ExpectEstimate(Describe(query), GetParam(), *cache, query, answer, 12);
    }
  }
}

// Huge numbers of both signs can make a score NaN. Its head's answer may be anything; every other head and item is
// answered as ever, but for heads that share its draw: theirs is another draw, as good as any.
TEST_P(BackendSuite, ANanScoreHarmsNoOtherHead) {
  std::mt19937_64 random(42);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 60);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 600, random));
  for (const AttentionOptions& method : AllMethods(GetParam(), 40)) {
    const Query query = WithOptions(layout, sequence, method, 0, random);
    Query spoiled = query;
    spoiled.q[0] = std::numeric_limits<double>::quiet_NaN();
    const Answer clean = cache->Decode({query})[0];
    const std::vector<Answer> answers = cache->Decode({query, spoiled, query});
    ExpectIdentical(Describe(query) + ", before", answers[0], clean);
    ExpectIdentical(Describe(query) + ", after", answers[2], clean);
    const int32_t first = DrawsForGroups(method.method) ? layout.group_size() : 1;  // head that must be the same
    const std::vector<double> other_heads(answers[1].o.begin() + first * layout.head_dim, answers[1].o.end());
    const std::vector<double> expected(clean.o.begin() + first * layout.head_dim, clean.o.end());
    ExpectClose(Describe(query) + ", other heads", other_heads, expected, std::vector<double>(expected.size(), 1e-5));
    EXPECT_TRUE(std::equal(answers[1].lse.begin() + first, answers[1].lse.end(), clean.lse.begin() + first))
        << Describe(query);
    // Without the spoiled head the others' draw is what it would be if that had no score to speak of.
    const reference::Moments moments = reference::MomentsOf(cache->StepOf(query));
    const std::vector<double> unbiased = Unbiased(query, reference::Exact(cache->StepOf(query)), answers[1]);
    for (int32_t i = layout.head_dim; i < first * layout.head_dim; ++i) {
      EXPECT_NEAR(unbiased[i], moments.mean[i], 20 * std::sqrt(moments.variance[i])) << Describe(query) << " at " << i;
    }
  }
}

TEST_P(BackendSuite, SinksOfAnySize) {
  std::mt19937_64 random(37);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 400, random));
  Query query = WithOptions(layout, sequence, {}, 4, random);
  query.sink_logits = {-1e30f, -200, 0, 30, 200, 1e30f};
  const Answer answer = cache->Decode({query})[0];
  EXPECT_TRUE(AllFinite(answer));
  ExpectExact(Describe(query), GetParam(), *cache, query, answer);
  for (const AttentionOptions& method : SampledMethods(GetParam(), 30, 2)) {
    query.options = method;
    ExpectEstimate(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0], 12);
  }
}

// Everything in a cache that was not stored is NaN already: free pages and the rest of a last page. Here the tokens
// before the window and after the query's position are NaN too.
TEST_P(BackendSuite, InvisibleTokensAreNeverUsed) {
  std::mt19937_64 random(38);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const KvLayout layout = SmallLayout(GetParam(), dtype);
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 64);
    ASSERT_NE(cache, nullptr);
    const Sequence sequence = cache->Add(RandomTokens(layout, 900, random));
    cache->Overwrite(sequence, 0, PoisonTokens(layout, 300));
    cache->Overwrite(sequence, 801, PoisonTokens(layout, 99));
    for (const AttentionOptions& method : AllMethods(GetParam(), 30)) {
      Query query = WithOptions(layout, sequence, method, 4, random);
      query.num_tokens = 801;
      query.options.window = 501;
      const Answer answer = cache->Decode({query})[0];
      EXPECT_TRUE(AllFinite(answer)) << Describe(query);
      if (method.method == Method::kExact) {
        ExpectExact(Describe(query), GetParam(), *cache, query, answer);
      } else {
        ExpectEstimate(Describe(query), GetParam(), *cache, query, answer, 12);
      }
    }
  }
}

// Rows 200 below the largest score have no probability in fp32, whole tiles of them included: their values are NaN.
TEST_P(BackendSuite, RowsWithoutProbabilityAreNeverDrawn) {
  std::mt19937_64 random(39);
  const KvLayout layout = SmallLayout(GetParam());
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 64);
  ASSERT_NE(cache, nullptr);
  Tokens tokens = RandomTokens(layout, 900, random);
  const int64_t row = static_cast<int64_t>(layout.num_kv_heads) * layout.head_dim;
  for (int64_t i = 0; i < 900; ++i) {
    // Every tile of 256 holds a row that can be drawn (S2ANTA_FLASH draws in each), and rows that cannot.
    if (i % 3 == 0) continue;
    std::fill_n(tokens.k.begin() + i * row, row, -50.0);
    std::fill_n(tokens.v.begin() + i * row, row, std::numeric_limits<double>::quiet_NaN());
  }
  const Sequence sequence = cache->Add(tokens);
  for (const AttentionOptions& method : SampledMethods(GetParam(), 100)) {
    if (method.method == Method::kSketched) continue;  // which no sketch can exclude
    Query query{.sequence = &sequence, .options = method};
    query.q.assign(static_cast<size_t>(layout.num_query_heads) * layout.head_dim, 1.0);
    for (uint64_t seed = 0; seed < 20; ++seed) {
      query.options.seed = seed;
      EXPECT_TRUE(AllFinite(cache->Decode({query})[0])) << Describe(query) << " seed " << seed;
    }
  }
}

// Poison one value row at a time: the rows that turn the answer to NaN are the rows that it read, and
// statistics.value_rows_read counts exactly them. SKETCHED reads the keys of just those rows; no key that it does not
// read has any effect. (But for the last of a page: rewriting that makes the page's sketch anew.)
TEST_P(BackendSuite, StatisticsCountTheRowsThatWereRead) {
  std::mt19937_64 random(40);
  const KvLayout layout =
      GetParam().Nearest({.num_layers = 1, .num_query_heads = 6, .num_kv_heads = 2, .head_dim = 8, .page_size = 16});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 30);
  ASSERT_NE(cache, nullptr);
  constexpr int64_t kTokens = 290;
  const Sequence sequence = cache->Add(RandomTokens(layout, kTokens, random));
  std::vector<Query> queries;
  for (const AttentionOptions& method : SampledMethods(GetParam(), 16)) {
    queries.push_back(WithOptions(layout, sequence, method, 0, random));
  }
  const std::vector<Answer> clean = cache->Decode(queries);
  std::vector<int64_t> rows_read(queries.size(), 0);
  const bool sketched = queries.front().options.method == Method::kSketched;
  const int64_t row = static_cast<int64_t>(layout.num_kv_heads) * layout.head_dim;
  for (int64_t i = 0; i < kTokens; ++i) {
    const auto slice = [&](const std::vector<double>& all) {
      return std::vector<double>(all.begin() + i * row, all.begin() + (i + 1) * row);
    };
    Tokens token{.count = 1, .k = slice(sequence.tokens.k), .v = slice(sequence.tokens.v)};
    for (int32_t kv_head = 0; kv_head < layout.num_kv_heads; ++kv_head) {
      Tokens poisoned = token;
      std::fill_n(poisoned.v.begin() + kv_head * layout.head_dim, layout.head_dim,
                  std::numeric_limits<double>::quiet_NaN());
      cache->Overwrite(sequence, i, poisoned);
      const std::vector<Answer> answers = cache->Decode(queries);
      for (size_t m = 0; m < queries.size(); ++m) rows_read[m] += !AllFinite(answers[m]);
      if (!sketched || i % layout.page_size == layout.page_size - 1) continue;
      poisoned = token;
      std::fill_n(poisoned.k.begin() + kv_head * layout.head_dim, layout.head_dim,
                  std::numeric_limits<double>::quiet_NaN());
      cache->Overwrite(sequence, i, poisoned);
      const Answer answer = cache->Decode({queries.front()})[0];
      EXPECT_EQ(AllFinite(answer), AllFinite(answers[0])) << "key of token " << i;
      if (AllFinite(answer)) ExpectIdentical("key of token " + std::to_string(i), answer, clean[0]);
    }
    cache->Overwrite(sequence, i, token);
  }
  for (size_t m = 0; m < queries.size(); ++m) {
    EXPECT_EQ(rows_read[m], clean[m].statistics.value_rows_read) << Describe(queries[m]);
  }
}

}  // namespace
}  // namespace santa::testing
