// EXACT against the fp64 reference, and S2ANTA_FLASH against its closed form and the CPU backend's draws, on a GPU;
// skipped where there is none.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/exact.h"
#include "kernels/cuda/s2anta_flash.h"
#include "kernels/cuda/testing.h"
#include "kernels/reference/estimators.h"

namespace santa::cuda {
namespace {

using DecodeTest = GpuTest;

constexpr int kHeadDims[] = {64, 96, 128, 192, 256};
constexpr int kPageSizes[] = {16, 32, 64, 128, 256};
constexpr DType kTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3};

void ExpectExact(Problem& problem) {
  const reference::Output expected = reference::Exact(problem.step);
  const std::vector<Answer> answers = DecodeOnGpu({{&problem, 1}, {&problem, 2}});
  // The weights are rounded to the products' type, as every tensor-core kernel does.
  EXPECT_LT(RelativeError(answers[0].o, expected.o), problem.shape.dtype == DType::kBFloat16 ? 4e-3 : 5e-4);
  EXPECT_LT(RelativeError(answers[0].lse, expected.lse), 1e-6);
  EXPECT_EQ(answers[0].o, answers[1].o);
}

TEST_F(DecodeTest, ExactMatchesTheReferenceAtEveryLength) {
  for (const int group_size : {1, 4, 16}) {
    for (const int64_t tokens : {1, 15, 16, 17, 64, 255, 256, 257, 511, 512, 513, 1700}) {
      for (const uint32_t window : {0u, 100u}) {
        SCOPED_TRACE("G " + std::to_string(group_size) + " n " + std::to_string(tokens) + " window " +
                     std::to_string(window));
        Problem problem = MakeProblem({.group_size = group_size}, tokens);
        problem.step.options = {.scale = 0.1f, .window = window, .soft_cap = window == 0 ? 0.0f : 5.0f};
        if (window != 0) problem.step.sink_logits.assign(problem.step.num_query_heads, 1.5);
        ExpectExact(problem);
      }
    }
  }
}

TEST_F(DecodeTest, ExactMatchesTheReferenceInEveryShape) {
  int index = 0;
  for (const DType dtype : kTypes) {
    for (const int head_dim : kHeadDims) {
      for (const int group_size : {1, 2, 3, 5, 7, 8, 9, 16}) {
        const Shape shape = {.dtype = dtype,
                             .group_size = group_size,
                             .num_kv_heads = 1 + index % 3,
                             .head_dim = head_dim,
                             .page_size = kPageSizes[index % 5],
                             .scaled = dtype == DType::kFloat8E4M3 && index % 2 == 0};
        SCOPED_TRACE(Describe(shape));
        ++index;
        Problem problem = MakeProblem(shape, 300 + 31 * (index % 7));
        problem.step.options = {.scale = 0.1f};
        ExpectExact(problem);
      }
    }
  }
}

// 16 * 2 * 128 components at most: |z| > 6 in one of all is a false alarm in 1 of 70,000 runs.
TEST_F(DecodeTest, S2antaFlashHasTheEstimatorsMeanAndVariance) {
  for (const int group_size : {1, 4, 7, 16}) {
    SCOPED_TRACE("G " + std::to_string(group_size));
    Problem problem = MakeProblem({.group_size = group_size}, 1100);
    problem.step.options = {.method = Method::kS2antaFlash, .sample_count = 64, .scale = 0.1f};
    std::vector<Item> items;
    for (int seed = 1; seed <= SeedCount(2000); ++seed) items.push_back({&problem, static_cast<uint64_t>(seed)});
    const std::vector<Answer> answers = DecodeOnGpu(items);
    const Fit fit = FitMoments(problem, answers);
    EXPECT_LT(fit.worst_z, 6);
    EXPECT_NEAR(fit.variance_ratio, 1, Widened(0.1));
    const std::vector<double> lse = reference::Exact(problem.step).lse;
    for (const Answer& answer : answers) {
      ASSERT_LE(answer.rows_read, 2u * group_size * 64);
      ASSERT_GT(answer.rows_read, 0u);
      ASSERT_LT(RelativeError(answer.lse, lse), 1e-6);
    }
  }
}

TEST_F(DecodeTest, S2antaFlashDrawsWhatTheCpuDraws) {
  Comparison all;
  int index = 0;
  for (const DType dtype : kTypes) {
    for (const int head_dim : kHeadDims) {
      for (const int group_size : {1, 3, 4, 6, 8, 11, 16}) {
        const Shape shape = {.dtype = dtype,
                             .group_size = group_size,
                             .head_dim = head_dim,
                             .page_size = kPageSizes[index % 5],
                             .scaled = dtype == DType::kFloat8E4M3 && index % 2 == 0};
        ++index;
        Problem problem = MakeProblem(shape, 257 + 211 * (index % 7));
        problem.step.options = {
            .method = Method::kS2antaFlash, .sample_count = 50, .scale = 0.1f, .window = index % 3 == 0 ? 600u : 0u};
        const std::vector<Item> items = {{&problem, 1}, {&problem, 2}, {&problem, 3}};
        const Comparison one = CompareToCpu(items, DecodeOnGpu(items));
        all.heads += one.heads;
        all.moved += one.moved;
      }
    }
  }
  RecordProperty("heads", all.heads);
  RecordProperty("heads_with_a_moved_draw", all.moved);
  EXPECT_LE(all.moved, all.heads / 50) << "of " << all.heads;
}

// Items of very different lengths in one batch answer bit for bit what each answers alone.
TEST_F(DecodeTest, AnItemAnswersAloneAsInABatch) {
  std::vector<Problem> problems;
  for (const int64_t tokens : {100, 20000, 1, 3000, 257}) {
    for (const uint32_t draws : {0u, 90u}) {
      problems.push_back(MakeProblem({.group_size = 4, .num_kv_heads = 2, .head_dim = 64}, tokens));
      problems.back().step.options = {
          .method = draws == 0 ? Method::kExact : Method::kS2antaFlash, .sample_count = draws, .scale = 0.1f};
    }
  }
  std::vector<Item> items;
  for (const Problem& problem : problems) items.push_back({&problem, items.size()});
  const std::vector<Answer> together = DecodeOnGpu(items);
  for (size_t i = 0; i < items.size(); ++i) {
    SCOPED_TRACE("n " + std::to_string(problems[i].step.num_tokens));
    const Answer alone = DecodeOnGpu({items[i]})[0];
    EXPECT_EQ(together[i].o, alone.o);
    EXPECT_EQ(together[i].lse, alone.lse);
    EXPECT_EQ(together[i].rows_read, alone.rows_read);
  }
}

TEST_F(DecodeTest, UnsupportedShapesAreRefused) {
  EXPECT_EQ(LaunchExact({.group_size = 17, .head_dim = 128, .dtype = DType::kBFloat16}, nullptr),
            cudaErrorNotSupported);
  EXPECT_EQ(LaunchExact({.group_size = 4, .head_dim = 80, .dtype = DType::kBFloat16}, nullptr), cudaErrorNotSupported);
  EXPECT_EQ(LaunchS2antaFlash({.group_size = 17, .head_dim = 128, .dtype = DType::kFloat16}, nullptr),
            cudaErrorNotSupported);
}

}  // namespace
}  // namespace santa::cuda
