// What the draws of a whole group are made of (kernels/sampling/inclusion.h).
#if defined(SANTA_KERNELS_CPU_INCLUSIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_INCLUSIONS_INL_H_
#undef SANTA_KERNELS_CPU_INCLUSIONS_INL_H_
#else
#define SANTA_KERNELS_CPU_INCLUSIONS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_load-inl.h"
#include "kernels/sampling/inclusion.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

template <int kPitch>
HWY_INLINE void AddSquaresOf(const float* weights, int num_rows, const HeadVector& factors, float* squares) {
  const FloatTag d;
  for (int row = 0; row < num_rows; row += kLanes) {
    Vector heads[4];
    if constexpr (kPitch == 4) {
      hn::LoadInterleaved4(d, weights + row * kPitch, heads[0], heads[1], heads[2], heads[3]);
    } else if constexpr (kPitch == 2) {
      hn::LoadInterleaved2(d, weights + row * kPitch, heads[0], heads[1]);
    } else {
      heads[0] = hn::LoadU(d, weights + row);
    }
    Vector sum = hn::LoadU(d, squares + row);
#pragma GCC unroll 4
    for (int h = 0; h < kPitch; ++h) {
      // A head without a say may be no number at all.
      if (factors.lane[h] == 0) continue;
      const Vector p = hn::Mul(heads[h], hn::Set(d, factors.lane[h]));
      sum = hn::MulAdd(p, p, sum);
    }
    hn::StoreU(sum, d, squares + row);
  }
}

inline void AddSquares(const float* weights, int num_rows, int pitch, const HeadVector& factors, float* squares) {
  if (pitch == 4) return AddSquaresOf<4>(weights, num_rows, factors, squares);
  if (pitch == 2) return AddSquaresOf<2>(weights, num_rows, factors, squares);
  AddSquaresOf<1>(weights, num_rows, factors, squares);
}

// sampling::InclusionBin.
inline void CountBins(const float* squares, int num_rows, bool zeros, uint32_t* histogram) {
  const hn::RebindToSigned<FloatTag> d;
  int32_t bins[kBlockRows];
  int row = 0;
  for (; row + kLanes <= num_rows; row += kLanes) {
    const auto bits = hn::LoadU(d, reinterpret_cast<const int32_t*>(squares) + row);
    const auto bin = hn::Sub(hn::ShiftRight<19>(bits), hn::Set(d, static_cast<int32_t>(sampling::kFirstBin)));
    hn::StoreU(hn::Min(hn::Max(bin, hn::Zero(d)), hn::Set(d, sampling::kInclusionBins - 1)), d, bins + row);
  }
  for (; row < num_rows; ++row) bins[row] = sampling::InclusionBin(squares[row]);
  if (zeros) {
    for (row = 0; row < num_rows; ++row) ++histogram[bins[row]];
  } else {
    for (row = 0; row < num_rows; ++row) histogram[bins[row]] += static_cast<uint32_t>(squares[row] > 0);
  }
}

// sampling::Inclusion.
inline uint64_t Inclusions(const sampling::InclusionThreshold& threshold, const float* squares, int num_rows,
                           uint32_t* inclusions) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const auto kappa = hn::Set(d, threshold.kappa);
  const auto floor = hn::Set(d, threshold.floor);
  const auto one = hn::Set(d, static_cast<float>(sampling::kCertain));
  uint64_t sum = 0;
  int row = 0;
  for (; row + kLanes <= num_rows; row += kLanes) {
    const auto pi = hn::MulAdd(kappa, hn::Sqrt(hn::LoadU(d, squares + row)), floor);
    const auto units = hn::Max(hn::NearestInt(hn::Min(hn::Mul(pi, one), one)), hn::Set(di, 1));
    const auto some = hn::IfThenElseZero(hn::RebindMask(di, hn::Gt(pi, hn::Zero(d))), units);
    hn::StoreU(some, di, reinterpret_cast<int32_t*>(inclusions) + row);
    // At most 16 lanes of 2^20.
    sum += static_cast<uint64_t>(hn::GetLane(hn::SumOfLanes(di, some)));
  }
  for (; row < num_rows; ++row) sum += inclusions[row] = sampling::Inclusion(threshold, squares[row]);
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_INCLUSIONS_INL_H_
