// Append, Compare and CopyPages.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/number_format.h"
#include "kernels/testing/backend_suite.h"
#include "kernels/testing/cache.h"
#include "kernels/testing/shapes.h"

namespace santa::testing {
namespace {

constexpr std::array<DType, 3> kTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// Tokens as bytes of one type, and the append that carries them.
struct Chunk {
  std::vector<uint8_t> k;
  std::vector<uint8_t> v;
  KvAppend append;
};

Chunk MakeChunk(const Sequence& sequence, int64_t position, DType dtype, const std::vector<double>& k,
                const std::vector<double>& v, int64_t count) {
  Chunk chunk{.k = reference::EncodeAll(dtype, k), .v = reference::EncodeAll(dtype, v), .append = {}};
  chunk.append = {.layer = sequence.layer,
                  .page_table = sequence.pages.data(),
                  .position = position,
                  .num_tokens = count,
                  .dtype = dtype,
                  .k = chunk.k.data(),
                  .v = chunk.v.data()};
  return chunk;
}

bool Matches(Cache& cache, const Chunk& chunk) {
  bool match = false;
  const absl::Status status = cache.backend().Compare({&chunk.append, 1}, {&match, 1});
  EXPECT_TRUE(status.ok()) << status;
  return match;
}

KvLayout SmallLayout(const BackendUnderTest& backend, DType dtype) {
  return backend.Nearest(
      {.num_layers = 2, .num_query_heads = 2, .num_kv_heads = 2, .head_dim = 8, .page_size = 16, .dtype = dtype});
}

// Numbers of one token's K (or V).
int64_t RowOf(const KvLayout& layout) { return static_cast<int64_t>(layout.num_kv_heads) * layout.head_dim; }

// Numbers where rounding matters: random ones of all sizes, ties, the ends of the ranges, subnormal ones.
std::vector<double> AwkwardNumbers(size_t count, std::mt19937_64& random) {
  std::vector<double> numbers = {0.0,      -0.0,        1 + 0x1p-8,      1 + 3 * 0x1p-8, 1 + 0x1p-8 + 0x1p-20,
                                 -1,       1 + 0x1p-11, 1 + 3 * 0x1p-11, 65504,          65519,
                                 -65504,   0x1p-24,     0x1p-25,         3 * 0x1p-26,    0x1p-14,
                                 0x1p-126, 0x1.fp-15,   0x1.ffcp-15,     0x1.ffep-15,    1023.5,
                                 2049,     -2051,       0x1.010001p0,    0x1.02ffffp3,   0x1.038001p3};
  std::uniform_real_distribution<double> exponent(-16, 15);
  std::normal_distribution<double> normal;
  while (numbers.size() < count) {
    numbers.push_back(static_cast<float>(normal(random) * std::exp2(exponent(random))));
  }
  for (double& number : numbers) number = static_cast<float>(number);
  return numbers;
}

// What Append made of fp32 numbers is, bit for bit, what the reference rounds them to.
TEST_P(BackendSuite, AppendRoundsToNearestEven) {
  std::mt19937_64 random(50);
  for (const DType asked : kTypes) {
    const KvLayout layout = SmallLayout(GetParam(), asked);
    const DType stored = layout.dtype;
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 20);
    ASSERT_NE(cache, nullptr);
    for (const DType sent : kTypes) {
      const Sequence pages{.layer = 1, .pages = {3, 7}, .sampling_key = 0, .tokens = {}};
      // Among them finite numbers beyond fp16, which round to infinity.
      std::vector<double> k = reference::RoundAll(sent, AwkwardNumbers(30 * RowOf(layout), random));
      std::vector<double> v = reference::RoundAll(sent, AwkwardNumbers(30 * RowOf(layout), random));
      const Chunk chunk = MakeChunk(pages, 1, sent, k, v, 30);
      ASSERT_TRUE(cache->backend().Append({&chunk.append, 1}).ok());
      const Chunk rounded =
          MakeChunk(pages, 1, stored, reference::RoundAll(stored, k), reference::RoundAll(stored, v), 30);
      EXPECT_TRUE(Matches(*cache, rounded)) << Name(sent) << " stored as " << Name(stored);
      EXPECT_TRUE(Matches(*cache, chunk)) << Name(sent) << " stored as " << Name(stored);
    }
  }
}

TEST_P(BackendSuite, CompareSeesEverySingleBit) {
  std::mt19937_64 random(51);
  for (const DType asked : kTypes) {
    const KvLayout layout = SmallLayout(GetParam(), asked);
    const DType dtype = layout.dtype;
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 8);
    ASSERT_NE(cache, nullptr);
    const Sequence sequence = cache->Add(RandomTokens(layout, 40, random), 1);
    Chunk chunk =
        MakeChunk(sequence, 13, dtype, {sequence.tokens.k.begin() + 13 * RowOf(layout), sequence.tokens.k.end()},
                  {sequence.tokens.v.begin() + 13 * RowOf(layout), sequence.tokens.v.end()}, 27);
    EXPECT_TRUE(Matches(*cache, chunk));
    for (std::vector<uint8_t>* bytes : {&chunk.k, &chunk.v}) {
      for (int trial = 0; trial < 100; ++trial) {
        const size_t bit = trial == 0 ? 0 : trial == 1 ? bytes->size() * 8 - 1 : random() % (bytes->size() * 8);
        (*bytes)[bit / 8] ^= 1u << (bit % 8);
        EXPECT_FALSE(Matches(*cache, chunk)) << Name(dtype) << ", bit " << bit << " differs";
        (*bytes)[bit / 8] ^= 1u << (bit % 8);
      }
    }
    EXPECT_TRUE(Matches(*cache, chunk));
    // One answer an append.
    Chunk other = chunk;
    other.k[5] ^= 4;
    other.append.k = other.k.data();
    const std::array<KvAppend, 3> both = {chunk.append, other.append, chunk.append};
    std::array<bool, 3> matches = {false, true, false};
    ASSERT_TRUE(cache->backend().Compare(both, matches).ok());
    EXPECT_EQ(matches, (std::array<bool, 3>{true, false, true}));
  }
}

// Chunks of any length, across page boundaries, of any type, in one call or many, store the same.
TEST_P(BackendSuite, AppendInPiecesIsAppendAtOnce) {
  std::mt19937_64 random(52);
  for (const DType asked : kTypes) {
    const KvLayout layout = SmallLayout(GetParam(), asked);
    const DType dtype = layout.dtype;
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 32);
    ASSERT_NE(cache, nullptr);
    constexpr int64_t kTokens = 100;
    const Tokens tokens = RandomTokens(layout, kTokens, random);
    const Sequence whole = cache->Add(tokens);
    const Sequence pieces = cache->Add(PoisonTokens(layout, kTokens));
    std::vector<Chunk> chunks;
    int64_t position = 0;
    for (const int64_t size : {1, 14, 2, 0, 47, 16, 20}) {
      const auto part = [&](const std::vector<double>& all) {
        return std::vector<double>(all.begin() + position * RowOf(layout),
                                   all.begin() + (position + size) * RowOf(layout));
      };
      // The stored values: every type that is at least as wide carries them exactly.
      const DType sent = chunks.size() % 2 == 0 ? dtype : DType::kFloat32;
      chunks.push_back(MakeChunk(pieces, position, sent, part(whole.tokens.k), part(whole.tokens.v), size));
      position += size;
    }
    ASSERT_EQ(position, kTokens);
    std::vector<KvAppend> appends;
    appends.reserve(chunks.size());
    for (const Chunk& chunk : chunks) appends.push_back(chunk.append);
    ASSERT_TRUE(cache->backend().Append({appends.data(), 3}).ok());
    ASSERT_TRUE(cache->backend().Append({appends.data() + 3, 4}).ok());
    const Chunk all = MakeChunk(pieces, 0, dtype, whole.tokens.k, whole.tokens.v, kTokens);
    EXPECT_TRUE(Matches(*cache, all)) << Name(dtype);
    Query query = WithOptions(layout, whole, {}, 0, random);
    const Answer expected = cache->Decode({query})[0];
    query.sequence = &pieces;
    ExpectIdentical("pieces", cache->Decode({query})[0], expected);
  }
}

TEST_P(BackendSuite, AppendTouchesNothingElse) {
  std::mt19937_64 random(53);
  const KvLayout layout = SmallLayout(GetParam(), DType::kBFloat16);
  const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 8);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 50, random));
  const Sequence other_layer{.layer = 1, .pages = sequence.pages, .sampling_key = 0, .tokens = {}};
  const Sequence neighbour = cache->Add(RandomTokens(layout, 16, random));
  cache->Overwrite(other_layer, 0, RandomTokens(layout, 50, random));
  cache->Overwrite(sequence, 20, RandomTokens(layout, 10, random));
  const auto part = [&](const Sequence& of, int64_t from, int64_t to) {
    return MakeChunk(of, from, layout.dtype,
                     {of.tokens.k.begin() + from * RowOf(layout), of.tokens.k.begin() + to * RowOf(layout)},
                     {of.tokens.v.begin() + from * RowOf(layout), of.tokens.v.begin() + to * RowOf(layout)}, to - from);
  };
  EXPECT_TRUE(Matches(*cache, part(sequence, 0, 20)));
  EXPECT_TRUE(Matches(*cache, part(sequence, 30, 50)));
  EXPECT_FALSE(Matches(*cache, part(sequence, 29, 30)));
  EXPECT_FALSE(Matches(*cache, part(sequence, 20, 21)));
  EXPECT_TRUE(Matches(*cache, part(neighbour, 0, 16)));
}

TEST_P(BackendSuite, CopyPagesCopiesEveryLayerInOrder) {
  std::mt19937_64 random(54);
  for (const DType asked : kTypes) {
    const KvLayout layout = SmallLayout(GetParam(), asked);
    const DType dtype = layout.dtype;
    const std::unique_ptr<Cache> cache = Cache::Make(GetParam(), layout, 8);
    ASSERT_NE(cache, nullptr);
    std::vector<Tokens> by_layer;
    for (int32_t layer = 0; layer < 2; ++layer) {
      by_layer.push_back(RandomTokens(layout, 16, random));
      by_layer.back().k = reference::RoundAll(dtype, by_layer.back().k);
      by_layer.back().v = reference::RoundAll(dtype, by_layer.back().v);
      cache->Overwrite({.layer = layer, .pages = {2}, .sampling_key = 0, .tokens = {}}, 0, by_layer.back());
    }
    // The second copy takes what the first one made.
    const std::array<PageCopy, 2> copies = {{{.from = 2, .to = 5}, {.from = 5, .to = 7}}};
    ASSERT_TRUE(cache->backend().CopyPages(copies).ok());
    for (const int32_t page : {2, 5, 7, 6}) {
      for (int32_t layer = 0; layer < 2; ++layer) {
        const Sequence at{.layer = layer, .pages = {page}, .sampling_key = 0, .tokens = {}};
        const Chunk chunk = MakeChunk(at, 0, dtype, by_layer[layer].k, by_layer[layer].v, 16);
        EXPECT_EQ(Matches(*cache, chunk), page != 6) << "page " << page << " layer " << layer;
      }
    }
  }
}

}  // namespace
}  // namespace santa::testing
