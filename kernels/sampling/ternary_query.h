// Score draws: a query as the mean of R ternary ones, so that only features that some draw took are read of K
// ("BERNOULLI_QK", arXiv 2605.01910). For a query head, a = max_j |q_j|:
//
//     t[r,j] = sign(q_j) with probability |q_j| / a, else 0        draws r = 0 .. R - 1, features j
//     q^_j   = (a / R) sum_r t[r,j]                                E q^ = q, so that dot(q^, k) has the mean dot(q, k)
//     Var dot(q^, k) = sum_j (a |q_j| - q_j^2) k_j^2 / R
//
// Draws and features are independent. The heads of a group share the uniform of each (r, j): feature j is read by all
// of them or none with probability max_h |q[h,j]| / a[h] a draw, the least that such marginals allow.
//
// A uniform is 32 bits u, and t[r,j] is not 0 where u < ScoreThreshold(q_j, a): the largest feature is taken in every
// draw, a feature of 0 in none, and any other with a probability that is within 2^-32 of |q_j| / a in fp32.
#ifndef SANTA_KERNELS_SAMPLING_TERNARY_QUERY_H_
#define SANTA_KERNELS_SAMPLING_TERNARY_QUERY_H_

#include <cmath>
#include <cstdint>

#include "kernels/sampling/host_device.h"
#include "kernels/sampling/uniform.h"

namespace santa::sampling {

// 2^32 |q| / largest, in [0, 2^32]; 0 where that is not a number. |q| <= largest.
SANTA_HOST_DEVICE uint64_t ScoreThreshold(float q, float largest) {
  const float probability = fabsf(q) / largest;
  return probability > 0 ? static_cast<uint64_t>(probability * 0x1p32f) : 0;
}

// The uniforms of features [4 quad, 4 quad + 4) of draw `draw` in [0, R). `stream`: of the group (its head is the
// key/value head); head_dim a multiple of 4.
struct ScoreUniforms {
  uint32_t of_feature[4];
};
SANTA_HOST_DEVICE ScoreUniforms DrawScoreUniforms(const RandomStream& stream, int32_t head_dim, uint32_t draw,
                                                  int32_t quad) {
  const uint32_t block = draw * static_cast<uint32_t>(head_dim / 4) + static_cast<uint32_t>(quad);
  const Random64Pair pair = RandomPair(stream, Purpose::kScore, block);
  return {{static_cast<uint32_t>(pair.value[0]), static_cast<uint32_t>(pair.value[0] >> 32),
           static_cast<uint32_t>(pair.value[1]), static_cast<uint32_t>(pair.value[1] >> 32)}};
}

// q^_j of a feature that was taken in `taken` of `draws` draws.
SANTA_HOST_DEVICE float DrawnFeature(float q, float largest, uint32_t taken, uint32_t draws) {
  // The quotient first: the product with the largest number may be beyond fp32.
  const float size = largest * (static_cast<float>(taken) / static_cast<float>(draws));
  return taken == 0 ? 0.0f : copysignf(size, q);
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_TERNARY_QUERY_H_
