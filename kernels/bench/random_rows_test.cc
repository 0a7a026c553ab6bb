#include "kernels/bench/random_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/reference/number_format.h"

namespace santa::bench {
namespace {

constexpr int64_t kTokens = 20000, kDim = 128, kGroup = 4, kKvHeads = 2, kBatch = 2;

Options MakeOptions(Data data, double sigma) {
  Options options;
  options.batch = kBatch;
  options.tokens = kTokens;
  options.query_heads = kGroup * kKvHeads;
  options.kv_heads = kKvHeads;
  options.head_dim = kDim;
  options.data = data;
  options.sigma = sigma;
  return options;
}

struct Made {
  std::vector<float> queries = std::vector<float>(kBatch * kGroup * kKvHeads * kDim);
  RandomRows rows;

  explicit Made(const Options& options) : rows(options, queries) {}

  std::vector<float> Row(int64_t token, int64_t kv_head, bool value) const {
    std::vector<float> row(kDim);
    rows.Copy(kSequence, kTokens, token, kv_head, value, row.data());
    return row;
  }
  // Of a head of the group in kSequence.
  double Logit(int64_t head, int64_t kv_head, int64_t token) const {
    const std::vector<float> key = Row(token, kv_head, false);
    const float* q = &queries[((kSequence % kBatch * kKvHeads + kv_head) * kGroup + head) * kDim];
    double sum = 0;
    for (int64_t d = 0; d < kDim; ++d) sum += q[d] * key[d];
    return sum / std::sqrt(kDim);
  }

  static constexpr int64_t kSequence = 3;  // of item 1
};

struct Moments {
  double mean = 0, deviation = 0;
};
Moments LogitsOf(const Made& made, int64_t head, int64_t kv_head, int64_t begin, int64_t end) {
  double sum = 0, squares = 0;
  for (int64_t token = begin; token < end; ++token) {
    const double logit = made.Logit(head, kv_head, token);
    sum += logit;
    squares += logit * logit;
  }
  const double mean = sum / static_cast<double>(end - begin);
  return {mean, std::sqrt(squares / static_cast<double>(end - begin) - mean * mean)};
}

// What is random here is one draw with a fixed seed; bounds are some five standard deviations wide.
TEST(RandomRowsTest, AttentionHasWhatItIsKnownFor) {
  for (const double sigma : {1.5, 4.0}) {
    const Made made(MakeOptions(Data::kAttention, sigma));
    for (int64_t kv_head = 0; kv_head < kKvHeads; ++kv_head) {
      for (int64_t head = 0; head < kGroup; ++head) {
        EXPECT_NEAR(made.Logit(head, kv_head, 0), 4 * sigma + 1, 0.05 * sigma);  // queries are rounded to bf16
        const Moments middle = LogitsOf(made, head, kv_head, 1, kTokens - 64);
        EXPECT_NEAR(middle.mean, 0, 0.04 * sigma);
        EXPECT_NEAR(middle.deviation, sigma, 0.03 * sigma);
        EXPECT_NEAR(LogitsOf(made, head, kv_head, kTokens - 64, kTokens).mean, 1, 0.63 * sigma);
      }
      int outliers = 0;
      double mean_squared = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        double key = 0, value = 0;
        for (int64_t token = 1; token <= 1000; ++token) {
          key += std::pow(made.Row(token, kv_head, false)[d], 2) / 1000;
          value += made.Row(token, kv_head, true)[d] / 1000;
        }
        outliers += key > 16 ? 1 : 0;
        mean_squared += value * value / kDim;
      }
      EXPECT_EQ(outliers, 4);
      EXPECT_NEAR(mean_squared, 0.25, 0.16);
    }
  }
}

TEST(RandomRowsTest, NormalHasNone) {
  const Made made(MakeOptions(Data::kNormal, 2));
  EXPECT_LT(std::abs(made.Logit(0, 0, 0)), 10);
  const Moments all = LogitsOf(made, 0, 1, 0, kTokens);
  EXPECT_NEAR(all.mean, 0, 0.1);
  EXPECT_NEAR(all.deviation, 2, 0.7);  // that of the query's length
}

// A sequence has its rows whoever asks, and every one others.
TEST(RandomRowsTest, IsAFunctionOfTheAddress) {
  const Made one(MakeOptions(Data::kAttention, 2)), two(MakeOptions(Data::kAttention, 2));
  EXPECT_EQ(one.queries, two.queries);
  EXPECT_EQ(one.Row(77, 1, true), two.Row(77, 1, true));
  EXPECT_NE(one.Row(77, 1, true), two.Row(78, 1, true));
  EXPECT_NE(one.Row(77, 1, true), two.Row(77, 0, true));
  EXPECT_NE(one.Row(77, 1, true), two.Row(77, 1, false));
  for (const float q : one.queries) EXPECT_EQ(q, reference::Round(DType::kBFloat16, q));
}

}  // namespace
}  // namespace santa::bench
