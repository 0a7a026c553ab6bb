// From dot products to scores, weights and masses; interleaved as kernels/cpu/row_kernels.h says.
#if defined(SANTA_KERNELS_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_SOFTMAX_INL_H_
#undef SANTA_KERNELS_CPU_SOFTMAX_INL_H_
#else
#define SANTA_KERNELS_CPU_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/cpu/fetch-inl.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_load-inl.h"
#include "kernels/sampling/mass.h"
#include "kernels/sampling/score.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE int PaddedCount(int num_rows, int pitch) {
  return (num_rows + kRowGroup - 1) / kRowGroup * kRowGroup * pitch;
}

// exp(x) for x <= 0 within 1.5 units in the last place, 0 below -86.6; NaN stays NaN (which Highway's Exp takes for
// -inf: a poisoned row would not show).
HWY_INLINE Vector ExpOfNegative(Vector x) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const auto too_low = hn::Lt(x, hn::Set(d, -86.6f));
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves it in the low bits.
  const Vector shift = hn::Set(d, 12582912.0f);
  const Vector shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), shift);
  const Vector n = hn::Sub(shifted, shift);
  Vector r = hn::MulAdd(n, hn::Set(d, -0.693145751953125f), x);
  r = hn::MulAdd(n, hn::Set(d, -1.42860677e-6f), r);
  // Taylor's series with its last terms fitted to [-ln 2 / 2, ln 2 / 2] (Cephes expf).
  Vector p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::BitCast(di, shifted), hn::Set(di, 127)));
  return hn::IfThenZeroElse(too_low, hn::Mul(p, hn::BitCast(d, exponent)));
}

// The same within 9e-5 (7.5e-5, and the rounding of x far below 0), for half of the work.
HWY_INLINE Vector RoughExpOfNegative(Vector x) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const auto too_low = hn::Lt(x, hn::Set(d, -86.6f));
  // 2^y: n = round(y), with the exponent's bias in the low bits of `shifted` beside it, and 2^f for |f| <= 1/2.
  const Vector y = hn::Mul(x, hn::Set(d, 1.44269504f));
  const Vector shift = hn::Set(d, 12582912.0f + 127);
  const Vector shifted = hn::Add(y, shift);
  const Vector f = hn::Sub(y, hn::Sub(shifted, shift));
  // The cubic with the least relative error.
  Vector p = hn::Set(d, 0.0551716691f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.242611122f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693260985f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.999928074f));
  const Vector power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::IfThenZeroElse(too_low, hn::Mul(p, power));
}

// Out of line: Highway's tanh is long, and few models cap their scores.
HWY_NOINLINE void SoftCap(float* scores, int count, float soft_cap) {
  const FloatTag d;
  const Vector cap = hn::Set(d, soft_cap);
  for (int i = 0; i < count; i += kLanes) {
    const Vector score = hn::LoadU(d, scores + i);
    const Vector capped = hn::Mul(cap, hn::Tanh(d, hn::Div(score, cap)));
    hn::StoreU(hn::IfThenElse(hn::IsNaN(score), score, capped), d, scores + i);
  }
}

// The largest, or the sum, of the lanes that belong to the same head, in every lane of that head.
template <typename Function>
HWY_INLINE HeadVector Fold(Vector values, int pitch, Function function) {
  float lanes[kLanes];
  hn::StoreU(values, FloatTag(), lanes);
  for (int width = kLanes / 2; width >= pitch; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = function(lanes[i], lanes[i + width]);
  }
  return {{lanes[0], lanes[1 % pitch], lanes[2 % pitch], lanes[3 % pitch]}};
}

inline void FinishScores(float* scores, int num_rows, int pitch, float scale, float soft_cap, HeadVector* max) {
  const FloatTag d;
  const int count = num_rows * pitch;
  const int padded = PaddedCount(num_rows, pitch);
  // Copies of the first row, which cannot change the maximum, in place of garbage, which could.
  for (int i = count; i < padded; ++i) scores[i] = scores[i % pitch];
  const Vector factor = hn::Set(d, scale);
  const Vector high = hn::Set(d, sampling::kMaxScore);
  const Vector low = hn::Set(d, -sampling::kMaxScore);
  for (int i = 0; i < padded; i += kLanes) {
    // With the number as the second argument x86 keeps a NaN.
    hn::StoreU(hn::Min(high, hn::Max(low, hn::Mul(hn::LoadU(d, scores + i), factor))), d, scores + i);
  }
  if (soft_cap > 0) SoftCap(scores, padded, soft_cap);
  Vector largest = hn::LoadDup128(d, max->lane);
  for (int i = 0; i < padded; i += kLanes) largest = hn::Max(largest, hn::LoadU(d, scores + i));
  *max = Fold(largest, pitch, [](float a, float b) { return a > b ? a : b; });
  std::fill(scores + count, scores + padded, -std::numeric_limits<float>::infinity());
}

template <Vector (*kExp)(Vector)>
HeadVector Exponentials(const float* scores, int num_rows, int pitch, const HeadVector& max, float* weights,
                        const Ahead& ahead) {
  const FloatTag d;
  const int padded = PaddedCount(num_rows, pitch);
  const Vector largest = hn::LoadDup128(d, max.lane);
  Vector sum = hn::Zero(d);
  const int64_t step = FetchStep(ahead, padded / kLanes);
  const uint8_t* fetch = ahead.begin;
  for (int i = 0; i < padded; i += kLanes, fetch += step) {
    PrefetchBytes(fetch, step);
    const Vector weight = kExp(hn::Sub(hn::LoadU(d, scores + i), largest));
    if (weights != nullptr) hn::StoreU(weight, d, weights + i);
    sum = hn::Add(sum, weight);
  }
  return Fold(sum, pitch, [](float a, float b) { return a + b; });
}

inline void Masses(float* weights, int num_rows, int pitch, uint64_t* group_masses) {
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::RepartitionToWide<hn::RebindToUnsigned<FloatTag>> du64;
  const hn::Half<hn::RebindToUnsigned<FloatTag>> du_half;
  const Vector one = hn::Set(d, sampling::kMassOne);
  for (int group = 0; group * kRowGroup < num_rows; ++group) {
    float* of_group = weights + group * kRowGroup * pitch;
    auto lower = hn::Zero(du64);
    auto upper = hn::Zero(du64);
    for (int i = 0; i < kRowGroup * pitch; i += kLanes) {
      const auto mass = hn::BitCast(du, hn::NearestInt(hn::Mul(hn::LoadU(d, of_group + i), one)));
      hn::StoreU(hn::BitCast(d, mass), d, of_group + i);
      lower = hn::Add(lower, hn::PromoteTo(du64, hn::LowerHalf(du_half, mass)));
      upper = hn::Add(upper, hn::PromoteTo(du64, hn::UpperHalf(du_half, mass)));
    }
    uint64_t lanes[kLanes];
    hn::StoreU(lower, du64, lanes);
    hn::StoreU(upper, du64, lanes + kLanes / 2);
    for (int width = kLanes / 2; width >= pitch; width /= 2) {
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    for (int h = 0; h < pitch; ++h) group_masses[group * pitch + h] = lanes[h];
  }
}

inline void Scale(float* values, float factor, int count) {
  const FloatTag d;
  for (int i = 0; i < count; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, values + i), hn::Set(d, factor)), d, values + i);
  }
}

inline void AddScaled(float* values, const float* other, float factor, int count) {
  const FloatTag d;
  for (int i = 0; i < count; i += kLanes) {
    hn::StoreU(hn::MulAdd(hn::LoadU(d, other + i), hn::Set(d, factor), hn::LoadU(d, values + i)), d, values + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_SOFTMAX_INL_H_
