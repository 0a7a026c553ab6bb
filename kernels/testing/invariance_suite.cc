// An answer depends on its item alone: bit-identical whatever the batch, the pages, the order and the threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/testing/backend_suite.h"
#include "kernels/testing/cache.h"
#include "kernels/testing/shapes.h"

namespace santa::testing {
namespace {

// Sequences of many lengths, one long enough to be split among threads, and queries with every method on each.
struct Work {
  std::unique_ptr<Cache> cache;
  std::vector<Sequence> sequences;
  std::vector<Query> queries;
};

// Equal but for the pages, which `page_seed` shuffles.
Work MakeWork(const BackendUnderTest& backend, const BackendFactory& make, const KvLayout& layout, uint64_t page_seed) {
  Work work{.cache = Cache::Make(make, layout, 400, page_seed), .sequences = {}, .queries = {}};
  if (work.cache == nullptr) return work;
  std::mt19937_64 random(60);
  for (const int64_t tokens : {5, 4321, 64, 300, 1000}) {
    work.sequences.push_back(work.cache->Add(RandomTokens(layout, tokens, random)));
  }
  std::vector<AttentionOptions> methods = SampledMethods(backend, 50, 7);
  methods.push_back({});
  for (const AttentionOptions& method : ScoreDrawMethods(backend, 3, 50, 7)) methods.push_back(method);
  int index = 0;
  for (const Sequence& sequence : work.sequences) {
    for (const AttentionOptions& method : methods) {
      work.queries.push_back(WithOptions(layout, sequence, method, index++, random));
    }
  }
  return work;
}

std::vector<KvLayout> InvarianceLayouts(const BackendUnderTest& backend) {
  return {backend.Nearest({.num_layers = 1, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 64, .page_size = 32}),
          backend.Nearest({.num_layers = 1,
                           .num_query_heads = 3,
                           .num_kv_heads = 1,
                           .head_dim = 72,
                           .page_size = 16,
                           .dtype = DType::kFloat32})};
}

TEST_P(BackendSuite, BatchOrderAndRepetitionChangeNothing) {
  for (const KvLayout& layout : InvarianceLayouts(GetParam())) {
    const Work work = MakeWork(GetParam(), GetParam().make, layout, 1);
    ASSERT_NE(work.cache, nullptr);
    const std::vector<Answer> expected = work.cache->Decode(work.queries);
    const std::vector<Answer> again = work.cache->Decode(work.queries);
    const std::vector<Query> reversed(work.queries.rbegin(), work.queries.rend());
    const std::vector<Answer> backwards = work.cache->Decode(reversed);
    for (size_t i = 0; i < expected.size(); ++i) {
      const std::string what = Describe(layout) + ", " + Describe(work.queries[i]);
      ExpectIdentical(what + ", again", again[i], expected[i]);
      ExpectIdentical(what + ", in reverse", backwards[expected.size() - 1 - i], expected[i]);
      ExpectIdentical(what + ", alone", work.cache->Decode({work.queries[i]})[0], expected[i]);
    }
  }
}

TEST_P(BackendSuite, PagesChangeNothing) {
  for (const KvLayout& layout : InvarianceLayouts(GetParam())) {
    const Work work = MakeWork(GetParam(), GetParam().make, layout, 1);
    const Work elsewhere = MakeWork(GetParam(), GetParam().make, layout, 2);
    ASSERT_NE(work.cache, nullptr);
    ASSERT_NE(elsewhere.cache, nullptr);
    const std::vector<Answer> expected = work.cache->Decode(work.queries);
    const std::vector<Answer> found = elsewhere.cache->Decode(elsewhere.queries);
    for (size_t i = 0; i < expected.size(); ++i) {
      ExpectIdentical(Describe(layout) + ", " + Describe(work.queries[i]), found[i], expected[i]);
    }
  }
}

TEST_P(BackendSuite, VariantsAnswerAlike) {
  for (const KvLayout& layout : InvarianceLayouts(GetParam())) {
    const Work work = MakeWork(GetParam(), GetParam().make, layout, 1);
    ASSERT_NE(work.cache, nullptr);
    const std::vector<Answer> expected = work.cache->Decode(work.queries);
    for (size_t variant = 0; variant < GetParam().variants.size(); ++variant) {
      const Work other = MakeWork(GetParam(), GetParam().variants[variant], layout, 1);
      ASSERT_NE(other.cache, nullptr);
      const std::vector<Answer> found = other.cache->Decode(other.queries);
      for (size_t i = 0; i < expected.size(); ++i) {
        const std::string what = Describe(work.queries[i]) + ", variant " + std::to_string(variant);
        ExpectIdentical(what, found[i], expected[i]);
        ExpectIdentical(what + ", alone", other.cache->Decode({other.queries[i]})[0], expected[i]);
      }
    }
  }
}

TEST_P(BackendSuite, StatisticsAreOptional) {
  const Work work = MakeWork(GetParam(), GetParam().make, InvarianceLayouts(GetParam())[0], 1);
  ASSERT_NE(work.cache, nullptr);
  const std::vector<Answer> expected = work.cache->Decode(work.queries);
  std::vector<Answer> found = work.cache->Decode(work.queries, /*with_statistics=*/false);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(found[i].statistics.visible_tokens, 0) << "statistics appeared unasked";
    found[i].statistics = expected[i].statistics;
    found[i].relative_standard_error = expected[i].relative_standard_error;
    ExpectIdentical(Describe(work.queries[i]), found[i], expected[i]);
  }
}

}  // namespace
}  // namespace santa::testing
