#include "server/kv_scales.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace santa {
namespace {

constexpr KvLayout kLayout = {
    .num_layers = 2, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 64, .dtype = DType::kFloat8E4M3};

TEST(KvScalesTest, ReadsATableForKAndOneForV) {
  const auto scales = ParseKvScales(R"({"k_scale": [[1, 0.5], [2, 0.25]], "v_scale": [[3, 4], [5, 6]]})", kLayout);
  ASSERT_TRUE(scales.ok()) << scales.status();
  EXPECT_EQ(scales->k, (std::vector<float>{1, 0.5, 2, 0.25}));
  EXPECT_EQ(scales->v, (std::vector<float>{3, 4, 5, 6}));
}

TEST(KvScalesTest, SaysWhatIsWrong) {
  const std::string good = R"("k_scale": [[1, 1], [1, 1]])";
  const std::pair<std::string, std::string> cases[] = {
      {"", "it is no JSON object"},
      {"[1]", "it is no JSON object"},
      {"{" + good + "}", "v_scale is absent; allowed is a list of 2 lists (the layers) of 2 numbers"},
      {"{" + good + R"(, "v_scale": 7})", "v_scale is no list"},
      {"{" + good + R"(, "v_scale": [[1, 1]]})", "v_scale is a list of 1;"},
      {"{" + good + R"(, "v_scale": [[1, 1], [1]]})", "v_scale is one that has a list of 1;"},
      {"{" + good + R"(, "v_scale": [[1, 1], [1, "x"]]})", "something else than numbers"},
      {"{" + good + R"(, "v_scale": [[1, 1], [1, -2]]})", "v_scale is -2; it must be finite and > 0"},
      {"{" + good + R"(, "v_scale": [[1, 1], [1, 1e300]]})", "v_scale is inf; it must be finite and > 0"},
  };
  for (const auto& [json, message] : cases) {
    const absl::Status status = ParseKvScales(json, kLayout).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_NE(status.message().find(message), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace santa
