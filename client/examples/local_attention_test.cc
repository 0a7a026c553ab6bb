// The blocked fp32 attention and its matrix product against plain loops in double.
#include "client/examples/local_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "client/examples/simd.h"

namespace santa {
namespace {

std::vector<float> RandomFloats(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(MatMulAdd, IsTheProductForEverySmallShape) {
  for (int64_t m = 1; m <= 20; ++m) {
    for (const int64_t n : {16, 48, 64, 112, 256}) {
      const int64_t k = 5 + m;
      const std::vector<float> a = RandomFloats(m * k, 1), b = RandomFloats(k * n, 2), start = RandomFloats(m * n, 3);
      std::vector<float> c = start;
      MatMulAdd(m, n, k, a.data(), k, b.data(), n, c.data(), n);
      for (int64_t i = 0; i < m * n; ++i) {
        double expected = start[i];
        for (int64_t j = 0; j < k; ++j) expected += static_cast<double>(a[i / n * k + j]) * b[j * n + i % n];
        ASSERT_NEAR(c[i], expected, 1e-4) << m << " x " << n << " element " << i;
      }
    }
  }
}

struct Shape {
  int32_t query_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int64_t tokens = 0;
};

LlamaConfig ConfigOf(const Shape& shape) {
  LlamaConfig config;
  config.num_layers = 2;
  config.num_query_heads = shape.query_heads;
  config.num_kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  return config;
}

// One query head of one token by definition.
std::vector<double> Reference(const Shape& shape, const std::vector<float>& k, const std::vector<float>& v,
                              const float* q, int32_t query_head, int64_t visible) {
  const int64_t dim = shape.head_dim, stride = shape.kv_heads * dim;
  const int64_t offset = query_head / (shape.query_heads / shape.kv_heads) * dim;
  std::vector<double> weights(visible), o(dim);
  double highest = -INFINITY, sum = 0;
  for (int64_t t = 0; t < visible; ++t) {
    for (int64_t d = 0; d < dim; ++d) weights[t] += static_cast<double>(q[d]) * k[t * stride + offset + d];
    weights[t] /= std::sqrt(static_cast<double>(dim));
    highest = std::max(highest, weights[t]);
  }
  for (double& weight : weights) sum += weight = std::exp(weight - highest);
  for (int64_t t = 0; t < visible; ++t) {
    for (int64_t d = 0; d < dim; ++d) o[d] += weights[t] / sum * v[t * stride + offset + d];
  }
  return o;
}

class LocalAttentionTest : public testing::TestWithParam<Shape> {};

TEST_P(LocalAttentionTest, CausalAndStepByStepMatchTheDefinition) {
  const Shape shape = GetParam();
  const int64_t n = shape.tokens, q_size = shape.query_heads * shape.head_dim;
  const int64_t kv_size = shape.kv_heads * shape.head_dim;
  const std::vector<float> q = RandomFloats(n * q_size, 4), k = RandomFloats(n * kv_size, 5);
  const std::vector<float> v = RandomFloats(n * kv_size, 6);
  ThreadPool pool(3);

  KvHistory history(ConfigOf(shape), ElementType::kFloat32);
  history.Append(1, n, k.data(), v.data());
  std::vector<float> causal(n * q_size), stepwise(n * q_size);
  AttendCausal(history, 1, 0, n, shape.query_heads, q.data(), causal.data(), pool);

  LocalAttention attention(shape.query_heads, &pool);
  const int64_t sequence = attention.Add(KvHistory(ConfigOf(shape), ElementType::kFloat32));
  for (int64_t t = 0; t < n; ++t) {
    const AttentionStep step = {.sequence = sequence,
                                .position = t,
                                .q = q.data() + t * q_size,
                                .k = k.data() + t * kv_size,
                                .v = v.data() + t * kv_size,
                                .o = stepwise.data() + t * q_size};
    ASSERT_TRUE(attention.Attend(1, {&step, 1}).ok());
  }
  for (int64_t t = 0; t < n; t += t % 5 == 0 ? 1 : 7) {
    for (int32_t h = 0; h < shape.query_heads; ++h) {
      const int64_t at = t * q_size + h * shape.head_dim;
      const std::vector<double> expected = Reference(shape, k, v, q.data() + at, h, t + 1);
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        ASSERT_NEAR(causal[at + d], expected[d], 1e-5) << "token " << t << " head " << h << " feature " << d;
        ASSERT_NEAR(stepwise[at + d], expected[d], 1e-5) << "token " << t << " head " << h << " feature " << d;
      }
    }
  }
}

// Lengths on both sides of a block of keys (128) and of a tile of queries (96).
INSTANTIATE_TEST_SUITE_P(Shapes, LocalAttentionTest,
                         testing::Values(Shape{8, 2, 128, 300}, Shape{4, 4, 64, 129}, Shape{6, 2, 16, 128},
                                         Shape{3, 1, 32, 97}, Shape{1, 1, 16, 1}));

TEST(KvHistory, CopiesShareBlocksAndGrowApart) {
  const Shape shape = {2, 2, 16, 200};
  const std::vector<float> k = RandomFloats(400 * 32, 7), v = RandomFloats(400 * 32, 8);
  KvHistory parent(ConfigOf(shape), ElementType::kBFloat16);
  parent.Append(0, 200, k.data(), v.data());
  KvHistory child = parent;
  EXPECT_EQ(child.Keys(0, 0, 0), parent.Keys(0, 0, 0));
  child.Append(0, 200, k.data() + 200 * 32, v.data() + 200 * 32);
  parent.Append(0, 1, v.data(), k.data());
  EXPECT_EQ(child.Keys(0, 0, 0), parent.Keys(0, 0, 0));
  EXPECT_NE(child.Keys(0, 0, 1), parent.Keys(0, 0, 1));
  EXPECT_EQ(parent.length(0), 201);
  ASSERT_EQ(child.length(0), 400);
  EXPECT_EQ(child.length(1), 0);

  std::vector<float> read_k(400 * 32), read_v(400 * 32);
  child.Read(0, 0, 400, read_k.data(), read_v.data());
  for (size_t i = 0; i < k.size(); ++i) {
    ASSERT_EQ(read_k[i], BFloat16ToFloat(FloatToBFloat16(k[i])));
    ASSERT_EQ(read_v[i], BFloat16ToFloat(FloatToBFloat16(v[i])));
  }
}

TEST(LocalAttention, RefusesUnknownSequences) {
  ThreadPool pool(1);
  LocalAttention attention(2, &pool);
  EXPECT_EQ(attention.Fork(0, 1).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(attention.Release(0).code(), absl::StatusCode::kNotFound);
  const AttentionStep step = {.sequence = 0};
  EXPECT_EQ(attention.Attend(0, {&step, 1}).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace santa
