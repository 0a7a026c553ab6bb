// Score draws by their definition ("BERNOULLI_QK", arXiv 2605.01910), in fp64: a query as the mean of R ternary ones.
//
//     t[r,j] = sign(q_j) with probability |q_j| / a, else 0      a = max_j |q_j|, r = 1 .. R = options.score_draws
//     q^_j   = (a / R) sum_r t[r,j]
//
// The query heads of a key/value head draw t[r,j] by the same uniform.
#ifndef SANTA_KERNELS_REFERENCE_TERNARY_QUERY_H_
#define SANTA_KERNELS_REFERENCE_TERNARY_QUERY_H_

#include <cstdint>
#include <random>

#include "kernels/reference/estimators.h"
#include "kernels/reference/head.h"

namespace santa::reference {

// q^ of every query head, [H][D].
Vector DrawTernaryQuery(const Step& step, std::mt19937_64& random);

// Of dot(q^, k), whose mean is dot(q, k): sum_j (a |q_j| - q_j^2) k_j^2 / R. Both of D numbers.
double DotVariance(const Vector& q, const Vector& k, uint32_t draws);

// E exp(lse^ - lse) of a query head, without soft cap and sinks: above 1, for the mean of an exponential is above that
// of the mean. sum_i p_i prod_j [(1 - P_j + P_j exp(c_ij)) / exp(P_j c_ij)]^R with P_j = |q_j| / a and
// c_ij = scale sign(q_j) a k_ij / R.
double ExpectedMass(const Step& step, int32_t head);

// Features that some query head of a key/value head has in q^, in the mean: sum_j 1 - (1 - max_h |q[h,j]| / a[h])^R.
double ExpectedFeatures(const Step& step, int32_t kv_head);

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_TERNARY_QUERY_H_
