// Attention and its estimators in fp64, by their definitions, and each estimator's mean and variance in closed form.
// The oracle of every backend's tests: it shares no code with them, and is written to be read, not to be fast.
//
// Notation as in kernels/attention.h. p: softmax of the scores over the visible tokens. w: the share of the softmax
// that sinks leave, exp(lse of the visible tokens - lse with the sink). Every output is w times an estimate of sum_i
// p_i v_i.
#ifndef SANTA_KERNELS_REFERENCE_ESTIMATORS_H_
#define SANTA_KERNELS_REFERENCE_ESTIMATORS_H_

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/attention.h"

namespace santa::reference {

// One decode step of one sequence in one layer, with the values that are stored.
struct Step {
  int32_t num_query_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int64_t num_tokens = 0;
  std::vector<double> q;            // [H][D]
  std::vector<double> k;            // [n][H_kv][D]
  std::vector<double> v;            // [n][H_kv][D]
  std::vector<double> sink_logits;  // [H], or empty
  AttentionOptions options;
  int64_t page_size = 64;  // of the sketch
  Sketch sketch = Sketch::kNone;
  // Whether a draw for a group goes by the threshold of a pilot and run by run (kernels/sampling/pilot.h), of more
  // visible tokens than it has.
  bool pilot = false;
};

struct Output {
  std::vector<double> o;    // [H][D]
  std::vector<double> lse;  // [H]
};

// The definition, whatever options.method says.
Output Exact(const Step& step);

// One estimate by options.method.
Output Estimate(const Step& step, std::mt19937_64& random);

// The estimate's mean and variance over its random draws, by integration over them.
//
//     SANTA        sum_i p_i (v_i - o)^2 / S
//     STRATIFIED   the sum over strata of each one's variance / S^2
//     SYSTEMATIC   o(U) is a step function of the one uniform U: integrated step by step
//     S2ANTA_FLASH tiles are independent: sum_t P_t^2 Var_systematic(tile t, S_t)
//     S2ANTA_PROP  E[Var(o | budgets)] + Var(E[o | budgets]), the budgets a step function of one uniform, or fixed
//     COORDINATED  as SYSTEMATIC, one U for the group, or one for each run of its tokens
//     SKETCHED     likewise, for numerator and denominator
//
// Exact estimates (EXACT, S >= visible tokens) have variance 0. Score draws have no closed form beyond the scores
// (ternary_query.h): what is given here is the rest, for a drawn query as step.q.
struct Moments {
  // Of o^ exp(lse^ - lse), which is o^ itself but for SKETCHED, whose lse^ is estimated too: there it is the numerator,
  // which has no bias.
  std::vector<double> mean;           // [H][D]
  std::vector<double> variance;       // [H][D]
  std::vector<double> mass_variance;  // [H], of exp(lse^ - lse), whose mean is 1
  // E (o^ - o)^2: the variance, but for SKETCHED, where it is the linearised ratio's (what is left out is O(1 / S^2)).
  std::vector<double> error;  // [H][D]
  // Of a draw for a group, else empty: rows that are read on average.
  std::vector<double> rows;  // [H_kv]
};
Moments MomentsOf(const Step& step);

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_ESTIMATORS_H_
