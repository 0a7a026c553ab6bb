// A model that decodes through a real server: EXACT must be local attention, the estimators must stay near it.
#include "client/examples/evaluation.h"

#include <gtest/gtest.h>

#include <memory>

#include "client/examples/report.h"
#include "client/examples/run_setup.h"
#include "client/http_get.h"

namespace santa {
namespace {

constexpr int64_t kContext = 768;
constexpr int32_t kKeys = 3;

TEST(Evaluation, ExactThroughTheServerIsLocalAttention) {
  auto setup = RunSetup::Start(kContext, kKeys + 1, 128);
  ASSERT_TRUE(setup.ok()) << setup.status();
  const auto passages = LoadPassages({"kjv_judges"}, {.context = kContext, .continuation = 65, .num_keys = kKeys});
  ASSERT_TRUE(passages.ok()) << passages.status();
  const std::vector<std::string> names = {"EXACT",        "SANTA",       "STRATIFIED",  "SYSTEMATIC",
                                          "S2ANTA_FLASH", "S2ANTA_PROP", "COORDINATED", "SKETCHED"};
  const auto methods = ParseMethods(names, {kContext / 4});
  ASSERT_TRUE(methods.ok()) << methods.status();

  Evaluation evaluation(&(*setup)->model(), &(*setup)->server(), {.methods = *methods, .generate = 12});
  const absl::Status status = evaluation.AddPassage(passages->front());
  ASSERT_TRUE(status.ok()) << status;

  const MethodScore& local = evaluation.local();
  EXPECT_EQ(local.scored_bytes, 64);
  EXPECT_EQ(local.keys_asked, kKeys);
  EXPECT_EQ(local.keys_right, kKeys);  // the model was trained for this
  ASSERT_EQ(evaluation.methods().size(), names.size());

  const MethodScore& exact = evaluation.methods()[0];
  EXPECT_NEAR(exact.bits_per_byte() / local.bits_per_byte(), 1, 1e-3);
  EXPECT_EQ(exact.answers_as_local, kKeys);
  // Sums in another order move a new key now and then over a rounding boundary of bf16, a 256th of its value.
  EXPECT_LE(exact.largest_logit_difference, 0.05);
  EXPECT_EQ(exact.value_row_share(), 1);
  EXPECT_EQ(exact.kv_byte_share(), 1);
  EXPECT_EQ(exact.generated, local.generated);
  EXPECT_EQ(exact.generated.size(), 12);

  for (size_t i = 1; i < names.size(); ++i) {
    const MethodScore& score = evaluation.methods()[i];
    EXPECT_EQ(score.name, names[i]);
    EXPECT_NEAR(score.bits_per_byte() / local.bits_per_byte(), 1, 0.25) << names[i];
    EXPECT_GT(score.largest_logit_difference, exact.largest_logit_difference) << names[i];
    EXPECT_GT(score.value_row_share(), 0) << names[i];
    EXPECT_LT(score.value_row_share(), 1) << names[i];
    EXPECT_LT(score.kv_byte_share(), 1) << names[i];
    EXPECT_EQ(score.steps, exact.steps);
  }

  const auto metrics = HttpGet((*setup)->process().http_address(), "/metrics");
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_NE(InterestingMetrics(*metrics).find("santa_value_rows_read_total"), std::string::npos) << *metrics;
  EXPECT_EQ((*setup)->server().info().layout().num_layers(), 6);

  // Every sequence was released.
  EXPECT_EQ(InterestingMetrics(*metrics).find("santa_sequences "), std::string::npos) << *metrics;
  const absl::Status stopped = (*setup)->Stop();
  EXPECT_TRUE(stopped.ok()) << stopped;
}

TEST(RunSetup, SaysWhatIsWrong) {
  EXPECT_EQ(ParseMethods({"EXACT", "SYSTEMATIC", "BERNOULLI_QK"}, {8, 9}, {1, 4})->size(), 1 + 4 + 2);
  EXPECT_EQ(ParseMethods({"EXACT", "BEST"}, {8}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(LoadPassages({"no such text"}, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ServerProcess::Start("no/such/program", {}).status().code(), absl::StatusCode::kNotFound);
  const auto refused = ServerProcess::Start(FindFile("server/attention_server"), {"--num_layers=-1"});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(refused.status().message().find("num_layers"), std::string::npos) << refused.status();
}

TEST(Report, AlignsAndSelects) {
  EXPECT_EQ(AlignedTable({{"a", "bb"}, {"ccc", "\xc2\xb5"}}), "a    bb\nccc   \xc2\xb5\n");
  EXPECT_EQ(MarkdownTable({{"a", "|b|"}, {"c", "d"}}), "| a | \\|b\\| |\n|---|---:|\n| c | d |\n");
  EXPECT_EQ(InterestingMetrics("# HELP santa_x what\nsanta_x 3\nsanta_y 0\nsanta_z_bucket{le=\"1\"} 4\nother 5\n"),
            "santa_x  3\n");
  EXPECT_EQ(OneLine("a\nb\x01\xff", 10), "a b??");
}

}  // namespace
}  // namespace santa
