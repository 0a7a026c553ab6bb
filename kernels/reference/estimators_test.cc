// The closed forms of the reference against its own random estimates: two derivations that must agree.
#include "kernels/reference/estimators.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/attention.h"

namespace santa::reference {
namespace {

Step RandomStep(int64_t num_tokens, Method method, uint32_t draws, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  Step step;
  step.num_query_heads = 2;
  step.num_kv_heads = 1;
  step.head_dim = 8;
  step.num_tokens = num_tokens;
  step.options = {.method = method, .sample_count = draws};
  for (int i = 0; i < 2 * 8; ++i) step.q.push_back(1.5 * normal(random));
  for (int64_t i = 0; i < num_tokens * 8; ++i) {
    step.k.push_back(normal(random));
    step.v.push_back(normal(random));
  }
  return step;
}

TEST(EstimatorsTest, ExactOnAnExampleByHand) {
  Step step;
  step.num_query_heads = 1;
  step.num_kv_heads = 1;
  step.head_dim = 1;
  step.num_tokens = 3;
  step.q = {1};
  step.k = {std::log(1.0), std::log(2.0), std::log(5.0)};
  step.v = {8, 16, 24};
  const Output output = Exact(step);
  EXPECT_NEAR(output.o[0], (8 * 1 + 16 * 2 + 24 * 5) / 8.0, 1e-12);
  EXPECT_NEAR(output.lse[0], std::log(8.0), 1e-12);
  step.sink_logits = {std::log(8.0)};  // takes half
  EXPECT_NEAR(Exact(step).o[0], 10, 1e-12);
  EXPECT_NEAR(Exact(step).lse[0], std::log(16.0), 1e-12);
  step.options.window = 2;
  EXPECT_NEAR(Exact(step).o[0], (16 * 2 + 24 * 5) / 15.0, 1e-12);
  step.sink_logits.clear();
  step.options.soft_cap = 0.5;
  const double a = std::exp(0.5 * std::tanh(std::log(2.0) / 0.5));
  const double b = std::exp(0.5 * std::tanh(std::log(5.0) / 0.5));
  EXPECT_NEAR(Exact(step).o[0], (16 * a + 24 * b) / (a + b), 1e-12);
}

struct Case {
  Method method;
  BudgetRounding rounding = BudgetRounding::kSystematic;
  Sketch sketch = Sketch::kNone;
  bool pilot = false;
};

// 4,000 estimates a case (1,500 where they take long); a mean may stray 6 standard errors (2e-9 a component), a
// variance summed over a head 10 %.
TEST(EstimatorsTest, ClosedFormsAgreeWithRandomEstimates) {
  for (const Case& c : {Case{Method::kSanta}, Case{Method::kStratified}, Case{Method::kSystematic},
                        Case{Method::kS2antaFlash}, Case{Method::kS2antaProp},
                        Case{Method::kS2antaProp, BudgetRounding::kLargestRemainder}, Case{Method::kCoordinated},
                        Case{Method::kSketched, {}, Sketch::kK4}, Case{Method::kSketched, {}, Sketch::kK4V4},
                        Case{Method::kSketched, {}, Sketch::kK8V8}, Case{Method::kSketched, {}, Sketch::kK4, true}}) {
    const int kEstimates = c.method == Method::kCoordinated || c.method == Method::kSketched ? 1500 : 4000;
    Step step = RandomStep(c.pilot ? 2120 : 600, c.method, c.pilot ? 60 : 20, 11);
    step.pilot = c.pilot;
    step.options.budget_rounding = c.rounding;
    step.sketch = c.sketch;
    step.page_size = 32;
    step.options.window = static_cast<uint32_t>(step.num_tokens - 50);
    step.sink_logits = {1.0, 7.0};
    const Output exact = Exact(step);
    const Moments moments = MomentsOf(step);
    const size_t size = moments.mean.size();
    std::vector<double> sum(size, 0.0);
    std::vector<double> square(size, 0.0);
    std::vector<double> error(size, 0.0);
    std::vector<double> mass(2, 0.0);
    std::vector<double> mass_square(2, 0.0);
    std::mt19937_64 random(12);
    for (int i = 0; i < kEstimates; ++i) {
      const Output output = Estimate(step, random);
      for (size_t j = 0; j < size; ++j) {
        const double numerator = output.o[j] * std::exp(output.lse[j / 8] - exact.lse[j / 8]);
        sum[j] += numerator;
        square[j] += std::pow(numerator - moments.mean[j], 2);
        error[j] += std::pow(output.o[j] - exact.o[j], 2);
      }
      for (int head = 0; head < 2; ++head) {
        const double of_head = std::exp(output.lse[head] - exact.lse[head]);
        mass[head] += of_head / kEstimates;
        mass_square[head] += std::pow(of_head - 1, 2) / kEstimates;
      }
    }
    for (int head = 0; head < 2; ++head) {
      double found = 0;
      double expected = 0;
      for (size_t j = head * 8; j < head * 8 + 8; ++j) {
        EXPECT_NEAR(sum[j] / kEstimates, moments.mean[j], 6 * std::sqrt(moments.variance[j] / kEstimates))
            << Name(c.method) << " component " << j;
        found += square[j] / kEstimates;
        expected += moments.variance[j];
      }
      EXPECT_NEAR(found / expected, 1, 0.1) << Name(c.method) << " head " << head;
      EXPECT_NEAR(mass[head], 1, 6 * std::sqrt(moments.mass_variance[head] / kEstimates) + 1e-12);
      EXPECT_NEAR(mass_square[head], moments.mass_variance[head], 0.1 * moments.mass_variance[head] + 1e-20);
      if (c.rounding == BudgetRounding::kLargestRemainder) continue;  // errs by its bias too
      // The ratio, linearised: true to about the mass's own relative error.
      found = expected = 0;
      for (size_t j = head * 8; j < head * 8 + 8; ++j) {
        found += error[j] / kEstimates;
        expected += moments.error[j];
      }
      EXPECT_NEAR(found / expected, 1, 0.1 + 2 * std::sqrt(moments.mass_variance[head])) << Name(c.method);
    }
  }
}

TEST(EstimatorsTest, AllButTheLargestRemainderAreUnbiased) {
  for (const Method method : {Method::kSanta, Method::kStratified, Method::kSystematic, Method::kS2antaFlash,
                              Method::kS2antaProp, Method::kCoordinated}) {
    const Step step = RandomStep(900, method, 33, 5);
    const Output exact = Exact(step);
    const Moments moments = MomentsOf(step);
    for (size_t i = 0; i < exact.o.size(); ++i) EXPECT_NEAR(moments.mean[i], exact.o[i], 1e-12);
  }
}

// 8 bits of a page's range lose little: what is left to sampling is small. 4 lose more.
TEST(EstimatorsTest, TheDifferenceEstimatorErrsByWhatTheSketchLost) {
  std::vector<double> errors;
  for (const Sketch sketch : {Sketch::kK4, Sketch::kK4V4, Sketch::kK8V8}) {
    Step step = RandomStep(900, Method::kSketched, 60, 6);
    step.sketch = sketch;
    double error = 0;
    for (const double x : MomentsOf(step).error) error += x;
    errors.push_back(std::sqrt(error));
  }
  EXPECT_LT(errors[1], 0.7 * errors[0]);
  EXPECT_LT(errors[2], 0.1 * errors[1]);
}

TEST(EstimatorsTest, EnoughDrawsAreExact) {
  std::mt19937_64 random(1);
  for (const uint32_t draws : {50u, 51u}) {
    const Step step = RandomStep(50, Method::kSanta, draws, 3);
    EXPECT_EQ(Estimate(step, random).o, Exact(step).o);
    for (const double variance : MomentsOf(step).variance) EXPECT_EQ(variance, 0);
  }
}

}  // namespace
}  // namespace santa::reference
