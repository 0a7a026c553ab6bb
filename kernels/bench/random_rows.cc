#include "kernels/bench/random_rows.h"

#include <algorithm>
#include <cmath>

#include "kernels/reference/number_format.h"
#include "kernels/sampling/uniform.h"

namespace santa::bench {
namespace {

constexpr int64_t kNumbers = int64_t{1} << 20;

constexpr int kOutliers = 4;
constexpr float kOutlierDeviation = 8;
constexpr double kCorrelation = 0.5;
constexpr double kSinkSigmas = 4, kSinkExtra = 1;
constexpr int64_t kWindowTokens = 64;
constexpr float kWindowExtra = 1;
constexpr float kMeanDeviation = 0.5F;

// Solves matrix x = (1, ..., 1) for a symmetric positive definite matrix, [size][size], by elimination.
std::vector<double> SolveForOnes(std::vector<double> matrix, int64_t size) {
  std::vector<double> x(size, 1);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t row = i + 1; row < size; ++row) {
      const double factor = matrix[row * size + i] / matrix[i * size + i];
      for (int64_t column = i; column < size; ++column) {
        matrix[row * size + column] -= factor * matrix[i * size + column];
      }
      x[row] -= factor * x[i];
    }
  }
  for (int64_t i = size - 1; i >= 0; --i) {
    for (int64_t column = i + 1; column < size; ++column) x[i] -= matrix[i * size + column] * x[column];
    x[i] /= matrix[i * size + i];
  }
  return x;
}

// With k = deviation * sum_h x_h a_h, a_h = q_h * deviation, which is the shortest form of a key in units of its
// channels' deviations: dot(q_h, k) = sum_j dot(a_h, a_j) x_j, to be sqrt(D) for every head.
std::vector<float> KeyOfLogitOne(std::span<const float> queries, const std::vector<float>& deviation) {
  const auto dim = static_cast<int64_t>(deviation.size());
  const auto group = static_cast<int64_t>(queries.size()) / dim;
  const auto scaled = [&](int64_t head, int64_t d) {
    return static_cast<double>(queries[head * dim + d]) * static_cast<double>(deviation[d]);
  };
  std::vector<double> products(group * group);
  for (int64_t a = 0; a < group; ++a) {
    for (int64_t b = 0; b < group; ++b) {
      for (int64_t d = 0; d < dim; ++d) products[a * group + b] += scaled(a, d) * scaled(b, d);
    }
    products[a * group + a] *= 1 + 1e-6;  // more heads than dimensions cannot all have what they want
  }
  const std::vector<double> x = SolveForOnes(products, group);
  std::vector<float> key(dim);
  for (int64_t d = 0; d < dim; ++d) {
    double sum = 0;
    for (int64_t head = 0; head < group; ++head) sum += x[head] * scaled(head, d);
    key[d] = static_cast<float>(sum * deviation[d] * std::sqrt(static_cast<double>(dim)));
  }
  return key;
}

}  // namespace

RandomRows::RandomRows(const Options& options, std::span<float> queries)
    : options_(options), numbers_(kNumbers + options.head_dim) {
  std::mt19937_64 random(options.seed + 1);
  std::normal_distribution<float> normal;
  for (float& number : numbers_) number = normal(random);
  // With k standard normal, dot(q, k) / sqrt(D) has the deviation |q| / sqrt(D): that of q's elements.
  for (float& number : queries) number = static_cast<float>(options.sigma) * normal(random);
  if (options.data == Data::kAttention) {
    const size_t group = options.query_heads / options.kv_heads * options.head_dim;
    for (size_t at = 0; at < queries.size(); at += group)
      heads_.push_back(MakeHead(random, queries.subspan(at, group)));
  }
  const DType rounded = options.dtype == DType::kFloat8E4M3 ? DType::kFloat16 : options.dtype;
  for (float& number : queries) number = static_cast<float>(reference::Round(rounded, number));
}

// queries: independent normals, which become the group's.
RandomRows::Head RandomRows::MakeHead(std::mt19937_64& random, std::span<float> queries) const {
  const auto dim = static_cast<size_t>(options_.head_dim);
  std::normal_distribution<float> normal;
  Head head = {.deviation = std::vector<float>(dim, 1), .raise = {}, .mean = std::vector<float>(dim)};
  std::fill_n(head.deviation.begin(), kOutliers, kOutlierDeviation);
  std::shuffle(head.deviation.begin(), head.deviation.end(), random);
  for (float& number : head.mean) number = kMeanDeviation * normal(random);

  const auto own = static_cast<float>(std::sqrt(1 - kCorrelation));
  const auto common = static_cast<float>(std::sqrt(kCorrelation) * options_.sigma);
  std::vector<float> base(dim);
  for (float& number : base) number = common * normal(random);
  for (size_t at = 0; at < queries.size(); at += dim) {
    double variance = 0;  // of the logits
    for (size_t d = 0; d < dim; ++d) {
      float& q = queries[at + d];
      q = own * q + base[d];
      variance += std::pow(q * head.deviation[d], 2) / static_cast<double>(dim);
    }
    const auto factor = static_cast<float>(options_.sigma / std::sqrt(variance));
    for (size_t d = 0; d < dim; ++d) queries[at + d] *= factor;
  }
  head.raise = KeyOfLogitOne(queries, head.deviation);
  return head;
}

void RandomRows::Copy(int64_t sequence, int64_t tokens, int64_t token, int64_t kv_head, bool value, float* row) const {
  const auto index = static_cast<uint64_t>(((sequence * options_.tokens + token) * options_.kv_heads + kv_head) * 2);
  std::copy_n(numbers_.data() + sampling::SplitMix64(index + (value ? 1 : 0)) % kNumbers, options_.head_dim, row);
  if (heads_.empty()) return;
  const Head& head = heads_[sequence % options_.batch * options_.kv_heads + kv_head];
  const bool sink = token == 0;
  const auto raised = sink                              ? static_cast<float>(kSinkSigmas * options_.sigma + kSinkExtra)
                      : token >= tokens - kWindowTokens ? kWindowExtra
                                                        : 0.0F;
  for (int64_t d = 0; d < options_.head_dim; ++d) {
    if (value) {
      row[d] += head.mean[d];
    } else {
      row[d] = (sink ? 0 : row[d] * head.deviation[d]) + raised * head.raise[d];
    }
  }
}

}  // namespace santa::bench
