// From a dot product to a score, and which tokens a query sees.
#ifndef SANTA_KERNELS_SAMPLING_SCORE_H_
#define SANTA_KERNELS_SAMPLING_SCORE_H_

#include <cmath>
#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::sampling {

// Scores are held to this magnitude, so that products of huge but finite q and k give finite outputs: a difference of
// two scores may then overflow to -inf, whose exponential is 0, but never is inf - inf.
inline constexpr float kMaxScore = 3.0e38f;

// AttentionOptions::scale, where 0 stands for 1 / sqrt(D).
SANTA_HOST_DEVICE float EffectiveScale(float scale, int32_t head_dim) {
  return scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
}

// scale * dot, held to +-kMaxScore, then capped: c * tanh(s / c) for a soft cap c > 0; c = 0: none. NaN stays NaN, so
// that a cache row read by mistake shows.
SANTA_HOST_DEVICE float Score(float dot, float scale, float soft_cap) {
  float score = dot * scale;
  if (score > kMaxScore) score = kMaxScore;
  if (score < -kMaxScore) score = -kMaxScore;
  return soft_cap > 0 ? soft_cap * std::tanh(score / soft_cap) : score;
}

// The visible tokens [VisibleBegin, num_tokens) of the query at num_tokens - 1; window 0: all of them.
SANTA_HOST_DEVICE int64_t VisibleBegin(int64_t num_tokens, uint32_t window) {
  return window == 0 || static_cast<int64_t>(window) >= num_tokens ? 0 : num_tokens - static_cast<int64_t>(window);
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_SCORE_H_
