// That every code and column of a sketch has a place of its own, in the bytes that the cache has for it.
#include "kernels/cuda/sketch_layout.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention.h"

namespace santa::cuda {
namespace {

constexpr int kHeadDims[] = {64, 96, 128, 192, 256};

TEST(SketchLayoutTest, TakesTheBytesThatTheLayoutCounts) {
  for (const int head_dim : kHeadDims) {
    for (const int page_size : {16, 64, 256}) {
      for (const Sketch sketch : kAllSketches) {
        const KvLayout layout = {.num_layers = 1,
                                 .num_query_heads = 1,
                                 .num_kv_heads = 1,
                                 .head_dim = head_dim,
                                 .page_size = page_size,
                                 .sketch = sketch};
        EXPECT_EQ(SketchHeadBytes(head_dim, page_size, KeyBits(sketch), ValueBits(sketch)), layout.sketch_page_bytes());
      }
    }
  }
}

// The 16 x D codes of a slab fill its words, each in bits of its own.
template <typename Place>
void ExpectCodesFillASlab(int head_dim, int bits, Place place) {
  SCOPED_TRACE("D " + std::to_string(head_dim) + ", bits " + std::to_string(bits));
  std::vector<int> seen(static_cast<size_t>(16) * head_dim, 0);  // [token][feature]
  std::vector<uint32_t> words(SketchSlabBytes(head_dim, bits) / sizeof(uint32_t), 0);
  const uint32_t code = (1u << bits) - 1;
  for (int step = 0; step < head_dim / 16; ++step) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int word = 0; word < WordsOfStep(bits); ++word) {
        const int index = SketchWord(head_dim, bits, step, lane, word);
        ASSERT_LT(index, words.size());
        for (int i = 0; i < 32 / bits; ++i) {
          const SketchPlace at = place(bits, lane, word, i);
          ++seen[at.token * head_dim + 16 * step + at.feature];
          const uint32_t mine = code << at.bit | (at.bit > 32 - bits ? code >> (32 - at.bit) : 0);
          EXPECT_EQ(words[index] & mine, 0u);
          words[index] |= mine;
        }
      }
    }
  }
  for (const int count : seen) ASSERT_EQ(count, 1);
  for (const uint32_t word : words) ASSERT_EQ(word, ~0u);
}

TEST(SketchLayoutTest, CodesFillASlab) {
  for (const int head_dim : kHeadDims) {
    for (const int bits : {4, 8}) {
      ExpectCodesFillASlab(head_dim, bits, KeyPlace);
      ExpectCodesFillASlab(head_dim, bits, ValuePlace);
    }
  }
}

TEST(SketchLayoutTest, ColumnsHavePlacesOfTheirOwn) {
  for (const int head_dim : kHeadDims) {
    std::vector<int> keys(SketchColumnBytes(head_dim) / 2, 0), values(keys);
    for (int feature = 0; feature < head_dim; ++feature) {
      for (const int at : {KeyStepAt(feature), KeyLowAt(head_dim, feature)}) ++keys.at(at);
      for (const int at : {ValueStepAt(feature), ValueLowAt(feature)}) ++values.at(at);
    }
    EXPECT_EQ(keys, std::vector<int>(keys.size(), 1));
    EXPECT_EQ(values, std::vector<int>(values.size(), 1));
  }
}

}  // namespace
}  // namespace santa::cuda
