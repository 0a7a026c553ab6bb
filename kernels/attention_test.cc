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
  EXPECT_EQ(Name(static_cast<Method>(200)), "unknown");
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

}  // namespace
}  // namespace santa
