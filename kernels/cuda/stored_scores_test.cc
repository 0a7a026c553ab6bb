// The methods that store scores, on a GPU: their distributions against the reference's closed forms, and their draws
// against the CPU backend's, which shares the arithmetic of draws but no kernel.
#include "kernels/cuda/stored_scores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cuda/testing.h"
#include "kernels/reference/estimators.h"

namespace santa::cuda {
namespace {

using StoredScoresTest = GpuTest;

// Every method with S draws; S2ANTA_FLASH among them stores scores where S is below a 256th of the tokens.
std::vector<AttentionOptions> Methods(uint32_t draws) {
  std::vector<AttentionOptions> methods;
  for (const Method method :
       {Method::kSanta, Method::kStratified, Method::kSystematic, Method::kS2antaProp, Method::kS2antaFlash}) {
    methods.push_back({.method = method, .sample_count = draws, .scale = 0.1f});
  }
  methods.push_back({.method = Method::kS2antaProp,
                     .sample_count = draws,
                     .scale = 0.1f,
                     .budget_rounding = BudgetRounding::kLargestRemainder});
  return methods;
}

std::vector<Item> Seeds(const Problem& problem, int count) {
  std::vector<Item> items;
  for (int seed = 1; seed <= count; ++seed) items.push_back({&problem, static_cast<uint64_t>(seed)});
  return items;
}

std::string Describe(const AttentionOptions& options) {
  return std::string(Name(options.method)) + ", S " + std::to_string(options.sample_count) + ", rounding " +
         std::to_string(static_cast<int>(options.budget_rounding));
}

// 36 problems of up to 1,792 components: a |z| of 6.5 has a false-alarm rate below 1e-5 for the whole test. With a tile
// for every two draws and with fewer draws than blocks of 256, so that tiles are longer.
TEST_F(StoredScoresTest, HaveTheEstimatorsMeanAndVariance) {
  for (const int group_size : {1, 4, 7}) {
    Problem problem = MakeProblem({.group_size = group_size}, 1100);
    const reference::Output exact = reference::Exact(problem.step);
    for (const uint32_t draws : {64u, 3u}) {
      for (const AttentionOptions& options : Methods(draws)) {
        SCOPED_TRACE("G " + std::to_string(group_size) + ", " + Describe(options));
        problem.step.options = options;
        const std::vector<Answer> answers = DecodeOnGpu(Seeds(problem, SeedCount(1500)));
        const Fit fit = FitMoments(problem, answers);
        EXPECT_LT(fit.worst_z, 6.5);
        EXPECT_NEAR(fit.variance_ratio, 1, Widened(0.15));
        for (const Answer& answer : answers) {
          ASSERT_GE(answer.rows_read, 2u);
          ASSERT_LE(answer.rows_read, 2u * group_size * draws);
        }
      }
    }
  }
}

TEST_F(StoredScoresTest, LseIsExact) {
  for (const int64_t tokens : {2, 257, 1700}) {
    Problem problem = MakeProblem({}, tokens);
    const std::vector<double> expected = reference::Exact(problem.step).lse;
    for (AttentionOptions options : Methods(1)) {
      options.scale = 0;
      problem.step.options = options;
      EXPECT_LT(RelativeError(DecodeOnGpu({{&problem, 1}})[0].lse, expected), 1e-6) << Describe(options);
    }
  }
}

// Every head dimension, storage type, page size, and group sizes up to 16, over lengths about a block's end.
TEST_F(StoredScoresTest, DrawWhatTheCpuDraws) {
  constexpr int kPageSizes[] = {16, 32, 64, 128, 256};
  constexpr int kGroups[] = {1, 3, 4, 7, 8, 16};
  Comparison all;
  int index = 0;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    for (const int head_dim : {64, 96, 128, 192, 256}) {
      for (const int64_t tokens : {255, 256, 257, 1700}) {
        const Shape shape = {.dtype = dtype,
                             .group_size = kGroups[index % 6],
                             .head_dim = head_dim,
                             .page_size = kPageSizes[index % 5],
                             .scaled = dtype == DType::kFloat8E4M3 && index % 2 == 0};
        ++index;
        Problem problem = MakeProblem(shape, tokens);
        for (const uint32_t draws : {100u, 2u}) {
          for (const AttentionOptions& options : Methods(draws)) {
            problem.step.options = options;
            const std::vector<Item> items = Seeds(problem, 3);
            const Comparison one = CompareToCpu(items, DecodeOnGpu(items));
            all.heads += one.heads;
            all.moved += one.moved;
          }
        }
      }
    }
  }
  RecordProperty("heads", all.heads);
  RecordProperty("heads_with_a_moved_draw", all.moved);
  EXPECT_LE(all.moved, all.heads / 33) << "of " << all.heads;
}

TEST_F(StoredScoresTest, WindowsCapsAndSinks) {
  Comparison all;
  for (const int group_size : {3, 8, 16}) {
    for (const uint32_t window : {130u, 700u, 1000u}) {
      Problem problem = MakeProblem({.group_size = group_size}, 1700);
      for (int head = 0; head < problem.step.num_query_heads; ++head) {
        problem.step.sink_logits.push_back(head % 3 == 0 ? 8.0 : head % 3 == 1 ? -300.0 : 1e30);
      }
      for (AttentionOptions options : Methods(50)) {
        options.window = window;
        options.soft_cap = 5;
        problem.step.options = options;
        const std::vector<Item> items = Seeds(problem, 2);
        std::vector<Answer> found = DecodeOnGpu(items);
        // Beside a sink of 1e30 nothing is left.
        const std::vector<Answer> expected = DecodeOnCpu(items);
        for (size_t i = 0; i < items.size(); ++i) {
          for (int head = 0; head < problem.step.num_query_heads; ++head) {
            const size_t at = static_cast<size_t>(head) * problem.step.head_dim;
            EXPECT_NEAR(found[i].lse[head], expected[i].lse[head], 1e-5 * std::abs(expected[i].lse[head]));
            if (head % 3 == 2) {
              for (int d = 0; d < problem.step.head_dim; ++d) EXPECT_EQ(found[i].o[at + d], 0.0f);
              continue;
            }
            ++all.heads;
            all.moved += RelativeError(&found[i].o[at], &expected[i].o[at], problem.step.head_dim) > kRounding ? 1 : 0;
          }
        }
      }
    }
  }
  EXPECT_LE(all.moved, all.heads / 50) << "of " << all.heads;
}

// Long sequences: lines of many blocks, and more blocks than a launch's threads. A draw moves where a boundary between
// rows does, by about 1e-8 of the line: likely where thousands of draws meet 70,000 rows, but each has a small part in
// the answer.
TEST_F(StoredScoresTest, LongSequences) {
  Comparison few;
  for (const uint32_t draws : {1u, 7u, 40u, 2048u}) {
    Problem problem = MakeProblem({.group_size = 4, .num_kv_heads = 1, .head_dim = 64}, 70000);
    for (const AttentionOptions& options : Methods(draws)) {
      problem.step.options = options;
      const std::vector<Item> items = Seeds(problem, 2);
      const std::vector<Answer> found = DecodeOnGpu(items);
      if (draws < 1000) {
        const Comparison one = CompareToCpu(items, found);
        few.heads += one.heads;
        few.moved += one.moved;
        continue;
      }
      const std::vector<Answer> expected = DecodeOnCpu(items);
      for (size_t i = 0; i < items.size(); ++i) {
        for (int head = 0; head < 4; ++head) {
          EXPECT_LT(RelativeError(&found[i].o[head * 64], &expected[i].o[head * 64], 64), 0.3) << Describe(options);
          EXPECT_NEAR(found[i].lse[head], expected[i].lse[head], 1e-4);
        }
      }
    }
  }
  EXPECT_LE(few.moved, few.heads / 4) << "of " << few.heads;
}

// All draws fall on one row: counts that neither bf16 nor fp16 holds. The answer is that row; it alone is read.
TEST_F(StoredScoresTest, AllMassOnOneRow) {
  struct Case {
    DType dtype;
    int64_t tokens, row;
    uint32_t draws;
  };
  for (const Case& c : {Case{DType::kBFloat16, 1700, 1234, 1501}, Case{DType::kFloat16, 1700, 0, 1501},
                        Case{DType::kFloat8E4M3, 1700, 1699, 1699}, Case{DType::kFloat16, 70000, 69000, 69999},
                        Case{DType::kBFloat16, 70000, 300, 69999}, Case{DType::kBFloat16, 257, 256, 3}}) {
    Problem problem = MakeProblem({.dtype = c.dtype, .group_size = 2, .num_kv_heads = 1, .head_dim = 64}, c.tokens);
    for (double& x : problem.step.q) x = 4;
    for (int d = 0; d < 64; ++d) problem.step.k[c.row * 64 + d] = 8;
    const std::vector<float> row(problem.step.v.begin() + c.row * 64, problem.step.v.begin() + (c.row + 1) * 64);
    for (const AttentionOptions& options : Methods(c.draws)) {
      // Each tile of S2ANTA_FLASH draws, whatever its mass.
      if (options.method == Method::kS2antaFlash) continue;
      SCOPED_TRACE(std::string(Name(c.dtype)) + ", n " + std::to_string(c.tokens) + ", " + Describe(options));
      problem.step.options = options;
      problem.step.options.scale = 0.5f;
      const Answer answer = DecodeOnGpu({{&problem, 9}})[0];
      EXPECT_EQ(answer.rows_read, 1u);
      for (int head = 0; head < 2; ++head) EXPECT_LT(RelativeError(&answer.o[head * 64], row.data(), 64), 1e-5);
    }
  }
}

// Equal scores: every row has the same mass, and ties everywhere.
TEST_F(StoredScoresTest, EqualScores) {
  Problem problem = MakeProblem({.group_size = 4}, 1700);
  for (double& x : problem.step.q) x = 0;
  Comparison all;
  for (const uint32_t draws : {1u, 17u, 1699u}) {
    for (const AttentionOptions& options : Methods(draws)) {
      problem.step.options = options;
      const std::vector<Item> items = Seeds(problem, 3);
      const Comparison one = CompareToCpu(items, DecodeOnGpu(items));
      all.heads += one.heads;
      all.moved += one.moved;
    }
  }
  EXPECT_EQ(all.moved, 0) << "of " << all.heads;  // no exponential but exp(0), so no rounding either
}

TEST_F(StoredScoresTest, ANanScoreShowsInItsHeadAndNoOther) {
  for (const int group_size : {4, 16}) {
    const Problem clean_problem = MakeProblem({.group_size = group_size}, 1100);
    for (const AttentionOptions& options : Methods(4)) {
      SCOPED_TRACE(Describe(options));
      Problem problem = clean_problem;
      problem.step.options = options;
      const Answer clean = DecodeOnGpu({{&problem, 1}})[0];
      Problem spoiled = problem;
      const int head = group_size - 1, dim = problem.step.head_dim;
      spoiled.step.q[head * dim] = std::numeric_limits<double>::quiet_NaN();
      const Answer answer = DecodeOnGpu({{&spoiled, 1}})[0];
      for (int other = 0; other < problem.step.num_query_heads; ++other) {
        if (other == head) {
          EXPECT_TRUE(std::isnan(answer.lse[other]) && std::isnan(answer.o[other * dim]));
          continue;
        }
        EXPECT_EQ(answer.lse[other], clean.lse[other]) << other;
        EXPECT_LT(RelativeError(&answer.o[other * dim], &clean.o[other * dim], dim), kRounding) << other;
      }
    }
  }
}

// Items of every length and method in one batch answer bit for bit what each answers alone.
TEST_F(StoredScoresTest, AnItemAnswersAloneAsInABatch) {
  std::vector<Problem> problems;
  for (const int64_t tokens : {20000, 300, 3, 1700, 5000}) {
    for (const AttentionOptions& options : Methods(tokens == 3 ? 2 : 37)) {
      problems.push_back(MakeProblem({.group_size = 4, .num_kv_heads = 2, .head_dim = 64}, tokens));
      problems.back().step.options = options;
      problems.back().step.options.window = tokens == 5000 ? 2000 : 0;
    }
  }
  std::vector<Item> items;
  for (const Problem& problem : problems) items.push_back({&problem, items.size()});
  const std::vector<Answer> together = DecodeOnGpu(items);
  for (size_t i = 0; i < items.size(); ++i) {
    SCOPED_TRACE("n " + std::to_string(problems[i].step.num_tokens) + ", " + Describe(problems[i].step.options));
    const Answer alone = DecodeOnGpu({items[i]})[0];
    EXPECT_EQ(together[i].o, alone.o);
    EXPECT_EQ(together[i].lse, alone.lse);
    EXPECT_EQ(together[i].rows_read, alone.rows_read);
  }
}

// More splits than blocks that run at once, so that scoring, drawing and gathering of different items overlap.
TEST_F(StoredScoresTest, AnItemAnswersAloneAsAmongMany) {
  Problem problem = MakeProblem({.group_size = 4, .num_kv_heads = 2, .head_dim = 64}, 5000);
  for (const AttentionOptions& options : Methods(37)) {
    SCOPED_TRACE(Describe(options));
    problem.step.options = options;
    const std::vector<Item> items = Seeds(problem, 200);
    const std::vector<Answer> together = DecodeOnGpu(items);
    for (const size_t i : {0, 1, 57, 198, 199}) {
      const Answer alone = DecodeOnGpu({items[i]})[0];
      EXPECT_EQ(together[i].o, alone.o) << i;
      EXPECT_EQ(together[i].rows_read, alone.rows_read) << i;
    }
  }
}

TEST(StoredScratch, GrowsWithTokensAndDraws) {
  int64_t before = 0;
  for (const int64_t tokens : {100, 300, 5000, 1 << 20}) {
    const int64_t bytes = StoredScratchBytes(Method::kSanta, 8, 0, tokens, 50);
    EXPECT_GT(bytes, before);
    EXPECT_GE(bytes, 8 * tokens * 4);
    EXPECT_EQ(bytes % 256, 0);
    EXPECT_GE(StoredScratchBytes(Method::kSanta, 8, 255, 255 + tokens, 50), bytes);
    EXPECT_GE(bytes, StoredScratchBytes(Method::kS2antaProp, 8, 0, tokens, 50));
    EXPECT_GT(StoredScratchBytes(Method::kSanta, 8, 0, tokens, 90), bytes);
    before = bytes;
  }
}

TEST(StoredScratch, WhoHasLongLines) {
  EXPECT_TRUE(NeedsLongLines(Method::kSystematic, 0, 100, 7));
  EXPECT_FALSE(NeedsLongLines(Method::kS2antaProp, 0, 2048, 8));
  EXPECT_TRUE(NeedsLongLines(Method::kS2antaProp, 0, 2049, 8));
}

}  // namespace
}  // namespace santa::cuda
