#include "kernels/cpu/row_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/convert.h"
#include "kernels/sampling/inclusion.h"

namespace santa::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Bf16QueriesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kernels_.pack_bf16 == nullptr) GTEST_SKIP() << "this CPU has no products of bf16";
  }

  bool Packs(float number) const {
    std::vector<float> vector(64, 1.0f);
    vector[61] = number;
    std::vector<uint16_t> packed(kernels_.padded_dim(64));
    return kernels_.pack_bf16(vector.data(), 64, packed.data());
  }

  const RowKernels& kernels_ = GetRowKernels(DType::kBFloat16);
};

std::vector<float> RandomBf16(size_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) {
    const float exact = normal(random);
    uint16_t bits;
    Convert(DType::kFloat32, &exact, DType::kBFloat16, &bits, 1);
    Convert(DType::kBFloat16, &bits, DType::kFloat32, &number, 1);
  }
  return numbers;
}

// Rows, and behind them NaN, which must have no effect.
std::vector<uint16_t> Stored(const std::vector<float>& rows) {
  std::vector<uint16_t> stored(rows.size() + 512, uint16_t{0x7FC0});
  Convert(DType::kFloat32, rows.data(), DType::kBFloat16, stored.data(), static_cast<int64_t>(rows.size()));
  return stored;
}

TEST_F(Bf16QueriesTest, BothWaysGiveTheDotProducts) {
  std::mt19937_64 random(1);
  for (const int dim : {8, 16, 24, 32, 40, 64, 80, 128, 136, 256}) {
    for (int heads = 1; heads <= kChunkHeads; ++heads) {
      for (const int num_rows : {1, 2, 5, 16, 33, kMaxRun}) {
        const int padded = kernels_.padded_dim(dim);
        const int pitch = Pitch(heads);
        const std::vector<float> rows = RandomBf16(static_cast<size_t>(num_rows) * dim, random);
        const std::vector<uint16_t> stored = Stored(rows);
        const std::vector<float> queries = RandomBf16(static_cast<size_t>(heads) * dim, random);
        std::vector<float> packed(static_cast<size_t>(heads) * padded);
        std::vector<uint16_t> packed_bf16(packed.size(), 0xFFFF);
        for (int h = 0; h < heads; ++h) {
          kernels_.pack(&queries[h * dim], dim, &packed[h * padded]);
          ASSERT_TRUE(kernels_.pack_bf16(&queries[h * dim], dim, &packed_bf16[h * padded]));
        }
        std::vector<float> general((num_rows + 2 * kRowGroup) * pitch);
        std::vector<float> of_bf16(general.size());
        ScoreArgs args = {.rows = reinterpret_cast<const uint8_t*>(stored.data()),
                          .num_rows = num_rows,
                          .head_dim = dim,
                          .heads = heads,
                          .queries = packed.data(),
                          .scores = general.data()};
        kernels_.score(args);
        args.bf16_queries = packed_bf16.data();
        args.queries = nullptr;
        args.scores = of_bf16.data();
        kernels_.score(args);
        for (int row = 0; row < num_rows; ++row) {
          for (int h = 0; h < heads; ++h) {
            double expected = 0;
            double magnitude = 0;
            for (int i = 0; i < dim; ++i) {
              const double product = static_cast<double>(rows[row * dim + i]) * queries[h * dim + i];
              expected += product;
              magnitude += std::abs(product);
            }
            // At most 16 roundings one after the other, and sums over lanes.
            const double allowed = 24 * 0x1p-24 * magnitude;
            EXPECT_NEAR(general[row * pitch + h], expected, allowed) << dim << ", " << heads << ", " << num_rows;
            EXPECT_NEAR(of_bf16[row * pitch + h], expected, allowed) << dim << ", " << heads << ", " << num_rows;
          }
        }
      }
    }
  }
}

TEST_F(Bf16QueriesTest, PacksWhatItCanScore) {
  for (const float number : {0.0f, -0.0f, 1.0f, -1.0078125f, 0x1p-126f, -0x1p64f, kInfinity, -kInfinity, kNan, -kNan}) {
    EXPECT_TRUE(Packs(number)) << number;
  }
  // More digits than bf16 has; subnormal; beyond the bounds.
  for (const float number : {1.00390625f, 0.1f, 0x1.000002p0f, 0x1p-127f, -0x1p-133f, 0x1p65f, -0x1p127f}) {
    EXPECT_FALSE(Packs(number)) << number;
  }
}

// A poisoned number shows in its own head's score, and an infinite one does.
TEST_F(Bf16QueriesTest, WhatIsNotFiniteShows) {
  constexpr int kDim = 128;
  for (const float number : {kNan, kInfinity, -kInfinity, std::bit_cast<float>(0x7F800001u)}) {
    for (const bool in_query : {false, true}) {
      std::vector<float> row(kDim, 1.0f);
      std::vector<float> queries(size_t{2} * kDim, 1.0f);
      (in_query ? queries : row)[77] = number;
      const std::vector<uint16_t> stored = Stored(row);
      std::vector<uint16_t> packed(queries.size());
      for (int h = 0; h < 2; ++h) ASSERT_TRUE(kernels_.pack_bf16(&queries[h * kDim], kDim, &packed[h * kDim]));
      std::vector<float> scores(size_t{4} * kRowGroup);
      kernels_.score({.rows = reinterpret_cast<const uint8_t*>(stored.data()),
                      .num_rows = 1,
                      .head_dim = kDim,
                      .heads = 2,
                      .bf16_queries = packed.data(),
                      .scores = scores.data()});
      for (int h = 0; h < 2; ++h) {
        if (in_query && h == 1) {
          EXPECT_EQ(scores[h], 128.0f);
        } else if (number != number) {
          EXPECT_TRUE(std::isnan(scores[h]));
        } else {
          EXPECT_EQ(scores[h], number);
        }
      }
    }
  }
}

// One head of a page by its sketch, laid out as kernels/cpu/sketches.h says, and queries.
struct SketchedPage {
  SketchedPage(int bits, int dim, int page_size, std::mt19937_64& random) : bits(bits), dim(dim), page_size(page_size) {
    std::uniform_int_distribution<int> code(0, (1 << bits) - 1);
    std::normal_distribution<float> normal;
    codes.resize(static_cast<size_t>(page_size) * dim);
    for (int& each : codes) each = code(random);
    queries.resize(static_cast<size_t>(kChunkHeads) * dim);
    for (float& each : queries) each = normal(random);
    low.resize(dim);
    step.resize(dim);
    for (float& each : low) each = normal(random);
    for (float& each : step) each = 0.01f + std::abs(normal(random)) / static_cast<float>(1 << bits);
  }

  int CodeOf(int token, int d) const { return codes[static_cast<size_t>(token) * dim + d]; }

  // Scores of tokens [first, first + num_rows) as the scorer has them, and what they should be.
  void ExpectScores(int first, int num_rows, int heads) {
    std::vector<uint8_t> stored(codes.size() * bits / 8);
    for (int t = 0; t < page_size; ++t) {
      for (int d = 0; d < dim; ++d) {
        const int in_word = bits == 8 ? 4 : 8;
        uint8_t& byte = stored[static_cast<size_t>(d / in_word * page_size + t) * 4 + d % 4];
        byte = static_cast<uint8_t>(byte | CodeOf(t, d) << (d % in_word < 4 ? 0 : 4));
      }
    }
    std::vector<uint16_t> halves(size_t{2} * dim);
    Convert(DType::kFloat32, low.data(), DType::kFloat16, halves.data(), dim);
    Convert(DType::kFloat32, step.data(), DType::kFloat16, halves.data() + dim, dim);
    Convert(DType::kFloat16, halves.data(), DType::kFloat32, low.data(), dim);
    Convert(DType::kFloat16, halves.data() + dim, DType::kFloat32, step.data(), dim);
    const int pitch = Pitch(heads);
    std::vector<float> scores(static_cast<size_t>(num_rows + 2 * kRowGroup) * pitch);
    GetSketchScorer()({.codes = stored.data(),
                       .low = halves.data(),
                       .step = halves.data() + dim,
                       .bits = bits,
                       .page_size = page_size,
                       .first = first,
                       .num_rows = num_rows,
                       .head_dim = dim,
                       .heads = heads,
                       .queries = queries.data(),
                       .scores = scores.data()});
    for (int row = 0; row < num_rows; ++row) {
      for (int h = 0; h < heads; ++h) ExpectScore(scores[row * pitch + h], first + row, h);
    }
  }

  // A query is rounded to whole numbers, so many for its largest feature.
  void ExpectScore(float score, int token, int h) const {
    double expected = 0;
    double magnitude = 0;
    double largest = 0;
    double from_middle = 0;
    for (int d = 0; d < dim; ++d) {
      const double q = queries[static_cast<size_t>(h) * dim + d];
      expected += q * (low[d] + static_cast<double>(step[d]) * CodeOf(token, d));
      magnitude += std::abs(q * low[d]) + std::abs(q * step[d]) * (1 << bits);
      largest = std::max(largest, std::abs(q * step[d]));
      from_middle += std::abs(CodeOf(token, d) - ((1 << bits) - 1) / 2.0);
    }
    const double allowed = largest / (bits == 4 ? 127 : 16256) / 2 * from_middle + 32 * 0x1p-24 * magnitude + 0x1p-88;
    ASSERT_NEAR(score, expected, allowed) << bits << " bits, D = " << dim << ", token " << token << ", head " << h;
  }

  const int bits, dim, page_size;
  std::vector<int> codes;      // [token][D]
  std::vector<float> queries;  // [head][D]
  std::vector<float> low, step;
};

TEST(SketchScorerTest, GivesTheDotProductsOfWholePagesAndParts) {
  std::mt19937_64 random(2);
  for (const int bits : {4, 8}) {
    for (const int dim : {8, 16, 24, 40, 64, 72, 128, 136, 256}) {
      for (int heads = 1; heads <= kChunkHeads; ++heads) {
        for (const int page_size : {16, 64, kMaxPageSize}) {
          SketchedPage page(bits, dim, page_size, random);
          page.ExpectScores(0, page_size, heads);
          page.ExpectScores(page_size - 13, 13, heads);
          page.ExpectScores(3, 5, heads);
        }
      }
    }
  }
}

// The largest sums that there can be: nothing overflows or saturates.
TEST(SketchScorerTest, HasRoomForTheLargestSums) {
  std::mt19937_64 random(3);
  for (const int bits : {4, 8}) {
    for (const float sign : {1.0f, -1.0f}) {
      SketchedPage page(bits, 256, 64, random);
      std::fill(page.codes.begin(), page.codes.end(), (1 << bits) - 1);
      std::fill(page.step.begin(), page.step.end(), 0.5f);
      std::fill(page.queries.begin(), page.queries.end(), sign);
      page.ExpectScores(0, 64, kChunkHeads);
    }
  }
}

// One feature with all the weight costs the others their digits, and nothing else; a query of nothing scores nothing.
TEST(SketchScorerTest, TakesUnevenQueries) {
  std::mt19937_64 random(4);
  for (const int bits : {4, 8}) {
    SketchedPage page(bits, 128, 64, random);
    page.queries[17] = 1e4f;
    std::fill_n(page.queries.begin() + 128, 128, 0.0f);
    std::fill_n(page.queries.begin() + 256, 128, 1e-40f);
    page.ExpectScores(0, 64, kChunkHeads);
  }
}

TEST(SketchScorerTest, ANumberThatIsNoneShowsInItsOwnHead) {
  for (const int bits : {4, 8}) {
    std::vector<float> queries(size_t{2} * 64, 1.0f);
    queries[77] = kNan;
    const std::vector<uint8_t> codes(size_t{64} * 64);
    const std::vector<uint16_t> halves(128, uint16_t{0x3C00});
    std::vector<float> scores(size_t{96} * 2);
    GetSketchScorer()({.codes = codes.data(),
                       .low = halves.data(),
                       .step = halves.data() + 64,
                       .bits = bits,
                       .page_size = 64,
                       .first = 0,
                       .num_rows = 64,
                       .head_dim = 64,
                       .heads = 2,
                       .queries = queries.data(),
                       .scores = scores.data()});
    for (int row = 0; row < 64; ++row) {
      ASSERT_NEAR(scores[row * 2], 64, 1e-4);
      ASSERT_TRUE(std::isnan(scores[row * 2 + 1]));
    }
  }
}

TEST(RowKernelsTest, BinsAreCountedAsTheyAreDefined) {
  std::mt19937_64 random(6);
  std::uniform_real_distribution<float> exponent(-70, 8);
  std::vector<float> squares(kBlockRows);
  for (float& each : squares) each = std::exp2(exponent(random));
  squares[0] = squares[40] = 0;
  squares[1] = 0x1p-58f;
  squares[2] = 0x1p-140f;
  squares[3] = 0x1p6f;
  squares[4] = 0x1.fffffep5f;
  for (const int num_rows : {0, 1, 7, 64, 201, kBlockRows}) {
    for (const bool zeros : {false, true}) {
      std::vector<uint32_t> expected(sampling::kInclusionBins, 3u);
      std::vector<uint32_t> found = expected;
      for (int row = 0; row < num_rows; ++row) {
        expected[sampling::InclusionBin(squares[row])] += static_cast<uint32_t>(zeros || squares[row] > 0);
      }
      GetRowKernels(DType::kBFloat16).count_bins(squares.data(), num_rows, zeros, found.data());
      ASSERT_EQ(found, expected) << num_rows << " rows, " << zeros;
    }
  }
}

TEST(RowKernelsTest, RowsAreDrawnAsTheDrawIsDefined) {
  std::mt19937_64 random(7);
  std::vector<uint32_t> inclusions(kBlockRows);
  std::vector<int32_t> found(kBlockRows + kRowGroup);
  for (const double certain : {0.0, 0.1, 1.0}) {
    for (uint32_t& each : inclusions) {
      each = std::bernoulli_distribution(certain)(random) ? sampling::kCertain : random() % (sampling::kCertain / 8);
    }
    inclusions[3] = inclusions[17] = 0;
    for (const int num_rows : {0, 1, 7, 64, 201, kBlockRows}) {
      const auto offset = static_cast<uint32_t>(random() % sampling::kCertain);
      constexpr int32_t kFirst = 512;
      std::vector<int32_t> expected;
      uint64_t before = 0;
      for (int row = 0; row < num_rows; before += inclusions[row++]) {
        if (sampling::IsIncluded(before, inclusions[row], offset)) expected.push_back(kFirst + row);
      }
      uint32_t past = offset;
      const int count =
          GetRowKernels(DType::kBFloat16).draw_rows(inclusions.data(), num_rows, kFirst, &past, found.data());
      ASSERT_EQ(std::vector<int32_t>(found.begin(), found.begin() + count), expected) << num_rows << ", " << certain;
      ASSERT_EQ(past, (offset + before) % sampling::kCertain);
    }
  }
}

TEST(RowKernelsTest, RoughExponentialsAreNear) {
  const float none = -std::numeric_limits<float>::infinity();
  std::vector<float> scores;
  for (float score = 2; score > -84; score -= 0.0113f) scores.push_back(score);
  scores.resize(scores.size() / kRowGroup * kRowGroup);
  const auto near = static_cast<int>(scores.size());
  for (const float score : {-85.0f, -1e30f, none, std::numeric_limits<float>::quiet_NaN()}) scores.push_back(score);
  const auto count = static_cast<int>(scores.size());
  scores.resize(near + kRowGroup, none);
  std::vector<float> weights(scores.size());
  GetRowKernels(DType::kBFloat16).rough_exponentials(scores.data(), count, 1, {{2, 2, 2, 2}}, weights.data(), {});
  for (int i = 0; i < near; ++i) {
    const double exact = std::exp(static_cast<double>(scores[i]) - 2);
    ASSERT_NEAR(weights[i], exact, 9e-5 * exact) << scores[i];
  }
  for (int i = near; i < near + 3; ++i) EXPECT_EQ(weights[i], 0) << scores[i];
  EXPECT_TRUE(std::isnan(weights[near + 3]));
}

// A split of a group of which no row was drawn.
TEST(RowKernelsTest, NoRowsSumToNothing) {
  for (const int pitch : {1, 2, 4}) {
    const HeadVector sum =
        GetRowKernels(DType::kBFloat16).exponentials(nullptr, 0, pitch, {{0, 0, 0, 0}}, nullptr, {.begin = nullptr});
    for (const float lane : sum.lane) EXPECT_EQ(lane, 0.0f);
  }
}

}  // namespace
}  // namespace santa::cpu
