#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"

namespace santa {
namespace {

KvLayout GoodLayout() {
  return {.num_layers = 2, .num_query_heads = 12, .num_kv_heads = 4, .head_dim = 72, .page_size = 32};
}

TEST(AttentionTest, SizesFollowFromTheLayout) {
  const KvLayout layout = GoodLayout();
  EXPECT_EQ(layout.group_size(), 3);
  EXPECT_EQ(layout.row_bytes(), 144);
  EXPECT_EQ(layout.head_page_bytes(), 144 * 32);
  EXPECT_EQ(layout.layer_page_bytes(), 144 * 32 * 2 * 4);
  EXPECT_EQ(layout.page_bytes(), 144 * 32 * 2 * 4 * 2);
}

TEST(AttentionTest, NamesAreTheApis) {
  EXPECT_EQ(Name(DType::kBFloat16), "bf16");
  EXPECT_EQ(Name(Method::kExact), "EXACT");
  EXPECT_EQ(Name(Method::kS2antaFlash), "S2ANTA_FLASH");
  EXPECT_EQ(Name(Method::kBernoulliQk), "BERNOULLI_QK");
  EXPECT_EQ(Name(static_cast<Method>(200)), "unknown");
  EXPECT_EQ(Name(KeyOrder::kFeatureMajor), "feature");
}

TEST(AttentionTest, LayoutsAtTheEdgesAreTaken) {
  EXPECT_TRUE(Validate(GoodLayout()).ok());
  for (const int32_t head_dim : {8, 256}) {
    for (const int32_t page_size : {16, 256}) {
      KvLayout layout = GoodLayout();
      layout.head_dim = head_dim;
      layout.page_size = page_size;
      EXPECT_TRUE(Validate(layout).ok());
    }
  }
}

TEST(AttentionTest, ScalesAreForFloat8AndFitTheLayout) {
  KvLayout layout = GoodLayout();
  KvScales scales = {.k = std::vector<float>(8, 0.5f), .v = std::vector<float>(8, 2)};
  EXPECT_TRUE(Validate(KvScales{}, layout).ok());
  EXPECT_EQ(Validate(scales, layout).message(), "k_scale and v_scale are for dtype fp8_e4m3; dtype is bf16");
  layout.dtype = DType::kFloat8E4M3;
  EXPECT_EQ(layout.row_bytes(), 72);
  EXPECT_TRUE(Validate(scales, layout).ok());
  scales.v[3] = 0;
  EXPECT_EQ(Validate(scales, layout).message(), "v_scale is 0; it must be finite and > 0");
  scales.v.pop_back();
  EXPECT_EQ(Validate(scales, layout).message(),
            "the number of elements of v_scale is 7; it must be num_layers * num_kv_heads = 8");
}

struct BadLayout {
  std::function<void(KvLayout&)> spoil;
  std::string message;
};

TEST(AttentionTest, BadLayoutsAreNamed) {
  const std::vector<BadLayout> cases = {
      {[](KvLayout& l) { l.num_layers = 0; }, "num_layers is 0; it must be in [1, 65536]"},
      {[](KvLayout& l) { l.num_layers = 65537; }, "num_layers is 65537"},
      {[](KvLayout& l) { l.num_kv_heads = -4; }, "num_kv_heads is -4"},
      {[](KvLayout& l) { l.num_query_heads = 0; }, "num_query_heads is 0"},
      {[](KvLayout& l) { l.num_query_heads = 10; }, "num_query_heads is 10; it must be a multiple of num_kv_heads"},
      {[](KvLayout& l) { l.head_dim = 0; }, "head_dim is 0; it must be a multiple of 8 in [8, 256]"},
      {[](KvLayout& l) { l.head_dim = 100; }, "head_dim is 100"},
      {[](KvLayout& l) { l.head_dim = 264; }, "head_dim is 264"},
      {[](KvLayout& l) { l.page_size = 8; }, "page_size is 8; it must be a power of two in [16, 256]"},
      {[](KvLayout& l) { l.page_size = 48; }, "page_size is 48"},
      {[](KvLayout& l) { l.page_size = 512; }, "page_size is 512"},
      {[](KvLayout& l) { l.dtype = static_cast<DType>(9); }, "dtype is 9"},
      {[](KvLayout& l) { l.key_order = static_cast<KeyOrder>(7); }, "key_order is 7; it must be token or feature"},
      {[](KvLayout& l) {
         l.key_order = KeyOrder::kFeatureMajor;
         l.sketch = Sketch::kK4;
       },
       "sketch is k4; it must be none where key_order is feature"},
  };
  for (const BadLayout& bad : cases) {
    KvLayout layout = GoodLayout();
    bad.spoil(layout);
    const absl::Status status = Validate(layout);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StartsWith(status.message(), bad.message)) << status;
  }
}

struct BadOptions {
  std::function<void(AttentionOptions&)> spoil;
  std::string message;
};

TEST(AttentionTest, BadOptionsAreNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<BadOptions> cases = {
      {[](AttentionOptions& o) { o.method = static_cast<Method>(77); }, "method is 77"},
      {[](AttentionOptions& o) { o.method = Method::kExact; }, "sample_count is 64; it must be 0 for EXACT"},
      {[](AttentionOptions& o) { o.sample_count = 0; }, "sample_count is 0; it must be in [1, 1048576] for SANTA"},
      {[](AttentionOptions& o) { o.sample_count = kMaxSampleCount + 1; }, "sample_count is 1048577"},
      {[](AttentionOptions& o) { o.scale = -1; }, "scale is -1; it must be 0 (1 / sqrt(head_dim)) or finite and > 0"},
      {[=](AttentionOptions& o) { o.scale = nan; }, "scale is nan"},
      {[=](AttentionOptions& o) { o.scale = infinity; }, "scale is inf"},
      {[](AttentionOptions& o) { o.soft_cap = -30; }, "soft_cap is -30; it must be 0 (none) or finite and > 0"},
      {[=](AttentionOptions& o) { o.soft_cap = infinity; }, "soft_cap is inf"},
      {[](AttentionOptions& o) { o.budget_rounding = static_cast<BudgetRounding>(5); }, "budget_rounding is 5"},
      {[](AttentionOptions& o) { o.score_draws = kMaxScoreDraws + 1; },
       "score_draws is 1025; it must be 0 (exact scores) or in [1, 1024]"},
      {[](AttentionOptions& o) { o = {.score_draws = 1}; }, "score_draws is 1; it must be 0 for EXACT"},
      {[](AttentionOptions& o) { o = {.method = Method::kBernoulliQk}; },
       "score_draws is 0; it must be in [1, 1024] for BERNOULLI_QK"},
      {[](AttentionOptions& o) { o = {.method = Method::kBernoulliQk, .score_draws = 1025}; },
       "score_draws is 1025; it must be in [1, 1024] for BERNOULLI_QK"},
      {[](AttentionOptions& o) { o = {.method = Method::kBernoulliQk, .sample_count = 8, .score_draws = 1}; },
       "sample_count is 8; it must be 0 for BERNOULLI_QK"},
      {[](AttentionOptions& o) {
         o = {.method = Method::kCoordinated, .target_relative_error = 0.1f, .score_draws = 2};
       },
       "score_draws is 2; it must be 0 where there is a target_relative_error"},
      {[](AttentionOptions& o) {
         o = {.method = Method::kBernoulliQk, .target_relative_error = 0.1f, .score_draws = 2};
       },
       "target_relative_error is 0.1; it must be 0 for BERNOULLI_QK"},
  };
  for (const BadOptions& bad : cases) {
    AttentionOptions options{.method = Method::kSanta, .sample_count = 64};
    EXPECT_TRUE(Validate(options).ok());
    bad.spoil(options);
    const absl::Status status = Validate(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StartsWith(status.message(), bad.message)) << status;
  }
  EXPECT_TRUE(Validate(AttentionOptions{}).ok());
}

TEST(AttentionTest, EveryMethodThatDrawsValuesTakesScoreDraws) {
  for (const Method method : kAllMethods) {
    AttentionOptions options = {
        .method = method, .sample_count = DrawsValues(method) ? 4u : 0u, .score_draws = kMaxScoreDraws};
    EXPECT_EQ(Validate(options).ok(), method != Method::kExact) << Name(method);
  }
}

// What a layout has not got is named with what it was asked for.
TEST(AttentionTest, PairsThatALayoutCannotAnswerAreNamed) {
  KvLayout layout = GoodLayout();
  const AttentionOptions sketched = {.method = Method::kSketched, .sample_count = 4};
  AttentionOptions both = sketched;
  both.score_draws = 3;
  const AttentionOptions drawn = {.method = Method::kSystematic, .sample_count = 4, .score_draws = 3};
  EXPECT_TRUE(SupportsLayout({}, layout).ok());
  EXPECT_EQ(SupportsLayout(sketched, layout),
            absl::UnimplementedError(
                "method is SKETCHED, sketch is none; SKETCHED needs a KV cache with a sketch (--sketch)"));
  EXPECT_EQ(
      SupportsLayout(drawn, layout),
      absl::UnimplementedError("method is SYSTEMATIC, score_draws is 3, key_order is token; score draws need a KV "
                               "cache with feature-major keys (--key_order=feature)"));
  layout.key_order = KeyOrder::kFeatureMajor;
  EXPECT_TRUE(Validate(layout).ok());
  EXPECT_TRUE(SupportsLayout(drawn, layout).ok());
  EXPECT_TRUE(SupportsLayout({.method = Method::kBernoulliQk, .score_draws = 1}, layout).ok());
  layout = GoodLayout();
  layout.sketch = Sketch::kK4;
  EXPECT_TRUE(SupportsLayout(sketched, layout).ok());
  EXPECT_EQ(
      SupportsLayout(both, layout),
      absl::UnimplementedError("method is SKETCHED, score_draws is 3; SKETCHED has its scores from the sketch, and "
                               "takes no score draws"));
}

TEST(AttentionTest, ScoreDrawsAreNeverExactAndCountFeatures) {
  const KvLayout layout = GoodLayout();
  DecodeItem item = {.num_tokens = 100, .options = {.method = Method::kBernoulliQk, .score_draws = 1}};
  EXPECT_TRUE(ReadsAllValues(item));
  EXPECT_FALSE(IsExact(item));
  item.options = {.method = Method::kSystematic, .sample_count = 100, .score_draws = 1};
  EXPECT_TRUE(ReadsAllValues(item));
  EXPECT_FALSE(IsExact(item));
  item.options.sample_count = 99;
  EXPECT_FALSE(ReadsAllValues(item));
  item.options.window = 50;
  const DecodeStatistics statistics = MakeStatistics(layout, item, 30, 17);
  EXPECT_EQ(statistics.key_rows_read, 50 * 4);
  EXPECT_EQ(statistics.kv_bytes_read, 17 * 50 * 2 + 30 * 144);  // bf16
  EXPECT_EQ(MakeStatistics(layout, item, 30).kv_bytes_read, (50 * 4 + 30) * 144);
}

}  // namespace
}  // namespace santa
