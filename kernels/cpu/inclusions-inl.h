// What the draws of a whole group are made of (kernels/sampling/inclusion.h).
#if defined(SANTA_KERNELS_CPU_INCLUSIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_INCLUSIONS_INL_H_
#undef SANTA_KERNELS_CPU_INCLUSIONS_INL_H_
#else
#define SANTA_KERNELS_CPU_INCLUSIONS_INL_H_
#endif

#include <bit>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_load-inl.h"
#include "kernels/sampling/inclusion.h"

#if HWY_ARCH_X86
#include <immintrin.h>
#endif

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
  // Of a block: below 2^32.
  auto sums = hn::Zero(di);
  int row = 0;
  for (; row + kLanes <= num_rows; row += kLanes) {
    const auto pi = hn::MulAdd(kappa, hn::Sqrt(hn::LoadU(d, squares + row)), floor);
    const auto units = hn::Max(hn::NearestInt(hn::Min(hn::Mul(pi, one), one)), hn::Set(di, 1));
    const auto some = hn::IfThenElseZero(hn::RebindMask(di, hn::Gt(pi, hn::Zero(d))), units);
    hn::StoreU(some, di, reinterpret_cast<int32_t*>(inclusions) + row);
    sums = hn::Add(sums, some);
  }
  auto sum = static_cast<uint64_t>(hn::GetLane(hn::SumOfLanes(di, sums)));
  for (; row < num_rows; ++row) sum += inclusions[row] = sampling::Inclusion(threshold, squares[row]);
  return sum;
}

// Of each lane the sum of the lanes up to and with it.
template <class V>
HWY_INLINE V PrefixSums(V lanes) {
  const hn::DFromV<V> d;
  // Highway shifts within blocks of four lanes. Across them: lanes with the last one of the block before theirs, and of
  // the second before.
  alignas(64) static constexpr int32_t kBlockBefore[16] = {0, 0, 0, 0, 3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11};
  alignas(64) static constexpr int32_t kSecondBefore[16] = {0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 3, 3, 7, 7, 7, 7};
  lanes = hn::Add(lanes, hn::ShiftLeftLanes<1>(d, lanes));
  lanes = hn::Add(lanes, hn::ShiftLeftLanes<2>(d, lanes));
  if constexpr (kLanes > 4) {
    const auto before = hn::TableLookupLanes(lanes, hn::SetTableIndices(d, kBlockBefore));
    lanes = hn::Add(lanes, hn::IfThenZeroElse(hn::FirstN(d, 4), before));
  }
  if constexpr (kLanes > 8) {
    const auto before = hn::TableLookupLanes(lanes, hn::SetTableIndices(d, kSecondBefore));
    lanes = hn::Add(lanes, hn::IfThenZeroElse(hn::FirstN(d, 8), before));
  }
  return lanes;
}

// The lanes of which `mask` is true, in order, written to `out` (which has room for a vector); returns how many.
#if HWY_TARGET == HWY_AVX2
// Highway 1.0.3 copies its table for this to the stack, each time: four times what all else in DrawRows takes.
struct TrueLanes {
  alignas(64) uint32_t of_mask[256];  // numbers of lanes, 4 bits each
};
inline constexpr TrueLanes kTrueLanes = [] {
  TrueLanes lanes = {};
  for (uint32_t mask = 0; mask < 256; ++mask) {
    int count = 0;
    for (uint32_t lane = 0; lane < 8; ++lane) {
      if ((mask >> lane & 1) != 0) lanes.of_mask[mask] |= lane << 4 * count++;
    }
  }
  return lanes;
}();

template <class D, class V, class M>
HWY_INLINE int StoreTrue(D d, V values, M mask, int32_t* out) {
  const auto bits = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(hn::VecFromMask(d, mask).raw)));
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  // The permutation looks at the lowest three bits of each number.
  const __m256i lanes = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int32_t>(kTrueLanes.of_mask[bits])), shifts);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(values.raw, lanes));
  return std::popcount(bits);
}
#else
template <class D, class V, class M>
HWY_INLINE int StoreTrue(D d, V values, M mask, int32_t* out) {
  hn::StoreU(hn::Compress(values, mask), d, out);
  return static_cast<int>(hn::CountTrue(d, mask));
}
#endif

// sampling::IsIncluded, without a branch: which rows are drawn is random, and no guess is good.
inline int DrawRows(const uint32_t* inclusions, int num_rows, int32_t first, uint32_t* past, int32_t* rows) {
  const hn::RebindToUnsigned<FloatTag> d;
  const hn::RebindToSigned<FloatTag> di;
  // A block's inclusions, 2^20 each at most, add up to less than 2^32.
  static_assert(uint64_t{kBlockRows + 1} << sampling::kInclusionBits <= uint64_t{1} << 32);
  int count = 0;
  int row = 0;
  const auto last = hn::IndicesFromVec(d, hn::Set(di, kLanes - 1));
  auto line = hn::Set(d, *past);
  for (; row + kLanes <= num_rows; row += kLanes) {
    const auto inclusion = hn::LoadU(d, inclusions + row);
    const auto after = hn::Add(line, PrefixSums(inclusion));
    const auto before = hn::Sub(after, inclusion);
    const auto drawn = hn::RebindMask(
        di, hn::Ne(hn::ShiftRight<sampling::kInclusionBits>(after), hn::ShiftRight<sampling::kInclusionBits>(before)));
    count += StoreTrue(di, hn::Iota(di, first + row), drawn, rows + count);
    line = hn::TableLookupLanes(after, last);
  }
  uint32_t at = hn::GetLane(line) & (sampling::kCertain - 1);
  for (; row < num_rows; ++row) {
    at += inclusions[row];
    rows[count] = first + row;
    count += static_cast<int>(at >> sampling::kInclusionBits);
    at &= sampling::kCertain - 1;
  }
  *past = at;
  return count;
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_INCLUSIONS_INL_H_
