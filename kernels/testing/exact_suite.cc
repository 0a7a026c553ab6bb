// EXACT against the fp64 reference: every storage and io type, group size, head dimension, page size and option.
#include <gtest/gtest.h>

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

TEST_P(BackendSuite, ExactMatchesTheReferenceInEveryShape) {
  std::mt19937_64 random(1);
  for (const KvLayout& layout : Layouts(GetParam())) {
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 160);
    ASSERT_NE(cache, nullptr);
    // A ragged batch: one token, around a page, around a tile, and more.
    const int64_t page = layout.page_size;
    std::vector<Sequence> sequences;
    for (const int64_t tokens : {int64_t{1}, page - 1, page, page + 1, int64_t{255}, int64_t{256}, int64_t{257},
                                 int64_t{130}, int64_t{3}, int64_t{431}}) {
      sequences.push_back(cache->Add(RandomTokens(layout, tokens, random)));
    }
    std::vector<Query> queries;
    queries.reserve(sequences.size());
    for (const Sequence& sequence : sequences) {
      queries.push_back(WithOptions(layout, sequence, {}, static_cast<int>(queries.size()), random));
    }
    queries.push_back(WithOptions(layout, sequences.back(), {.scale = 0.3f}, 0, random));
    const std::vector<Answer> answers = cache->Decode(queries);
    for (size_t i = 0; i < queries.size(); ++i) {
      ExpectExact(Describe(layout) + ", " + Describe(queries[i]), GetParam(), *cache, queries[i], answers[i]);
    }
  }
}

TEST_P(BackendSuite, EveryCombinationOfTypesAndOptions) {
  std::mt19937_64 random(2);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const KvLayout layout =
        GetParam().Nearest({.num_layers = 1, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 128, .dtype = dtype});
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 16);
    ASSERT_NE(cache, nullptr);
    const Sequence sequence = cache->Add(RandomTokens(layout, 500, random));
    std::vector<Query> queries;
    queries.reserve(24);
    for (int index = 0; index < 24; ++index) queries.push_back(WithOptions(layout, sequence, {}, index, random));
    const std::vector<Answer> answers = cache->Decode(queries);
    for (size_t i = 0; i < queries.size(); ++i) {
      ExpectExact(Describe(layout) + ", " + Describe(queries[i]), GetParam(), *cache, queries[i], answers[i]);
    }
  }
}

TEST_P(BackendSuite, EveryHeadDimension) {
  std::mt19937_64 random(6);
  constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  for (int32_t dim = 8; dim <= 256; dim += 8) {
    const KvLayout layout = GetParam().Nearest({.num_layers = 1,
                                                .num_query_heads = 3,
                                                .num_kv_heads = 1,
                                                .head_dim = dim,
                                                .page_size = 16,
                                                .dtype = kTypes[dim / 8 % 3]});
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 6);
    ASSERT_NE(cache, nullptr);
    const Sequence sequence = cache->Add(RandomTokens(layout, 70, random));
    const Query query = WithOptions(layout, sequence, {}, dim / 8, random);
    ExpectExact(Describe(layout) + ", " + Describe(query), GetParam(), *cache, query, cache->Decode({query})[0]);
    for (const AttentionOptions& method : SampledMethods(GetParam(), 20)) {
      const Query sampled = WithOptions(layout, sequence, method, 0, random);
      ExpectEstimate(Describe(layout) + ", " + Describe(sampled), GetParam(), *cache, sampled,
                     cache->Decode({sampled})[0], 40);
    }
  }
}

TEST_P(BackendSuite, LongSequence) {
  std::mt19937_64 random(3);
  const KvLayout layout =
      GetParam().Nearest({.num_layers = 1, .num_query_heads = 4, .num_kv_heads = 1, .head_dim = 64});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 160);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 10001, random));
  for (int index = 0; index < 2; ++index) {
    const Query query = WithOptions(layout, sequence, {}, index, random);
    ExpectExact(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0]);
  }
}

TEST_P(BackendSuite, LayersAreApart) {
  std::mt19937_64 random(4);
  const KvLayout layout =
      GetParam().Nearest({.num_layers = 3, .num_query_heads = 6, .num_kv_heads = 2, .head_dim = 16, .page_size = 16});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 20);
  ASSERT_NE(cache, nullptr);
  // The same pages in every layer, other tokens.
  std::vector<Sequence> sequences = {cache->Add(RandomTokens(layout, 40, random))};
  for (int32_t layer = 1; layer < 3; ++layer) {
    Sequence other = cache->Add(RandomTokens(layout, 40, random), layer);
    other.pages = sequences[0].pages;
    cache->Overwrite(other, 0, other.tokens);
    sequences.push_back(other);
  }
  for (const Sequence& sequence : sequences) {
    const Query query = WithOptions(layout, sequence, {}, 0, random);
    ExpectExact("layer " + std::to_string(sequence.layer), GetParam(), *cache, query, cache->Decode({query})[0]);
  }
}

TEST_P(BackendSuite, AnEarlierPositionSeesOnlyItsOwnTokens) {
  std::mt19937_64 random(5);
  const KvLayout layout =
      GetParam().Nearest({.num_layers = 1, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 24, .page_size = 32});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 20);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 300, random));
  for (const int64_t tokens : {1, 32, 33, 299}) {
    Query query = WithOptions(layout, sequence, {}, 0, random);
    query.num_tokens = tokens;
    ExpectExact(Describe(query), GetParam(), *cache, query, cache->Decode({query})[0]);
  }
}

TEST_P(BackendSuite, AnEmptyBatchIsNothing) {
  const KvLayout layout = GetParam().Nearest({.num_layers = 1, .num_query_heads = 1, .num_kv_heads = 1, .head_dim = 8});
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 1);
  ASSERT_NE(cache, nullptr);
  EXPECT_TRUE(cache->backend().Decode({}).ok());
  EXPECT_TRUE(cache->backend().Append({}).ok());
  EXPECT_TRUE(cache->backend().Compare({}, {}).ok());
  EXPECT_TRUE(cache->backend().CopyPages({}).ok());
  EXPECT_EQ(cache->backend().num_pages(), 1);
  EXPECT_FALSE(cache->backend().device().empty());
}

}  // namespace
}  // namespace santa::testing
