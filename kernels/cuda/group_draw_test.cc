// COORDINATED and SKETCHED on a GPU: their distributions against the reference's closed forms, their standard errors
// against the errors that were made, and that the sketch decides what is read and nothing else.
#include "kernels/cuda/group_draw.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/cuda/testing.h"
#include "kernels/reference/estimators.h"
#include "kernels/reference/number_format.h"

namespace santa::cuda {
namespace {

using GroupDrawTest = GpuTest;

// A method, and the sketch of its cache.
struct Estimator {
  Method method;
  Sketch sketch;
};
constexpr Estimator kEstimators[] = {{Method::kCoordinated, Sketch::kK4},
                                     {Method::kSketched, Sketch::kK4},
                                     {Method::kSketched, Sketch::kK4V4},
                                     {Method::kSketched, Sketch::kK8V8}};

std::vector<Item> Seeds(const Problem& problem, int count) {
  std::vector<Item> items;
  for (int seed = 1; seed <= count; ++seed) items.push_back({&problem, static_cast<uint64_t>(seed)});
  return items;
}

std::string Describe(const Problem& problem) {
  const AttentionOptions& options = problem.step.options;
  return std::string(Name(options.method)) + ", " + std::string(Name(problem.shape.sketch)) + ", S " +
         std::to_string(options.sample_count);
}

// Tokens of the page that is not full, which SKETCHED reads beside its sample.
uint64_t Unsketched(const Problem& problem) {
  if (problem.step.options.method != Method::kSketched) return 0;
  return static_cast<uint64_t>(problem.step.num_tokens % problem.shape.page_size);
}

// 16 problems of up to 4,096 components: a |z| of 6.5 has a false-alarm rate below 1e-5 for the whole test.
TEST_F(GroupDrawTest, HaveTheEstimatorsMeanAndVariance) {
  for (const int group_size : {1, 4, 7, 16}) {
    for (const auto& [method, sketch] : kEstimators) {
      Problem problem = MakeProblem({.group_size = group_size, .sketch = sketch}, 1100);
      problem.step.options = {.method = method, .sample_count = 100, .scale = 0.1f};
      SCOPED_TRACE("G " + std::to_string(group_size) + ", " + Describe(problem));
      const std::vector<Answer> answers = DecodeOnGpu(Seeds(problem, 1500));
      const Fit fit = FitMoments(problem, answers);
      EXPECT_LT(fit.worst_z, 6.5);
      EXPECT_NEAR(fit.variance_ratio, 1, 0.15);
      for (const Answer& answer : answers) {
        ASSERT_GE(answer.rows_read, problem.shape.num_kv_heads * (98 + Unsketched(problem)));
        ASSERT_LE(answer.rows_read, problem.shape.num_kv_heads * (100 + Unsketched(problem)));
      }
    }
  }
}

// By a pilot's threshold, run by run: three runs, of which the last has tokens without a sketch. A |z| of 6.5 as above;
// the rows of a run are its chances' sum, rounded down or up, and what 16 bits of a query may move that by.
TEST_F(GroupDrawTest, HaveTheEstimatorsMeanAndVarianceByAPilot) {
  for (const auto& [group_size, method, sketch] : {std::tuple{1, Method::kSketched, Sketch::kK4},
                                                   {4, Method::kSketched, Sketch::kK4},
                                                   {7, Method::kSketched, Sketch::kK4},
                                                   {1, Method::kSketched, Sketch::kK4V4},
                                                   {4, Method::kSketched, Sketch::kK4V4},
                                                   {3, Method::kSketched, Sketch::kK8V8},
                                                   {1, Method::kCoordinated, Sketch::kK4},
                                                   {4, Method::kCoordinated, Sketch::kK4},
                                                   {7, Method::kCoordinated, Sketch::kK4},
                                                   {3, Method::kCoordinated, Sketch::kK8V8},
                                                   {4, Method::kCoordinated, Sketch::kNone}}) {
    Problem problem = MakeProblem({.group_size = group_size, .sketch = sketch}, 2300);
    problem.step.options = {.method = method, .sample_count = 150, .scale = 0.1f, .window = 2200};
    problem.step.pilot = true;
    SCOPED_TRACE("G " + std::to_string(group_size) + ", " + Describe(problem));
    const std::vector<Answer> answers = DecodeOnGpu(Seeds(problem, SeedCount(1500)));
    const Fit fit = FitMoments(problem, answers);
    EXPECT_LT(fit.worst_z, 6.5);
    EXPECT_NEAR(fit.variance_ratio, 1, Widened(0.15));
    double expected = 0;
    for (const double rows : reference::MomentsOf(problem.step).rows) expected += rows;
    EXPECT_NEAR(expected / (problem.shape.num_kv_heads * (150.0 + static_cast<double>(Unsketched(problem)))), 1, 0.2);
    for (const Answer& answer : answers) {
      ASSERT_NEAR(static_cast<double>(answer.rows_read), expected, problem.shape.num_kv_heads * 3 + 1);
    }
  }
}

// What answers say of their error over the error that they have: root mean squares over 200 seeds and all heads.
double ToldOverSeen(const Problem& problem) {
  const reference::Output exact = reference::Exact(problem.step);
  const int32_t dim = problem.step.head_dim;
  double told = 0, seen = 0;
  for (const Answer& answer : DecodeOnGpu(Seeds(problem, SeedCount(200)))) {
    for (int32_t head = 0; head < problem.step.num_query_heads; ++head) {
      const std::vector<float> expected(exact.o.begin() + head * dim, exact.o.begin() + (head + 1) * dim);
      seen += std::pow(RelativeError(&answer.o[head * dim], expected.data(), dim), 2);
      told += std::pow(answer.relative_standard_error[head], 2);
    }
  }
  return std::sqrt(told / seen);
}

// Logits of standard deviation 1, 1.5, 2.5 and 4; values about 0, whose errors are as large as what they are relative
// to, and about 1, which all rows have in common. In three passes, by a pilot over fewer splits than any server has,
// and over as few as one has.
TEST_F(GroupDrawTest, TellTheirStandardError) {
  for (const auto& [scale, mean] :
       {std::pair{0.0442f, 1.0}, {0.0663f, 0.0}, {0.1105f, 0.0}, {0.1105f, 1.0}, {0.1768f, 0.0}}) {
    for (const auto& [method, sketch] : kEstimators) {
      for (const int64_t tokens : {2000, 3000, 16384}) {
        // What three splits tell varies, which counts twice where the error is larger than the answer, as it is here.
        if (tokens == 3000 && mean == 0 && scale < 0.1f) continue;
        Problem problem = MakeProblem({.group_size = 4, .sketch = sketch}, tokens);
        for (double& v : problem.step.v) v = reference::Round(problem.shape.dtype, v + mean);
        problem.step.options = {.method = method, .sample_count = 300, .scale = scale};
        SCOPED_TRACE(Describe(problem) + ", n " + std::to_string(tokens) + ", scale " + std::to_string(scale) +
                     ", values about " + std::to_string(mean));
        EXPECT_NEAR(ToldOverSeen(problem), 1, Widened(0.15));
      }
    }
  }
}

// By a pilot, of one or two rows a split, so that pairs are of two splits mostly.
TEST_F(GroupDrawTest, TellTheirStandardErrorOfFewRows) {
  for (const Method method : {Method::kSketched, Method::kCoordinated}) {
    Problem problem = MakeProblem({.group_size = 4, .num_kv_heads = 1, .head_dim = 64}, 32768);
    for (double& v : problem.step.v) v = reference::Round(problem.shape.dtype, v + 1);
    problem.step.options = {.method = method, .sample_count = 48, .scale = 0.0625f};
    SCOPED_TRACE(Describe(problem));
    EXPECT_NEAR(ToldOverSeen(problem), 1, Widened(0.15));
  }
}

// By a pilot, where one token has all of the mass and is read for certain, and of the others about two are: one of them
// alone tells nothing.
TEST_F(GroupDrawTest, OneRowLeftToChanceTellsNoError) {
  Problem problem = MakeProblem({.group_size = 4, .num_kv_heads = 1}, 3008);  // whole pages, so that all have a sketch
  const int32_t dim = problem.step.head_dim;
  std::fill(problem.step.q.begin(), problem.step.q.end(), 1.0);
  std::fill(problem.step.k.begin(), problem.step.k.end(), -1.0);
  std::fill_n(problem.step.k.begin() + 5 * dim, dim, 1.0);
  problem.step.options = {.method = Method::kSketched, .sample_count = 32, .scale = 0.25f};
  int alone = 0;
  for (const Answer& answer : DecodeOnGpu(Seeds(problem, 50))) {
    ASSERT_GE(answer.rows_read, 1);
    alone += answer.rows_read == 2;
    for (const float error : answer.relative_standard_error) {
      EXPECT_EQ(std::isnan(error), answer.rows_read == 2) << answer.rows_read << " rows";
    }
  }
  EXPECT_GT(alone, 0);
  EXPECT_LT(alone, 50);
}

// Near the exact answer, and near enough for what is told of the error; twice the same.
void ExpectNear(const Problem& problem) {
  const reference::Output exact = reference::Exact(problem.step);
  const std::vector<Answer> answers = DecodeOnGpu({{&problem, 1}, {&problem, 2}, {&problem, 1}});
  EXPECT_EQ(answers[0].o, answers[2].o);
  EXPECT_EQ(answers[0].lse, answers[2].lse);
  if (problem.step.options.method == Method::kCoordinated) {
    EXPECT_LT(RelativeError(answers[0].lse, exact.lse), 1e-5);
  }
  const int32_t dim = problem.step.head_dim;
  // Of few rows little can be told, and of one among two tokens nothing.
  for (int32_t head = 0; problem.step.num_tokens > 2 && head < problem.step.num_query_heads; ++head) {
    const std::vector<float> expected(exact.o.begin() + head * dim, exact.o.begin() + (head + 1) * dim);
    const double error = RelativeError(&answers[0].o[head * dim], expected.data(), dim);
    ASSERT_LT(error, 0.03 + 6 * answers[0].relative_standard_error[head]) << "head " << head;
  }
}

// Every head dimension, storage type, page size, and group sizes up to 16, over lengths about a block's and a page's
// end, with window, soft cap and sinks: near the exact answer, and near enough for what they tell of their error.
TEST_F(GroupDrawTest, AnswerEveryShape) {
  constexpr int kPageSizes[] = {16, 32, 64, 128, 256};
  constexpr int kGroups[] = {1, 2, 3, 5, 7, 8, 9, 16};
  int index = 0;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    for (const int head_dim : {64, 96, 128, 192, 256}) {
      for (const int64_t tokens : {2, 63, 64, 65, 255, 256, 257, 1700}) {
        Shape shape = {.dtype = dtype,
                       .group_size = kGroups[index % 8],
                       .num_kv_heads = 1 + index % 3,
                       .head_dim = head_dim,
                       .page_size = kPageSizes[index % 5],
                       .scaled = dtype == DType::kFloat8E4M3 && index % 2 == 0};
        const uint32_t window = index % 4 == 1 ? 150 : 0;
        ++index;
        for (const auto& [method, sketch] : kEstimators) {
          if (ValueBits(sketch) > 0 && SizeOf(dtype) == 1) continue;
          shape.sketch = sketch;
          Problem problem = MakeProblem(shape, tokens);
          const auto visible = static_cast<uint32_t>(window != 0 && window < tokens ? window : tokens);
          problem.step.options = {.method = method,
                                  .sample_count = visible - visible / 4 - (visible < 4 ? 1 : 0),
                                  .scale = 0.15f,
                                  .window = window,
                                  .soft_cap = index % 3 == 0 ? 8.0f : 0.0f};
          problem.step.sink_logits.assign(index % 2 == 0 ? problem.step.num_query_heads : 0, 0.5);
          SCOPED_TRACE(santa::cuda::Describe(shape) + ", n " + std::to_string(tokens) + ", window " +
                       std::to_string(window) + ", " + Describe(problem));
          ExpectNear(problem);
        }
      }
    }
  }
}

// Likewise by a pilot: about where there first is one, about a run's end, and with runs of each length.
TEST_F(GroupDrawTest, AnswerEveryShapeByAPilot) {
  constexpr int kPageSizes[] = {16, 32, 64, 128, 256};
  int index = 0;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    for (const int head_dim : {64, 128}) {
      for (const int64_t tokens : {2049, 2111, 3072, 3073, 5000}) {
        const Shape shape = {.dtype = dtype,
                             .group_size = 1 + index % 8,
                             .num_kv_heads = 1 + index % 3,
                             .head_dim = head_dim,
                             .page_size = kPageSizes[(index + index / 5) % 5],
                             .scaled = dtype == DType::kFloat8E4M3 && index % 2 == 0};
        const auto expect_near = [index, tokens](const Shape& of, Method method) {
          Problem problem = MakeProblem(of, tokens);
          problem.step.options = {.method = method,
                                  .sample_count = 700,
                                  .scale = 0.15f,
                                  .window = tokens > 3000 && index % 2 == 1 ? 2100u : 0u,
                                  .soft_cap = index % 3 == 0 ? 8.0f : 0.0f};
          problem.step.sink_logits.assign(index % 2 == 0 ? problem.step.num_query_heads : 0, 0.5);
          SCOPED_TRACE(santa::cuda::Describe(of) + ", n " + std::to_string(tokens) + ", " + Describe(problem));
          ExpectNear(problem);
        };
        expect_near(shape, index % 4 < 2 ? Method::kSketched : Method::kCoordinated);
        if (SizeOf(dtype) > 1) {
          Shape of_values = shape;
          of_values.sketch = index % 3 == 0 ? Sketch::kK8V8 : Sketch::kK4V4;
          of_values.group_size = 1 + index % 4;
          of_values.page_size = kPageSizes[2 + index % 3];
          expect_near(of_values, Method::kSketched);
        }
        ++index;
      }
    }
  }
  for (const auto& [tokens, method, sketch] : {std::tuple{int64_t{33000}, Method::kCoordinated, Sketch::kK4},
                                               {int64_t{66000}, Method::kSketched, Sketch::kK4},
                                               {int64_t{66000}, Method::kSketched, Sketch::kK4V4}}) {
    Problem problem = MakeProblem({.num_kv_heads = 1, .head_dim = 64, .sketch = sketch}, tokens);
    problem.step.options = {.method = method, .sample_count = 1000, .scale = 0.1f};
    SCOPED_TRACE(tokens);
    ExpectNear(problem);
  }
}

// A head that is not a number has no say in what its group reads, and harms no other.
TEST_F(GroupDrawTest, AHeadOfNaNsHarmsNoOther) {
  for (const auto& [tokens, method, sketch] : {std::tuple{1000, Method::kSketched, Sketch::kK4},
                                               {3000, Method::kSketched, Sketch::kK4},
                                               {1000, Method::kSketched, Sketch::kK4V4},
                                               {3000, Method::kSketched, Sketch::kK4V4},
                                               {3000, Method::kSketched, Sketch::kK8V8},
                                               {3000, Method::kCoordinated, Sketch::kK4}}) {
    Problem problem = MakeProblem({.num_kv_heads = 1, .sketch = sketch}, tokens);
    problem.step.options = {.method = method, .sample_count = 300, .scale = 0.1f};
    const reference::Output exact = reference::Exact(problem.step);
    const int32_t dim = problem.step.head_dim;
    std::fill_n(problem.step.q.begin() + dim, dim, NAN);
    const Answer answer = DecodeOnGpu({{&problem, 1}})[0];
    for (int32_t head = 0; head < problem.step.num_query_heads; ++head) {
      const std::vector<float> expected(exact.o.begin() + head * dim, exact.o.begin() + (head + 1) * dim);
      const double error = RelativeError(&answer.o[head * dim], expected.data(), dim);
      if (head == 1) {
        EXPECT_TRUE(std::isnan(answer.o[head * dim]));
      } else {
        EXPECT_LT(error, 6 * answer.relative_standard_error[head]) << "head " << head << ", n " << tokens;
      }
    }
  }
}

// A value sketch is no help to a head whose keys' sketch finds most tokens 64 times as likely as they are: its rows
// stand alone. The other heads do not see what misleads it.
TEST_F(GroupDrawTest, AHeadWhoseSketchIsNoHelpGoesByItsRows) {
  for (const int64_t tokens : {1000, 3000}) {
    Problem problem = MakeProblem({.num_kv_heads = 1, .sketch = Sketch::kK4V4}, tokens);
    problem.step.options = {.method = Method::kSketched, .sample_count = 300, .scale = 0.1f};
    const int32_t dim = problem.step.head_dim, misleading = 4;
    for (int64_t token = 0; token < tokens; ++token) {
      const int64_t in_page = token % problem.shape.page_size;
      // Of steps of 1 from -15 on, the nearest to -0.49 is 0.
      const double feature = reference::Round(problem.shape.dtype, in_page == 0 ? -15 : in_page == 1 ? 0 : -0.49);
      std::fill_n(problem.step.k.begin() + token * dim, misleading, feature);
    }
    for (int32_t head = 0; head < problem.step.num_query_heads; ++head) {
      std::fill_n(problem.step.q.begin() + head * dim, misleading, head == 0 ? 21.0 : 0.0);
    }
    SCOPED_TRACE(tokens);
    ExpectNear(problem);
  }
}

// What is read for certain has no error, whatever the sketch thinks of the rest.
TEST_F(GroupDrawTest, AllOfTheMassOnFewRowsIsExact) {
  for (const auto& [method, sketch] : kEstimators) {
    for (const int64_t tokens : {2000, 4000}) {
      Problem problem = MakeProblem({.group_size = 4, .sketch = sketch}, tokens);
      problem.step.options = {.method = method, .sample_count = 200, .scale = 4.0f};
      const reference::Output exact = reference::Exact(problem.step);
      for (const Answer& answer : DecodeOnGpu(Seeds(problem, 10))) {
        EXPECT_LT(RelativeError(answer.o, exact.o), 5e-3) << Describe(problem) << ", n " << tokens;
      }
    }
  }
}

// Splits and batches change nothing: a long item alone and beside short ones.
TEST_F(GroupDrawTest, TheSameBitsInEveryBatch) {
  for (const auto& [method, sketch] : kEstimators) {
    Problem longer = MakeProblem({.sketch = sketch}, 9000), shorter = MakeProblem({.sketch = sketch}, 700);
    longer.step.options = shorter.step.options = {.method = method, .sample_count = 500, .scale = 0.1f};
    const std::vector<Answer> alone = DecodeOnGpu({{&longer, 3}});
    const std::vector<Answer> together = DecodeOnGpu({{&shorter, 1}, {&longer, 3}, {&shorter, 2}, {&longer, 4}});
    EXPECT_EQ(alone[0].o, together[1].o);
    EXPECT_EQ(alone[0].lse, together[1].lse);
    EXPECT_EQ(alone[0].relative_standard_error, together[1].relative_standard_error);
    EXPECT_NE(alone[0].o, together[3].o);
  }
}

// COORDINATED keeps what it has of K, unless there is an item in the batch that is too long for that.
TEST_F(GroupDrawTest, TheSameBitsWhereKeysAreReadAgain) {
  const Shape shape = {.num_kv_heads = 1, .head_dim = 64};
  Problem longer = MakeProblem(shape, 33000), shorter = MakeProblem(shape, 3000);
  longer.step.options = shorter.step.options = {.method = Method::kCoordinated, .sample_count = 500, .scale = 0.1f};
  const std::vector<Answer> alone = DecodeOnGpu({{&shorter, 3}});
  const std::vector<Answer> together = DecodeOnGpu({{&shorter, 3}, {&longer, 3}});
  EXPECT_EQ(alone[0].o, together[0].o);
  EXPECT_EQ(alone[0].lse, together[0].lse);
  EXPECT_EQ(alone[0].relative_standard_error, together[0].relative_standard_error);
}

// Alone several blocks share a group's pilot, and a block has a split; in a large batch one block has a pilot, and a
// warp a split, as it always has with a value sketch.
TEST_F(GroupDrawTest, TheSameBitsHoweverManyItemsHaveAPilot) {
  for (const auto& [method, sketch] : kEstimators) {
    Problem problem = MakeProblem({.num_kv_heads = 2, .sketch = sketch}, 2200);
    problem.step.options = {.method = method, .sample_count = 300, .scale = 0.1f};
    const std::vector<Answer> alone = DecodeOnGpu({{&problem, 3}});
    const std::vector<Answer> together = DecodeOnGpu(std::vector<Item>(SeedCount(100), {&problem, 3}));
    for (const Answer& answer : together) {
      ASSERT_EQ(answer.o, alone[0].o);
      ASSERT_EQ(answer.lse, alone[0].lse);
      ASSERT_EQ(answer.relative_standard_error, alone[0].relative_standard_error);
      ASSERT_EQ(answer.rows_read, alone[0].rows_read);
    }
  }
}

}  // namespace
}  // namespace santa::cuda
