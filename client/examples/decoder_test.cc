// The decoder against PyTorch's logits of the same weights (model/export.py writes them), and against itself: prefill
// in one go, in pieces, and token by token.
#include "client/examples/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "client/examples/local_attention.h"
#include "client/safetensors.h"

namespace santa {
namespace {

constexpr char kModel[] = "model/weights";

// Both sides compute in fp32 from the same bf16 weights, in different orders of summation. Logits have magnitude 10.
constexpr float kTolerance = 5e-4f;

// The same with keys and values rounded to bf16 (8 bits of mantissa), as a server stores them.
constexpr float kRoundedTolerance = 0.25f;

struct Golden {
  std::vector<int32_t> tokens;
  std::vector<float> logits;  // [tokens][vocab]
};

class DecoderTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    pool_ = new ThreadPool();
    absl::StatusOr<LlamaModel> model = LlamaModel::Load(kModel, pool_);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = new LlamaModel(*std::move(model));
    const absl::StatusOr<Safetensors> file = Safetensors::Open(std::string(kModel) + "/golden.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    const absl::StatusOr<TensorView> tokens = file->Get("tokens");
    const absl::StatusOr<TensorView> logits = file->Get("logits");
    ASSERT_TRUE(tokens.ok() && logits.ok()) << tokens.status() << logits.status();
    ASSERT_EQ(tokens->type, ElementType::kInt32);
    golden_ = new Golden;
    golden_->tokens.resize(tokens->num_elements());
    std::copy_n(tokens->data.data(), tokens->data.size(), reinterpret_cast<char*>(golden_->tokens.data()));
    golden_->logits = *ToFloats(*logits);
    ASSERT_EQ(golden_->logits.size(), golden_->tokens.size() * model_->config().vocab_size);
  }

  static void TearDownTestSuite() {
    delete golden_;
    delete model_;
    delete pool_;
  }

  void SetUp() override { ASSERT_NE(golden_, nullptr); }

  static float LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    float largest = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      const float difference = std::abs(a[i] - b[i]);
      if (!(difference <= largest)) largest = difference;  // a NaN stays
    }
    return largest;
  }

  static std::vector<float> PrefillAll(KvHistory& history) {
    const auto n = static_cast<int64_t>(golden_->tokens.size());
    absl::StatusOr<std::vector<float>> logits = Prefill(*model_, golden_->tokens, history, n);
    EXPECT_TRUE(logits.ok()) << logits.status();
    return *std::move(logits);
  }

  static ThreadPool* pool_;
  static LlamaModel* model_;
  static Golden* golden_;
};

ThreadPool* DecoderTest::pool_ = nullptr;
LlamaModel* DecoderTest::model_ = nullptr;
Golden* DecoderTest::golden_ = nullptr;

TEST_F(DecoderTest, PrefillMatchesPyTorch) {
  KvHistory history(model_->config(), ElementType::kFloat32);
  const float difference = LargestDifference(PrefillAll(history), golden_->logits);
  RecordProperty("largest_logit_difference", std::to_string(difference));
  EXPECT_LE(difference, kTolerance);
}

TEST_F(DecoderTest, Bf16CacheStaysNearPyTorch) {
  KvHistory history(model_->config(), ElementType::kBFloat16);
  const float difference = LargestDifference(PrefillAll(history), golden_->logits);
  RecordProperty("largest_logit_difference", std::to_string(difference));
  EXPECT_LE(difference, kRoundedTolerance);
  EXPECT_GT(difference, 0);
}

TEST_F(DecoderTest, PrefillInPiecesIsTheSame) {
  KvHistory whole(model_->config(), ElementType::kBFloat16), pieces(model_->config(), ElementType::kBFloat16);
  const std::vector<float> expected = PrefillAll(whole);
  std::vector<float> logits;
  const std::span<const int32_t> tokens = golden_->tokens;
  for (size_t begin = 0, n = 1; begin < tokens.size(); begin += n, n = 3 * n + 1) {
    n = std::min(n, tokens.size() - begin);
    const absl::StatusOr<std::vector<float>> part = Prefill(*model_, tokens.subspan(begin, n), pieces, n);
    ASSERT_TRUE(part.ok()) << part.status();
    logits.insert(logits.end(), part->begin(), part->end());
  }
  EXPECT_LE(LargestDifference(logits, expected), 1e-4f);
}

TEST_F(DecoderTest, DecodingTokenByTokenMatchesPyTorch) {
  const size_t prompt = golden_->tokens.size() - 40;
  const std::span<const int32_t> tokens = golden_->tokens;
  KvHistory history(model_->config(), ElementType::kFloat32);
  ASSERT_TRUE(Prefill(*model_, tokens.first(prompt), history).ok());
  LocalAttention attention(model_->config().num_query_heads, pool_);
  const int64_t parent = attention.Add(history);
  const absl::StatusOr<int64_t> fork = attention.Fork(parent, 1);
  ASSERT_TRUE(fork.ok());
  for (size_t i = prompt; i < tokens.size(); ++i) {
    // Two sequences in a batch, one of them a fork of the other: equal answers.
    const auto position = static_cast<int64_t>(i);
    const DecodeToken batch[] = {{parent, position, tokens[i]}, {*fork, position, tokens[i]}};
    const absl::StatusOr<std::vector<float>> logits = DecodeStep(*model_, batch, attention);
    ASSERT_TRUE(logits.ok()) << logits.status();
    const int64_t vocab = model_->config().vocab_size;
    const std::vector<float> first(logits->begin(), logits->begin() + vocab);
    const std::vector<float> second(logits->begin() + vocab, logits->end());
    const auto row = golden_->logits.begin() + position * vocab;
    EXPECT_LE(LargestDifference(first, std::vector<float>(row, row + vocab)), kTolerance) << "position " << i;
    EXPECT_EQ(first, second);
  }
}

TEST_F(DecoderTest, RefusesWhatItCannotRun) {
  KvHistory history(model_->config(), ElementType::kFloat32);
  LocalAttention attention(model_->config().num_query_heads, pool_);
  const int32_t outside[] = {static_cast<int32_t>(model_->config().vocab_size)};
  EXPECT_EQ(Prefill(*model_, {}, history).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Prefill(*model_, outside, history).status().code(), absl::StatusCode::kInvalidArgument);
  const int32_t token[] = {65};
  EXPECT_EQ(Prefill(*model_, token, history, 2).status().code(), absl::StatusCode::kInvalidArgument);
  const DecodeToken unknown[] = {{.sequence = 7, .position = 0, .token = 65}};
  EXPECT_EQ(DecodeStep(*model_, unknown, attention).status().code(), absl::StatusCode::kNotFound);
  const DecodeToken gap[] = {{.sequence = attention.Add(history), .position = 3, .token = 65}};
  EXPECT_EQ(DecodeStep(*model_, gap, attention).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(LlamaModel::Load("no/such/folder", pool_).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace santa
