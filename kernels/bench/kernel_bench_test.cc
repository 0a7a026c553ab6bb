#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "client/safetensors.h"
#include "client/tensor.h"
#include "kernels/bench/measure.h"
#include "kernels/bench/options.h"

namespace santa::bench {
namespace {

absl::StatusOr<Options> Parse(std::vector<std::string_view> arguments) { return ParseOptions(arguments); }

TEST(KernelBenchTest, ReadsEveryFlag) {
  const auto options =
      Parse({"--backend=cpu", "--batch=3", "--tokens=1000", "--query_heads=14", "--kv_heads=2", "--head_dim=64",
             "--page_size=16", "--dtype=fp16", "--methods=SANTA,EXACT", "--samples=77", "--window=500", "--sigma=1.5",
             "--data=attention", "--threads=2", "--repetitions=4", "--seed=9", "--pages_in_order", "--json"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->backend, "cpu");
  EXPECT_EQ(options->batch, 3);
  EXPECT_EQ(options->tokens, 1000);
  EXPECT_EQ(options->layout().group_size(), 7);
  EXPECT_EQ(options->layout().head_dim, 64);
  EXPECT_EQ(options->layout().page_size, 16);
  EXPECT_EQ(options->dtype, DType::kFloat16);
  EXPECT_EQ(options->methods, (std::vector<Method>{Method::kSanta, Method::kExact}));
  EXPECT_EQ(options->attention(Method::kSanta, 5).sample_count, 77u);
  EXPECT_EQ(options->attention(Method::kExact, 5).sample_count, 0u);
  EXPECT_EQ(options->attention(Method::kSanta, 5).window, 500u);
  EXPECT_EQ(options->sigma, 1.5);
  EXPECT_EQ(options->data, Data::kAttention);
  EXPECT_EQ(options->threads, 2);
  EXPECT_EQ(options->repetitions, 4);
  EXPECT_EQ(options->seed, 9);
  EXPECT_TRUE(options->pages_in_order);
  EXPECT_TRUE(options->json);
}

TEST(KernelBenchTest, RefusesBadFlagsWithASentence) {
  const std::vector<std::pair<std::string_view, std::string_view>> cases = {
      {"--batch=0", "--batch is '0'; it must be a whole number in [1, 4096]"},
      {"--tokens=1e3", "--tokens is '1e3'; it must be a whole number in [1, 16777216]"},
      {"--samples=-1", "--samples is '-1'; it must be a whole number in [1, 1048576]"},
      {"--seed=99999999999999999999",
       "--seed is '99999999999999999999'; it must be a whole number in [0, 9223372036854775807]"},
      {"--dtype=int8", "--dtype is 'int8'; it must be fp32, bf16, fp16 or fp8_e4m3"},
      {"--sigma=nan", "--sigma is 'nan'; it must be a number in (0, 100]"},
      {"--methods=EXACT,FLASH",
       "--methods names 'FLASH'; the methods are EXACT, SANTA, STRATIFIED, SYSTEMATIC, S2ANTA_FLASH, S2ANTA_PROP, "
       "COORDINATED, SKETCHED, BERNOULLI_QK, separated by commas"},
      {"--data=gauss", "--data is 'gauss'; it must be normal or attention"},
      {"--sketch=k3", "--sketch is 'k3'; it must be none, k4, k4v4 or k8v8"},
      {"--key_order=up", "--key_order is 'up'; it must be token or feature"},
      {"--methods=BERNOULLI_QK", "score_draws is 0; it must be in [1, 1024] for BERNOULLI_QK"},
      {"--target_relative_error=1", "--target_relative_error is '1'; it must be a number in (0, 1)"},
      {"--ragged=3x",
       "--ragged is '3x'; it must be like 15x1024,131072: at most 4096 sequences of 1 to 16777216 tokens"},
      {"--ragged=5000x1",
       "--ragged is '5000x1'; it must be like 15x1024,131072: at most 4096 sequences of 1 to 16777216 tokens"},
      {"--frobnicate=1", "there is no flag --frobnicate; --help lists them"},
      {"tokens=5", "'tokens=5' is not an argument; flags are written --name=value"},
      {"--tokens", "'--tokens' is not an argument; flags are written --name=value"},
  };
  for (const auto& [argument, message] : cases) {
    EXPECT_EQ(Parse({argument}).status(), absl::InvalidArgumentError({message.data(), message.size()})) << argument;
  }
  EXPECT_EQ(Parse({"--head_dim=12"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Parse({"--query_heads=9"}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(KernelBenchTest, UnknownBackendIsNamed) {
  auto options = Parse({"--backend=abacus", "--tokens=16", "--query_heads=1", "--kv_heads=1", "--head_dim=8"});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(Measure(*options).status(),
            absl::InvalidArgumentError("--backend is 'abacus'; it must be one of cpu, cuda"));
}

TEST(KernelBenchTest, SaysThatThereIsNoCuda) {
  const auto options = Parse({"--backend=cuda", "--tokens=16", "--query_heads=1", "--kv_heads=1", "--head_dim=64"});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(Measure(*options).status(), absl::UnimplementedError("this build has no CUDA"));
}

TEST(KernelBenchTest, MeasuresARaggedBatch) {
  const auto options = Parse({"--ragged=2x100,1000", "--query_heads=4", "--kv_heads=2", "--head_dim=64",
                              "--methods=EXACT", "--repetitions=1", "--threads=1"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->batch, 3);
  EXPECT_EQ(options->tokens, 1000);
  EXPECT_EQ(options->sequence_tokens(), (std::vector<int64_t>{100, 100, 1000}));
  const auto report = Measure(*options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->results[0].dense_kv_bytes, int64_t{1200} * 2 * 64 * 2 * 2);
  EXPECT_LT(report->results[0].relative_error, 1e-5);
}

// Its mean output is not small, so errors are a few per cent; of independent normals they would be near 1.
TEST(KernelBenchTest, MeasuresDataLikeAttention) {
  const auto options =
      Parse({"--data=attention", "--tokens=4096", "--query_heads=4", "--kv_heads=1", "--samples=256", "--sketch=k4",
             "--methods=EXACT,S2ANTA_FLASH,COORDINATED,SKETCHED", "--repetitions=5", "--threads=1"});
  ASSERT_TRUE(options.ok()) << options.status();
  const auto report = Measure(*options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(report->results[0].relative_error, 1e-5);
  for (size_t m = 1; m < 4; ++m) {
    EXPECT_GT(report->results[m].relative_error, 0.02);
    EXPECT_LT(report->results[m].relative_error, 0.2);
  }
}

TEST(KernelBenchTest, SketchedIsThereWithASketchAlone) {
  EXPECT_EQ(Parse({})->methods.size(), kAllMethods.size() - 2);
  EXPECT_EQ(Parse({"--sketch=k4"})->methods.size(), kAllMethods.size() - 1);
}

// Each head's error over the draws, held against what was asked for.
TEST(KernelBenchTest, MeasuresATarget) {
  const auto options = Parse({"--data=attention", "--tokens=4096", "--query_heads=8", "--kv_heads=2", "--sketch=k4",
                              "--target_relative_error=0.05", "--repetitions=40", "--threads=1"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->methods, (std::vector<Method>{Method::kExact, Method::kCoordinated, Method::kSketched}));
  EXPECT_EQ(options->attention(Method::kSketched, 5).sample_count, 0u);
  const auto report = Measure(*options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->results[0].heads_within_target, 1);
  for (size_t m = 1; m < 3; ++m) {
    const Result& result = report->results[m];
    EXPECT_GE(result.heads_within_target, 0.75);
    EXPECT_GT(result.worst_over_target, 0.5);
    EXPECT_LT(result.worst_over_target, 1.25);
    EXPECT_LT(result.value_rows_read, 2 * 4096);
  }
  const std::string lines = JsonLines(*options, *report);
  EXPECT_EQ(nlohmann::json::parse(lines.substr(0, lines.find('\n')))["target_relative_error"], 0.05);
}

// Score draws read a part of K, err as 1 / sqrt(R), and have an lse that is too large.
TEST(KernelBenchTest, MeasuresScoreDraws) {
  std::vector<Result> results;
  for (const char* draws : {"--score_draws=16", "--score_draws=256"}) {
    const auto options =
        Parse({"--data=attention", "--tokens=2000", "--query_heads=4", "--kv_heads=1", "--samples=256",
               "--methods=BERNOULLI_QK,SYSTEMATIC", "--key_order=feature", draws, "--repetitions=10", "--threads=1"});
    ASSERT_TRUE(options.ok()) << options.status();
    const auto report = Measure(*options);
    ASSERT_TRUE(report.ok()) << report.status();
    const Result& result = report->results[0];
    EXPECT_EQ(result.value_rows_read, 2000);
    EXPECT_EQ(result.kv_bytes_read, result.key_bytes_read + 2000 * 128 * 2);
    EXPECT_LE(result.key_bytes_read, 2000 * 128 * 2);
    EXPECT_LT(report->results[1].value_rows_read, 2000);
    EXPECT_TRUE(std::isnan(result.standard_error));
    results.push_back(result);
  }
  EXPECT_NEAR(results[0].relative_error / results[1].relative_error, 4, 2);
  EXPECT_GT(results[0].lse_bias, 2 * results[1].lse_bias);
  EXPECT_LT(results[0].key_bytes_read, results[1].key_bytes_read);
}

// Sources, features and tokens of a file are repeated for a larger shape, and what is attended to stays the same.
TEST(KernelBenchTest, MeasuresAFile) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  const auto tensor = [&](std::vector<int64_t> shape, float mean) {
    std::vector<float> numbers(shape[0] * shape[1] * shape[2]);
    for (float& number : numbers) number = mean + normal(random);
    return FromFloats(numbers, std::move(shape), ElementType::kFloat32);
  };
  const Tensor q = tensor({3, 2, 32}, 0);
  const Tensor k = tensor({3, 700, 32}, 0);
  // Around 1, so that errors are small beside what they are relative to.
  const Tensor v = tensor({3, 700, 32}, 1);
  const std::string path = ::testing::TempDir() + "/input.safetensors";
  ASSERT_TRUE(WriteSafetensors(path, {{"q", q.view()}, {"k", k.view()}, {"v", v.view()}}).ok());
  const std::string input = "--input=" + path;
  const auto options = Parse({input, "--tokens=1400", "--query_heads=8", "--kv_heads=4", "--head_dim=64", "--batch=2",
                              "--dtype=fp32", "--sketch=k4", "--samples=200", "--methods=EXACT,COORDINATED,SKETCHED",
                              "--repetitions=10", "--threads=1"});
  ASSERT_TRUE(options.ok()) << options.status();
  const auto report = Measure(*options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(report->results[0].relative_error, 1e-5);
  for (const Result& result : {report->results[1], report->results[2]}) {
    EXPECT_GT(result.relative_error, 0.01);
    EXPECT_NEAR(result.standard_error / result.relative_error, 1, 0.3);
    EXPECT_LE(result.value_rows_read, 2 * 4 * (200 + 1400 % 64));
  }
  auto bad = *options;
  bad.head_dim = 80;
  EXPECT_EQ(Measure(bad).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(KernelBenchTest, JsonHasTheKeysAndSensibleNumbers) {
  const auto options = Parse({"--tokens=2000", "--query_heads=32", "--kv_heads=8", "--samples=300", "--repetitions=3",
                              "--methods=S2ANTA_FLASH,EXACT", "--threads=2"});
  ASSERT_TRUE(options.ok());
  const auto report = Measure(*options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->read_bytes_per_second, 0);
  std::istringstream lines(JsonLines(*options, *report));
  std::vector<nlohmann::ordered_json> objects;
  for (std::string line; std::getline(lines, line);) objects.push_back(nlohmann::ordered_json::parse(line));
  ASSERT_EQ(objects.size(), 2u);
  const int64_t dense = int64_t{2000} * 8 * 128 * 2 * 2;
  for (const auto& object : objects) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : object.items()) keys.push_back(key);
    EXPECT_EQ(keys,
              (std::vector<std::string>{"method", "microseconds", "kv_bytes_read", "dense_kv_bytes", "bandwidth_ratio",
                                        "speedup_vs_exact", "relative_error", "value_rows_read", "standard_error",
                                        "samples", "sketch", "score_draws", "lse_bias", "key_bytes_read",
                                        "target_relative_error", "heads_within_target", "worst_over_target"}));
    EXPECT_GT(object["microseconds"], 0);
    EXPECT_GT(object["bandwidth_ratio"], 0);
    EXPECT_EQ(object["dense_kv_bytes"], dense);
  }
  EXPECT_EQ(objects[0]["method"], "S2ANTA_FLASH");
  EXPECT_LT(objects[0]["value_rows_read"], 2000 * 8);
  EXPECT_LT(objects[0]["kv_bytes_read"], dense);
  EXPECT_GT(objects[0]["relative_error"], 1e-3);
  EXPECT_LT(objects[0]["relative_error"], 0.5);
  EXPECT_EQ(objects[1]["method"], "EXACT");
  EXPECT_EQ(objects[1]["speedup_vs_exact"], 1);
  EXPECT_EQ(objects[1]["kv_bytes_read"], dense);
  EXPECT_LT(objects[1]["relative_error"], 1e-5);
  EXPECT_NE(Table(*options, *report).find("S2ANTA_FLASH"), std::string::npos);
}

}  // namespace
}  // namespace santa::bench
