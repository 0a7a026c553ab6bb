// target_relative_error: what was asked for against what it came to.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/estimators.h"
#include "kernels/testing/backend_suite.h"
#include "kernels/testing/cache.h"

namespace santa::testing {
namespace {

constexpr int kSeeds = 60;

std::unique_ptr<Cache> MakeCache(const BackendUnderTest& backend, int32_t pages) {
  const KvLayout layout = backend.Nearest(
      {.num_layers = 1, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 64, .dtype = DType::kFloat32});
  return Cache::Make(backend, layout, pages);
}

// Methods of the backend that take a target.
std::vector<Method> MethodsWithTargets(const BackendUnderTest& backend, Cache& cache) {
  std::vector<Method> methods;
  for (const Method method : backend.methods) {
    if (!DrawsForGroups(method)) continue;
    const AttentionOptions options = {.method = method, .target_relative_error = 0.1f};
    if (cache.backend().Supports(options, 8000).ok()) methods.push_back(method);
  }
  return methods;
}

struct Outcome {
  std::vector<double> errors;  // of each head, root mean square over the seeds
  double rows = 0;             // mean, of all
};

Outcome Measure(Cache& cache, const Sequence& sequence, const std::vector<double>& q, const AttentionOptions& options) {
  std::vector<Query> queries(kSeeds, Query{.sequence = &sequence, .options = options, .q = q});
  for (int seed = 0; seed < kSeeds; ++seed) queries[seed].options.seed = seed;
  const std::vector<double> exact = reference::Exact(cache.StepOf(queries[0])).o;
  const size_t dims = cache.layout().head_dim;
  Outcome outcome{.errors = std::vector<double>(cache.layout().num_query_heads, 0.0)};
  const std::vector<Answer> answers = cache.Decode(queries);
  for (const Answer& answer : answers) {
    outcome.rows += static_cast<double>(answer.statistics.value_rows_read) / kSeeds;
    for (size_t h = 0; h < outcome.errors.size(); ++h) {
      double error = 0;
      double norm = 0;
      for (size_t i = h * dims; i < (h + 1) * dims; ++i) {
        error += std::pow(answer.o[i] - exact[i], 2);
        norm += exact[i] * exact[i];
      }
      outcome.errors[h] += error / norm / kSeeds;
    }
  }
  for (double& error : outcome.errors) error = std::sqrt(error);
  ExpectIdentical("a target alone and in a batch", cache.Decode({queries[7]})[0], answers[7]);
  return outcome;
}

// Whether more than the pilot tells how large errors will be: with a value sketch the scores do not.
bool FindsSampleCount(Method method, const KvLayout& layout) {
  return method != Method::kSketched || ValueBits(layout.sketch) == 0;
}

// At or below the target for 95 % of the heads, over data of three spreads; and no more rows than it takes: the group's
// worst head comes within a factor of 1.5 of it wherever fewer than half of the rows were read.
TEST_P(BackendSuite, TargetErrorsAreMetAndNotOverpaid) {
  constexpr int64_t kTokens = 8000;
  std::mt19937_64 random(70);
  const std::unique_ptr<Cache> cache = MakeCache(GetParam(), 3 * 130);
  ASSERT_NE(cache, nullptr);
  const KvLayout& layout = cache->layout();
  const std::vector<Method> methods = MethodsWithTargets(GetParam(), *cache);
  if (methods.empty()) GTEST_SKIP() << "takes no targets";
  int heads = 0;
  int met = 0;
  int sampled = 0;
  for (const double sigma : {1.5, 2.5, 4.0}) {
    const Sequence sequence = cache->Add(RandomTokens(layout, kTokens, random));
    const std::vector<double> q =
        RandomNumbers(static_cast<size_t>(layout.num_query_heads) * layout.head_dim, sigma, random);
    for (const Method method : methods) {
      for (const float target : {0.01f, 0.03f, 0.1f, 0.3f}) {
        const Outcome outcome = Measure(*cache, sequence, q, {.method = method, .target_relative_error = target});
        const std::string what = std::string(Name(method)) + " sigma " + std::to_string(sigma) + " target " +
                                 std::to_string(target) + " rows " + std::to_string(outcome.rows);
        double worst = 0;
        for (const double error : outcome.errors) {
          ++heads;
          met += error <= target;
          EXPECT_LE(error, 1.25 * target) << what;
          worst = std::max(worst, error);
        }
        EXPECT_LE(outcome.rows, kTokens * layout.num_kv_heads * 1.1) << what;
        // A pilot that was enough is more than enough; and beyond half of the rows all are read.
        const double share = outcome.rows / static_cast<double>(kTokens * layout.num_kv_heads);
        if (!FindsSampleCount(method, layout) || outcome.rows <= 2.5 * 128 || share > 0.45) continue;
        ++sampled;
        EXPECT_GE(worst, target / 1.5) << what;
      }
    }
  }
  EXPECT_GE(met, 0.95 * heads) << met << " of " << heads;
  const int64_t looked_at =
      std::count_if(methods.begin(), methods.end(), [&](Method method) { return FindsSampleCount(method, layout); });
  EXPECT_GE(sampled, 5 * looked_at / 2);
}

TEST_P(BackendSuite, ATargetOverFewTokensIsAnsweredExactly) {
  std::mt19937_64 random(71);
  const std::unique_ptr<Cache> cache = MakeCache(GetParam(), 10);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(cache->layout(), 500, random));
  const std::vector<Method> methods = MethodsWithTargets(GetParam(), *cache);
  if (methods.empty()) GTEST_SKIP() << "takes no targets";
  for (const Method method : methods) {
    const Query query = {
        .sequence = &sequence,
        .options = {.method = method, .target_relative_error = 0.5f},
        .q = RandomNumbers(static_cast<size_t>(cache->layout().num_query_heads) * cache->layout().head_dim, 1, random)};
    ExpectExact(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0]);
  }
}

}  // namespace
}  // namespace santa::testing
