// Scores from sketches (layout: kernels/cpu/sketches.h), and what the draws of a whole group are made of.
#if defined(SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_
#undef SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_
#else
#define SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/fetch-inl.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_load-inl.h"
#include "kernels/sampling/inclusion.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

inline constexpr int kMaxHeadDim = 256;

// dot(q, k) ~ offset + sum_d folded[d] code[d]: the step of each column goes into the query.
struct FoldedQueries {
  alignas(64) float folded[kChunkHeads][kMaxHeadDim];
  float offset[kChunkHeads];
};

// A column's numbers in half precision as floats, [head_dim] rounded up to kPair.
HWY_INLINE void FloatsOf(const uint16_t* halves, int head_dim, float* floats) {
  const FloatTag df;
  for (int d = 0; d < head_dim; d += kPair) {
    // The rows' loads read whole pairs of vectors; head_dim is a multiple of 8 only.
    const int count = std::min(kPair, head_dim - d);
    Vector a, b;
    if (count == kPair) {
      Fp16Row::Load(reinterpret_cast<const uint8_t*>(halves + d), a, b);
    } else {
      Fp16Row::LoadTail(reinterpret_cast<const uint8_t*>(halves + d), count, a, b);
    }
    hn::StoreU(a, df, floats + d);
    hn::StoreU(b, df, floats + d + kLanes);
  }
}

HWY_INLINE void Fold(const SketchScoreArgs& args, FoldedQueries& out) {
  alignas(64) float low[kMaxHeadDim];
  alignas(64) float step[kMaxHeadDim];
  FloatsOf(args.low, args.head_dim, low);
  FloatsOf(args.step, args.head_dim, step);
  const hn::CappedTag<float, 8> d8;
  for (int h = 0; h < args.heads; ++h) {
    const float* query = args.queries + h * args.head_dim;
    auto sum = hn::Zero(d8);
    for (int d = 0; d < args.head_dim; d += static_cast<int>(hn::Lanes(d8))) {
      const auto q = hn::LoadU(d8, query + d);
      hn::StoreU(hn::Mul(q, hn::Load(d8, step + d)), d8, out.folded[h] + d);
      sum = hn::MulAdd(q, hn::Load(d8, low + d), sum);
    }
    out.offset[h] = hn::GetLane(hn::SumOfLanes(d8, sum));
  }
}

template <int kBits, int kHeads>
HWY_INLINE void ScoreSketchOf(const SketchScoreArgs& args, float* scores) {
  constexpr int kFeatures = 32 / kBits;  // in a word
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::RebindToSigned<FloatTag> di;
  FoldedQueries queries;
  Fold(args, queries);
  const auto mask = hn::Set(du, (1u << kBits) - 1);
  const int64_t step = FetchStep(args.ahead, (args.num_rows + kLanes - 1) / kLanes);
  const uint8_t* fetch = args.ahead.begin;
  for (int t = args.first / kRowGroup * kRowGroup; t < args.first + args.num_rows; t += kLanes) {
    PrefetchBytes(fetch, step);
    fetch += step;
    Vector sums[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) sums[h] = hn::Set(d, queries.offset[h]);
    for (int word = 0; word < args.head_dim / kFeatures; ++word) {
      const auto codes = hn::LoadU(
          du, reinterpret_cast<const uint32_t*>(args.codes) + static_cast<int64_t>(word) * args.page_size + t);
#pragma GCC unroll 8
      for (int f = 0; f < kFeatures; ++f) {
        const int shift = 8 * (f % 4) + (f >= 4 ? 4 : 0);
        const Vector code = hn::ConvertTo(d, hn::BitCast(di, hn::And(hn::ShiftRightSame(codes, shift), mask)));
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          sums[h] = hn::MulAdd(code, hn::Set(d, queries.folded[h][word * kFeatures + f]), sums[h]);
        }
      }
    }
    StoreTokens<kHeads>(sums, scores);
    scores += kLanes * Pitch(kHeads);
  }
}

template <int kBits>
HWY_INLINE void ScoreSketchBits(const SketchScoreArgs& args, float* scores) {
  switch (args.heads) {
    case 1:
      return ScoreSketchOf<kBits, 1>(args, scores);
    case 2:
      return ScoreSketchOf<kBits, 2>(args, scores);
    case 3:
      return ScoreSketchOf<kBits, 3>(args, scores);
    default:
      return ScoreSketchOf<kBits, 4>(args, scores);
  }
}

// `score` writes from the group of kRowGroup tokens on in which the first one lies.
template <typename Score>
HWY_INLINE void ScoreSketchWith(const SketchScoreArgs& args, Score score) {
  if (args.first % kRowGroup == 0) return score(args.scores);
  alignas(64) float whole[(kMaxPageSize + kRowGroup) * kChunkHeads];
  score(whole);
  const int pitch = Pitch(args.heads);
  std::copy_n(whole + args.first % kRowGroup * pitch, args.num_rows * pitch, args.scores);
}

inline void ScoreSketch(const SketchScoreArgs& args) {
  ScoreSketchWith(args, [&args](float* scores) HWY_ATTR {
    if (args.bits == 4) {
      ScoreSketchBits<4>(args, scores);
    } else {
      ScoreSketchBits<8>(args, scores);
    }
  });
}

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

#if HWY_TARGET == HWY_AVX3
#include <immintrin.h>
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
namespace santa::cpu {
namespace HWY_NAMESPACE {

// Queries as whole numbers in digits that vpdpbusd multiplies with codes, four features in a word, 64 products an
// instruction, exactly. For 8-bit codes two digits, 128 * high + low, in [-127, 127] and [-64, 64], times scale; 4-bit
// codes err more than one digit does: 127 steps of a query's largest number.
template <int kBits>
struct DigitQueries {
  static constexpr int kDigits = kBits == 8 ? 2 : 1;
  alignas(64) int32_t words[kDigits][kChunkHeads][kMaxHeadDim / 4];
  float scale[kChunkHeads];
};

template <int kBits, int kHeads>
HWY_INLINE void ToDigits(const FoldedQueries& queries, int head_dim, DigitQueries<kBits>& out) {
  constexpr bool kTwo = DigitQueries<kBits>::kDigits == 2;
  constexpr float kMost = kTwo ? 127.0f * 128.0f : 127.0f;
  for (int h = 0; h < kHeads; ++h) {
    __m512 largest = _mm512_setzero_ps();
    for (int d = 0; d < head_dim; d += 16) {
      const auto mask = static_cast<__mmask16>(head_dim - d >= 16 ? 0xFFFF : (1 << (head_dim - d)) - 1);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, queries.folded[h] + d)));
    }
    const float most = _mm512_reduce_max_ps(largest);
    out.scale[h] = most / kMost;
    const __m512 inverse = _mm512_set1_ps(most > 0 ? kMost / most : 0);
    for (int d = 0; d < head_dim; d += 16) {
      const auto mask = static_cast<__mmask16>(head_dim - d >= 16 ? 0xFFFF : (1 << (head_dim - d)) - 1);
      const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, queries.folded[h] + d), inverse));
      const __m512i high = kTwo ? _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7) : q;
      _mm_store_si128(reinterpret_cast<__m128i*>(out.words[0][h] + d / 4), _mm512_cvtepi32_epi8(high));
      if constexpr (kTwo) {
        const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 7));
        _mm_store_si128(reinterpret_cast<__m128i*>(out.words[1][h] + d / 4), _mm512_cvtepi32_epi8(low));
      }
    }
  }
}

// kGroups groups of 16 tokens from `codes` on, so that a digit is loaded once for all of them.
template <int kBits, int kHeads, int kGroups>
HWY_INLINE void ScoreTokenGroups(const SketchScoreArgs& args, const FoldedQueries& folded,
                                 const DigitQueries<kBits>& digits, const uint8_t* codes, float* scores) {
  constexpr int kDigits = DigitQueries<kBits>::kDigits;
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i sums[kDigits][kGroups][kHeads];
#pragma GCC unroll 2
  for (int digit = 0; digit < kDigits; ++digit) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) sums[digit][g][h] = _mm512_setzero_si512();
    }
  }
  const auto multiply = [&](int four, const __m512i* of_tokens) HWY_ATTR {
#pragma GCC unroll 2
    for (int digit = 0; digit < kDigits; ++digit) {
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const __m512i q = _mm512_set1_epi32(digits.words[digit][h][four]);
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) {
          sums[digit][g][h] = _mm512_dpbusd_epi32(sums[digit][g][h], of_tokens[g], q);
        }
      }
    }
  };
  for (int word = 0; word < args.head_dim * kBits / 32; ++word, codes += args.page_size * int64_t{4}) {
    __m512i bytes[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) bytes[g] = _mm512_loadu_si512(codes + g * 64);
    if constexpr (kBits == 8) {
      multiply(word, bytes);
    } else {
      __m512i half[kGroups];
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) half[g] = _mm512_and_si512(bytes[g], nibble);
      multiply(2 * word, half);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) half[g] = _mm512_and_si512(_mm512_srli_epi16(bytes[g], 4), nibble);
      multiply(2 * word + 1, half);
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    Vector of_heads[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      __m512i sum = sums[0][g][h];
      if constexpr (kDigits == 2) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 7), sums[kDigits - 1][g][h]);
      of_heads[h] = Vector{
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(digits.scale[h]), _mm512_set1_ps(folded.offset[h]))};
    }
    StoreTokens<kHeads>(of_heads, scores + g * 16 * Pitch(kHeads));
  }
}

template <int kBits, int kHeads>
HWY_INLINE void ScoreSketchVnniOf(const SketchScoreArgs& args, float* scores) {
  FoldedQueries folded;
  DigitQueries<kBits> digits;
  Fold(args, folded);
  ToDigits<kBits, kHeads>(folded, args.head_dim, digits);
  constexpr int kGroups = kBits == 8 ? 2 : 4;
  const int64_t step = FetchStep(args.ahead, (args.num_rows + 15) / 16);
  const uint8_t* fetch = args.ahead.begin;
  const int end = args.first + args.num_rows;
  for (int t = args.first / 16 * 16; t < end;) {
    const uint8_t* codes = args.codes + t * 4;
    // Whole runs of groups; the page may end within one.
    const int groups = end - t >= 16 * kGroups ? kGroups : 1;
    PrefetchBytes(fetch, step * groups);
    fetch += step * groups;
    if (groups == kGroups) {
      ScoreTokenGroups<kBits, kHeads, kGroups>(args, folded, digits, codes, scores);
    } else {
      ScoreTokenGroups<kBits, kHeads, 1>(args, folded, digits, codes, scores);
    }
    t += 16 * groups;
    scores += 16 * groups * Pitch(kHeads);
  }
}

template <int kBits>
HWY_INLINE void ScoreSketchVnniBits(const SketchScoreArgs& args, float* scores) {
  switch (args.heads) {
    case 1:
      return ScoreSketchVnniOf<kBits, 1>(args, scores);
    case 2:
      return ScoreSketchVnniOf<kBits, 2>(args, scores);
    case 3:
      return ScoreSketchVnniOf<kBits, 3>(args, scores);
    default:
      return ScoreSketchVnniOf<kBits, 4>(args, scores);
  }
}

inline void ScoreSketchVnni(const SketchScoreArgs& args) {
  ScoreSketchWith(args, [&args](float* scores) HWY_ATTR {
    if (args.bits == 4) {
      ScoreSketchVnniBits<4>(args, scores);
    } else {
      ScoreSketchVnniBits<8>(args, scores);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_POP_ATTRIBUTES
#endif  // HWY_TARGET == HWY_AVX3

#endif  // SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_
