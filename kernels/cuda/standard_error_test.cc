// The standard errors that the methods which draw for each head tell on a GPU, in every shape of their kernels.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/testing.h"
#include "kernels/reference/estimators.h"
#include "kernels/reference/number_format.h"

namespace santa::cuda {
namespace {

using StandardErrorTest = GpuTest;

// A group of each size that kernels are compiled for, every head dimension and storage type; values about 1, so that
// errors are small beside what they are relative to.
std::vector<Problem> Problems() {
  std::vector<Problem> problems;
  for (const Shape& shape : {Shape{.dtype = DType::kFloat8E4M3, .group_size = 3, .head_dim = 64},
                             Shape{.dtype = DType::kBFloat16, .group_size = 4, .head_dim = 128},
                             Shape{.dtype = DType::kFloat16, .group_size = 7, .head_dim = 192},
                             Shape{.dtype = DType::kFloat8E4M3, .group_size = 8, .head_dim = 96, .scaled = true},
                             Shape{.dtype = DType::kBFloat16, .group_size = 16, .head_dim = 96},
                             Shape{.dtype = DType::kFloat8E4M3, .group_size = 16, .head_dim = 256}}) {
    Problem problem = MakeProblem(shape, 1100);
    for (double& v : problem.step.v) v = reference::Round(shape.dtype, v + 1);
    problem.step.sink_logits.assign(problem.step.num_query_heads, 1.0);
    problems.push_back(problem);
  }
  return problems;
}

// What answers say of their error, over the error that the estimator has: root mean squares over heads and seeds.
double ToldOverTrue(const Problem& problem, const std::vector<Answer>& answers) {
  const reference::Output exact = reference::Exact(problem.step);
  const reference::Moments moments = reference::MomentsOf(problem.step);
  const int32_t dim = problem.step.head_dim;
  double told = 0, expected = 0;
  for (int32_t head = 0; head < problem.step.num_query_heads; ++head) {
    double norm = 0, mean = 0;
    for (int32_t d = head * dim; d < (head + 1) * dim; ++d) {
      norm += exact.o[d] * exact.o[d];
      expected += moments.variance[d];
    }
    for (const Answer& answer : answers) {
      mean += std::pow(answer.relative_standard_error[head], 2) / static_cast<double>(answers.size());
    }
    told += mean * norm;
  }
  return std::sqrt(told / expected);
}

TEST_F(StandardErrorTest, IsTheErrorInEveryShape) {
  for (Problem& problem : Problems()) {
    for (const Method method :
         {Method::kSanta, Method::kStratified, Method::kSystematic, Method::kS2antaFlash, Method::kS2antaProp}) {
      const float scale = 0.75f / std::sqrt(static_cast<float>(problem.step.head_dim));  // logits of deviation 1.5
      problem.step.options = {.method = method, .sample_count = 150, .scale = scale};
      std::vector<Item> items;
      for (int seed = 1; seed <= SeedCount(100); ++seed) items.push_back({&problem, static_cast<uint64_t>(seed)});
      EXPECT_NEAR(ToldOverTrue(problem, DecodeOnGpu(items)), 1, 0.15)
          << Describe(problem.shape) << ", " << Name(method);
    }
  }
}

// Rows of one value all: an answer that errs by nothing but rounding, however its rows are drawn, says so.
TEST_F(StandardErrorTest, OfRowsThatAreAlikeIsNone) {
  Problem problem = MakeProblem({.group_size = 4}, 1100);
  for (size_t i = 0; i < problem.step.v.size(); ++i) problem.step.v[i] = static_cast<double>(i % 128) / 64;
  for (const Method method :
       {Method::kSanta, Method::kStratified, Method::kSystematic, Method::kS2antaFlash, Method::kS2antaProp}) {
    problem.step.options = {.method = method, .sample_count = 150, .scale = 0.07f};
    const Answer answer = DecodeOnGpu({{&problem, 1}})[0];
    for (const float error : answer.relative_standard_error) EXPECT_LT(error, 1e-3) << Name(method);
  }
}

}  // namespace
}  // namespace santa::cuda
