#include "server/rpc/validate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "server/rpc/convert.h"

namespace santa {
namespace {

constexpr KvLayout kLayout = {
    .num_layers = 2, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8, .page_size = 16, .dtype = DType::kFloat16};

void SetTensor(v1::Tensor* tensor, const std::vector<int64_t>& shape, float value) {
  tensor->set_dtype(v1::DATA_TYPE_FLOAT32);
  int64_t count = 1;
  for (const int64_t extent : shape) {
    tensor->add_shape(extent);
    count *= extent;
  }
  const std::vector<float> values(count, value);
  tensor->set_data(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

TEST(ValidateTest, AnItemBecomesAStepItem) {
  v1::AttendItem item;
  item.mutable_handle()->set_id(7);
  item.mutable_handle()->set_generation(9);
  item.set_position(11);
  SetTensor(item.mutable_q(), {1, 4, 8}, 0.5);
  SetTensor(item.mutable_k(), {1, 2, 8}, 1);
  SetTensor(item.mutable_v(), {1, 2, 8}, 2);
  v1::AttentionOptions* options = item.mutable_options();
  options->set_method(v1::METHOD_S2ANTA_PROP);
  options->set_sample_count(64);
  options->set_seed(5);
  options->set_scale(0.25);
  options->set_window(10);
  options->set_soft_cap(30);
  options->set_budget_rounding(v1::BUDGET_ROUNDING_LARGEST_REMAINDER);
  options->set_score_draws(12);
  for (int h = 0; h < 4; ++h) options->add_sink_logits(static_cast<float>(h));

  StepItem out;
  ASSERT_TRUE(ReadAttendItem(FieldsOf(item), kLayout, &out).ok());
  EXPECT_EQ(out.sequence, (SequenceHandle{.id = 7, .generation = 9}));
  EXPECT_EQ(out.position, 11);
  EXPECT_EQ(out.tokens.position, 11);
  EXPECT_EQ(out.tokens.count, 1);
  EXPECT_EQ(out.tokens.k, item.k().data().data());
  EXPECT_EQ(out.tokens.v, item.v().data().data());
  EXPECT_EQ(out.q, item.q().data().data());
  EXPECT_EQ(out.options.method, Method::kS2antaProp);
  EXPECT_EQ(out.options.sample_count, 64U);
  EXPECT_EQ(out.options.seed, 5U);
  EXPECT_EQ(out.options.scale, 0.25F);
  EXPECT_EQ(out.options.window, 10U);
  EXPECT_EQ(out.options.soft_cap, 30.0F);
  EXPECT_EQ(out.options.budget_rounding, BudgetRounding::kLargestRemainder);
  EXPECT_EQ(out.options.score_draws, 12U);
  EXPECT_EQ(out.sink_logits, options->sink_logits().data());
}

TEST(ValidateTest, AValueThatTheCachesDtypeCannotHoldIsRefused) {
  v1::AppendKvRequest chunk;
  SetTensor(chunk.mutable_k(), {3, 2, 8}, 65504);
  SetTensor(chunk.mutable_v(), {3, 2, 8}, 65520);
  StepItem out;
  const absl::Status status = ReadAppendChunk(chunk, {}, kLayout, &out);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "v.data: element 0 is 65520; allowed is what is finite in the cache's dtype, fp16");
}

TEST(ValidateTest, ExtentsThatOverflowAreRefused) {
  for (const int64_t tokens : {int64_t{1} << 61, std::numeric_limits<int64_t>::max(), int64_t{1} << 32}) {
    v1::AppendKvRequest chunk;
    SetTensor(chunk.mutable_k(), {0, 2, 8}, 0);
    SetTensor(chunk.mutable_v(), {0, 2, 8}, 0);
    chunk.mutable_k()->set_shape(0, tokens);
    chunk.mutable_v()->set_shape(0, tokens);
    StepItem out;
    EXPECT_EQ(ReadAppendChunk(chunk, {}, kLayout, &out).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ValidateTest, AMessageStaysShortWhateverTheRequestHolds) {
  v1::AttendItem item;
  item.mutable_handle();
  item.mutable_q()->set_dtype(v1::DATA_TYPE_FLOAT32);
  for (int i = 0; i < 100000; ++i) item.mutable_q()->add_shape(-i);
  StepItem out;
  const absl::Status status = ReadAttendItem(FieldsOf(item), kLayout, &out);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_LT(status.message().size(), 300U);
}

TEST(ValidateTest, Leases) {
  const absl::Duration max = absl::Hours(1);
  EXPECT_EQ(*ToLease(0, max), absl::ZeroDuration());
  EXPECT_EQ(*ToLease(3600, max), max);
  EXPECT_GT(*ToLease(1e-300, max), absl::ZeroDuration());
  for (const double bad : {-1.0, 3600.1, 1e300, std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    EXPECT_EQ(ToLease(bad, max).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ValidateTest, PageTokensAreTheServersOwn) {
  const std::string token = MakePageToken(123, 1);
  EXPECT_EQ(*ReadPageToken(token, 1), 123U);
  EXPECT_EQ(*ReadPageToken("", 1), 0U);
  std::string forged = token;
  forged[15] = forged[15] == '0' ? '1' : '0';
  for (const std::string& bad : {forged, MakePageToken(123, 2), std::string("x"), std::string(1000, '\xff')}) {
    const auto read = ReadPageToken(bad, 1);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_LT(read.status().message().size(), 300U);
  }
}

}  // namespace
}  // namespace santa
