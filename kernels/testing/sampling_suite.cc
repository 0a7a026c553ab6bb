// The estimators' distributions against their closed forms.
//
// Deterministic by fixed seeds. Were the seeds random, a correct backend would fail a z-test here with the probability
// that the test states; variances are compared within margins of several of their own standard errors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/estimators.h"
#include "kernels/testing/backend_suite.h"
#include "kernels/testing/cache.h"
#include "kernels/testing/shapes.h"

namespace santa::testing {
namespace {

// The same query under seeds 0 .. count - 1, in one batch.
std::vector<Answer> DecodeManySeeds(Cache& cache, const Query& query, int count) {
  std::vector<Query> queries(count, query);
  for (int seed = 0; seed < count; ++seed) queries[seed].options.seed = seed;
  return cache.Decode(queries);
}

struct Found {
  std::vector<double> mean;
  double squared_error = 0;  // mean over the answers of the sum over components of (o - mean)^2
};

Found Summarise(const std::vector<std::vector<double>>& outputs, const std::vector<double>& center) {
  Found found{.mean = std::vector<double>(center.size(), 0.0)};
  for (const std::vector<double>& o : outputs) {
    for (size_t i = 0; i < center.size(); ++i) {
      found.mean[i] += o[i] / static_cast<double>(outputs.size());
      found.squared_error += std::pow(o[i] - center[i], 2) / static_cast<double>(outputs.size());
    }
  }
  return found;
}

std::vector<std::vector<double>> Outputs(const std::vector<Answer>& answers) {
  std::vector<std::vector<double>> outputs;
  outputs.reserve(answers.size());
  for (const Answer& answer : answers) outputs.push_back(answer.o);
  return outputs;
}

// Of each answer what has no bias.
std::vector<std::vector<double>> UnbiasedOutputs(const Cache& cache, const Query& query,
                                                 const std::vector<Answer>& answers) {
  const reference::Output exact = reference::Exact(cache.StepOf(query));
  std::vector<std::vector<double>> outputs;
  outputs.reserve(answers.size());
  for (const Answer& answer : answers) outputs.push_back(Unbiased(query, exact, answer));
  return outputs;
}

double Sum(const std::vector<double>& numbers) {
  double sum = 0;
  for (const double number : numbers) sum += number;
  return sum;
}

// Expects the mean over the answers within z standard errors of the estimator's.
void ExpectMean(const std::string& what, const BackendUnderTest& backend, const Cache& cache, const Query& query,
                const std::vector<Answer>& answers, double z) {
  const reference::Step step = cache.StepOf(query);
  const reference::Moments moments = reference::MomentsOf(step);
  std::vector<double> allowed = RoundingAllowance(backend, step, query.io_dtype, moments.mean);
  for (size_t i = 0; i < allowed.size(); ++i) {
    allowed[i] += z * std::sqrt(moments.variance[i] / static_cast<double>(answers.size()));
  }
  ExpectClose(what + ", mean over seeds", Summarise(UnbiasedOutputs(cache, query, answers), moments.mean).mean,
              moments.mean, allowed);
  if (query.options.method != Method::kSketched) return;
  // The denominator, whose mean is 1.
  const reference::Output exact = reference::Exact(step);
  for (size_t h = 0; h < exact.lse.size(); ++h) {
    double mass = 0;
    for (const Answer& answer : answers) {
      mass += std::exp(answer.lse[h] - exact.lse[h]) / static_cast<double>(answers.size());
    }
    EXPECT_NEAR(mass, 1,
                z * std::sqrt(moments.mass_variance[h] / static_cast<double>(answers.size())) +
                    2 * backend.lse_tolerance * std::max(1.0, std::abs(exact.lse[h])))
        << what << ", exp(lse^ - lse) of head " << h;
  }
}

// Twice 6 methods and 32 components: a z of 6 has a false-alarm rate of 384 * 2e-9 = 8e-7 for the whole test. 2,048
// seeds put a variance, summed over the 32 components, within about 1 % (one standard error).
//
// The values of neighbouring tiles lie around +1 and -1, so that a budget or a tile's weight that is a little off shows
// in the mean. Six draws over four tiles leave some of them without one.
TEST_P(BackendSuite, EstimatesHaveTheirMeanAndVariance) {
  constexpr int kSeeds = 2048;
  struct Case {
    int64_t tokens;
    uint32_t draws;
    int options;
  };
  std::mt19937_64 random(20);
  const KvLayout layout = GetParam().Nearest(
      {.num_layers = 1, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8, .dtype = DType::kFloat32});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
  ASSERT_NE(cache, nullptr);
  for (const Case& c : {Case{650, 40, 0}, Case{1100, 6, 1 | 2 | 4}}) {
    Tokens tokens = RandomTokens(layout, c.tokens, random);
    const auto row = static_cast<size_t>(layout.num_kv_heads) * layout.head_dim;
    for (size_t at = 0; at < tokens.v.size(); ++at) tokens.v[at] += at / row / 256 % 2 == 0 ? 1 : -1;
    const Sequence sequence = cache->Add(tokens);
    Query query = WithOptions(layout, sequence, {}, c.options, random);
    query.io_dtype = DType::kFloat32;
    const AttentionOptions base = query.options;
    for (const AttentionOptions& method : SampledMethods(GetParam(), c.draws)) {
      query.options = base;
      query.options.method = method.method;
      query.options.sample_count = method.sample_count;
      query.options.budget_rounding = method.budget_rounding;
      const std::string what = Describe(query);
      const std::vector<Answer> answers = DecodeManySeeds(*cache, query, kSeeds);
      ExpectMean(what, GetParam(), *cache, query, answers, 6);
      const reference::Moments moments = reference::MomentsOf(cache->StepOf(query));
      const double squared_error = Summarise(UnbiasedOutputs(*cache, query, answers), moments.mean).squared_error;
      EXPECT_NEAR(squared_error / Sum(moments.variance), 1, 0.1) << what << ": variance over its closed form";
    }
  }
}

// For values without order among the rows, as here, a row's count varies least when systematic: f (1 - f), f the
// fraction of S p_i; stratified, a row across two strata varies as both parts do; independent, as S p_i (1 - p_i).
TEST_P(BackendSuite, SystematicErrsLessThanStratifiedAndStratifiedLessThanSanta) {
  std::mt19937_64 random(24);
  const KvLayout layout =
      GetParam().Nearest({.num_layers = 1, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 64});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 50);
  ASSERT_NE(cache, nullptr);
  std::map<Method, double> error;
  for (int trial = 0; trial < 4; ++trial) {
    const Sequence sequence = cache->Add(RandomTokens(layout, 600, random));
    Query query = WithOptions(layout, sequence, {}, 0, random);
    const std::vector<double> exact = reference::Exact(cache->StepOf(query)).o;
    for (const AttentionOptions& method : SampledMethods(GetParam(), 150)) {
      if (method.budget_rounding != BudgetRounding::kSystematic) continue;
      query.options = method;
      error[method.method] += Summarise(Outputs(DecodeManySeeds(*cache, query, 128)), exact).squared_error;
    }
  }
  if (!error.contains(Method::kStratified)) GTEST_SKIP() << "none of these methods";
  EXPECT_LT(error[Method::kSystematic], error[Method::kStratified]);
  EXPECT_LT(error[Method::kStratified], error[Method::kSanta]);
  EXPECT_LT(error[Method::kS2antaProp], error[Method::kStratified]);
  EXPECT_LT(error[Method::kS2antaFlash], error[Method::kSanta]);
  RecordProperty("systematic_over_stratified", std::to_string(error[Method::kSystematic] / error[Method::kStratified]));
  RecordProperty("stratified_over_santa", std::to_string(error[Method::kStratified] / error[Method::kSanta]));
}

// Every shape, types and options, fewer seeds. About 65,000 components: a z of 7 is exceeded with probability 2e-7.
TEST_P(BackendSuite, EstimatesHaveTheirMeanInEveryShape) {
  constexpr int kSeeds = 32;
  std::mt19937_64 random(21);
  int index = 0;
  int64_t tokens = 300;
  for (const KvLayout& layout : Layouts(GetParam())) {
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
    ASSERT_NE(cache, nullptr);
    const Sequence sequence = cache->Add(RandomTokens(layout, tokens += 11, random));
    for (const AttentionOptions& method : SampledMethods(GetParam(), 60)) {
      const Query query = WithOptions(layout, sequence, method, index++, random);
      const std::string what = Describe(layout) + ", " + Describe(query);
      const std::vector<Answer> answers = DecodeManySeeds(*cache, query, kSeeds);
      ExpectMean(what, GetParam(), *cache, query, answers, 7);
      ExpectEstimate(what, GetParam(), *cache, query, answers[0], 12);
    }
  }
}

// Two heads of one group with the same query must not share their draws: the error of their mean has half the variance.
TEST_P(BackendSuite, HeadsDrawIndependently) {
  constexpr int kSeeds = 2048;
  std::mt19937_64 random(22);
  const KvLayout layout = GetParam().Nearest(
      {.num_layers = 1, .num_query_heads = 2, .num_kv_heads = 1, .head_dim = 16, .dtype = DType::kFloat32});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 8);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 400, random));
  const int32_t dims = layout.head_dim;
  const std::vector<double> q = RandomNumbers(dims, 1.5, random);
  for (const AttentionOptions& method : SampledMethods(GetParam(), 24)) {
    if (DrawsForGroups(method.method)) continue;
    Query query{.sequence = &sequence, .options = method, .q = q};
    query.q.insert(query.q.end(), q.begin(), q.end());
    const reference::Moments moments = reference::MomentsOf(cache->StepOf(query));
    double squared_error = 0;
    for (const Answer& answer : DecodeManySeeds(*cache, query, kSeeds)) {
      for (int32_t d = 0; d < dims; ++d) {
        squared_error += std::pow((answer.o[d] + answer.o[dims + d]) / 2 - moments.mean[d], 2) / kSeeds;
      }
    }
    // Sum(variance) counts both heads: a quarter of it is the variance of their mean.
    EXPECT_NEAR(squared_error / (Sum(moments.variance) / 4), 1, 0.15) << Describe(query);
  }
}

// Four tiles alike, row for row: with one offset for all they would all err alike, and the variance would be fourfold.
TEST_P(BackendSuite, TilesDrawIndependently) {
  constexpr int kSeeds = 1024;
  std::mt19937_64 random(25);
  const KvLayout layout = GetParam().Nearest(
      {.num_layers = 1, .num_query_heads = 1, .num_kv_heads = 1, .head_dim = 16, .dtype = DType::kFloat32});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 16);
  ASSERT_NE(cache, nullptr);
  const Tokens tile = RandomTokens(layout, 256, random);
  Tokens tokens{.count = 1024, .k = {}, .v = {}};
  for (int copy = 0; copy < 4; ++copy) {
    tokens.k.insert(tokens.k.end(), tile.k.begin(), tile.k.end());
    tokens.v.insert(tokens.v.end(), tile.v.begin(), tile.v.end());
  }
  const Sequence sequence = cache->Add(tokens);
  const Query query = WithOptions(layout, sequence, {}, 0, random);
  for (const AttentionOptions& method : SampledMethods(GetParam(), 40)) {
    if (method.method != Method::kS2antaFlash && method.method != Method::kS2antaProp) continue;
    Query sampled = query;
    sampled.options = method;
    const reference::Moments moments = reference::MomentsOf(cache->StepOf(sampled));
    const double squared_error =
        Summarise(Outputs(DecodeManySeeds(*cache, sampled, kSeeds)), moments.mean).squared_error;
    EXPECT_NEAR(squared_error / Sum(moments.variance), 1, 0.2) << Describe(sampled);
  }
}

// Root mean square over heads and seeds of what the answers say of their own error, over that of the error they have.
double ToldOverFound(Cache& cache, const Query& query, int seeds) {
  const size_t dims = cache.layout().head_dim;
  const std::vector<double> exact = reference::Exact(cache.StepOf(query)).o;
  double told = 0;
  double found = 0;
  for (const Answer& answer : DecodeManySeeds(cache, query, seeds)) {
    for (size_t h = 0; h < answer.lse.size(); ++h) {
      double norm = 0;
      for (size_t i = h * dims; i < (h + 1) * dims; ++i) {
        norm += exact[i] * exact[i];
        found += std::pow(answer.o[i] - exact[i], 2);
      }
      told += std::pow(answer.relative_standard_error[h], 2) * norm;
    }
  }
  return std::sqrt(told / found);
}

constexpr KvLayout kErrorsLayout = {
    .num_layers = 1, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 64, .dtype = DType::kFloat32};

TEST_P(BackendSuite, StandardErrorsAreTheErrors) {
  std::mt19937_64 random(26);
  const KvLayout layout = GetParam().Nearest(kErrorsLayout);
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
  ASSERT_NE(cache, nullptr);
  // Values around 1, so that errors are small beside what they are relative to.
  Tokens tokens = RandomTokens(layout, 1500, random);
  for (double& v : tokens.v) v += 1;
  const Sequence sequence = cache->Add(tokens);
  for (const int options : {0, 1 | 4}) {
    for (const double size : {1.0, 2.5}) {
      for (const AttentionOptions& method : SampledMethods(GetParam(), 200)) {
        Query query = WithOptions(layout, sequence, method, options, random);
        query.io_dtype = DType::kFloat32;
        for (double& x : query.q) x *= size / 1.5;
        if (!GetParam().TellsErrorsOf(method.method)) {
          const Answer answer = cache->Decode({query})[0];
          for (const float error : answer.relative_standard_error) EXPECT_TRUE(std::isnan(error)) << Describe(query);
          continue;
        }
        EXPECT_NEAR(ToldOverFound(*cache, query, 256), 1, 0.15) << Describe(query) << " scores " << size;
      }
    }
  }
}

// Values that change slowly along the sequence: a draw that takes a row from every stretch of it does not err by that.
TEST_P(BackendSuite, StandardErrorsAreTheErrorsWhereNeighboursAreAlike) {
  std::mt19937_64 random(27);
  const KvLayout layout = GetParam().Nearest(kErrorsLayout);
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
  ASSERT_NE(cache, nullptr);
  Tokens tokens = RandomTokens(layout, 1500, random);
  const auto row = static_cast<size_t>(layout.num_kv_heads) * layout.head_dim;
  for (size_t at = 0; at < tokens.v.size(); ++at) {
    const size_t token = at / row;
    tokens.v[at] += 3 + 2 * std::sin(static_cast<double>(token) / 200 + static_cast<double>(at % row));
  }
  const Sequence sequence = cache->Add(tokens);
  for (const AttentionOptions& method : SampledMethods(GetParam(), 200)) {
    if (!GetParam().TellsErrorsOf(method.method)) continue;
    if (!GetParam().TellsErrorsByStepsOf(method.method)) continue;  // but by the differences from the mean
    Query query = WithOptions(layout, sequence, method, 0, random);
    query.io_dtype = DType::kFloat32;
    for (double& x : query.q) x /= 1.5;
    EXPECT_NEAR(ToldOverFound(*cache, query, 256), 1, 0.15) << Describe(query);
  }
}

// Where an answer cannot tell, it says so.
TEST_P(BackendSuite, TooFewDrawsTellNoError) {
  std::mt19937_64 random(28);
  const KvLayout layout = GetParam().Nearest(kErrorsLayout);
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 40);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 1500, random));  // six tiles
  struct Case {
    Method method;
    uint32_t draws;
    bool tells;
  };
  for (const Case& c : {Case{Method::kSanta, 1, false}, Case{Method::kSanta, 2, true},
                        Case{Method::kS2antaFlash, 47, false}, Case{Method::kS2antaFlash, 48, true}}) {
    const std::vector<Method>& methods = GetParam().methods;
    if (std::find(methods.begin(), methods.end(), c.method) == methods.end()) continue;
    if (!GetParam().TellsErrorsOf(c.method)) continue;
    const Query query = WithOptions(layout, sequence, {.method = c.method, .sample_count = c.draws}, 0, random);
    const Answer answer = cache->Decode({query})[0];
    for (const float error : answer.relative_standard_error) {
      EXPECT_EQ(std::isfinite(error), c.tells) << Describe(query) << ": " << error;
    }
  }
}

TEST_P(BackendSuite, EveryPartOfThePlaceChangesTheDraw) {
  std::mt19937_64 random(23);
  const KvLayout layout = GetParam().Nearest(
      {.num_layers = 2, .num_query_heads = 1, .num_kv_heads = 1, .head_dim = 16, .dtype = DType::kFloat32});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 64);
  ASSERT_NE(cache, nullptr);
  Tokens tokens = RandomTokens(layout, 501, random);
  const Sequence sequence = cache->Add(tokens);
  const Sequence other_layer = cache->Add(tokens, 1);
  Sequence other_key = sequence;
  other_key.sampling_key = 2;
  // The same 500 visible tokens under a later position, so that nothing but the position differs.
  Tokens shifted = tokens;
  std::rotate(shifted.k.begin(), shifted.k.end() - layout.head_dim, shifted.k.end());
  std::rotate(shifted.v.begin(), shifted.v.end() - layout.head_dim, shifted.v.end());
  const Sequence other_position = cache->Add(shifted);
  std::vector<AttentionOptions> methods = SampledMethods(GetParam(), 60, 5);
  for (const AttentionOptions& method : ScoreDrawMethods(GetParam(), 2, 60, 5)) methods.push_back(method);
  for (const AttentionOptions& method : methods) {
    std::vector<Query> queries(5, WithOptions(layout, sequence, method, 0, random));
    for (Query& query : queries) query.num_tokens = 500;
    queries[1].options.seed = 1;
    queries[2].sequence = &other_key;
    queries[3].sequence = &other_layer;
    queries[4].sequence = &other_position;
    queries[4].num_tokens = 501;
    queries[4].options.window = 500;
    std::set<std::vector<uint8_t>> outputs;
    for (const Answer& answer : cache->Decode(queries)) outputs.insert(answer.o_bytes);
    EXPECT_EQ(outputs.size(), queries.size()) << Describe(queries[0]);
  }
}

}  // namespace
}  // namespace santa::testing
