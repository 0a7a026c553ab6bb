// Scores from sketches by AVX512-VNNI. Only for the AVX3 target; Highway 1.0.3 has neither the instruction nor a target
// that has it, hence intrinsics.
#if defined(SANTA_KERNELS_CPU_SKETCH_VNNI_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_SKETCH_VNNI_PRODUCTS_INL_H_
#undef SANTA_KERNELS_CPU_SKETCH_VNNI_PRODUCTS_INL_H_
#else
#define SANTA_KERNELS_CPU_SKETCH_VNNI_PRODUCTS_INL_H_
#endif

#if HWY_TARGET == HWY_AVX3
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/sketch_products-inl.h"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
namespace santa::cpu {
namespace HWY_NAMESPACE {

SANTA_DEFINE_UNROLL(UnrollVnni)

// Whole numbers in digits that vpdpbusd multiplies with codes, four features in a word, 64 products an instruction,
// exactly: for 4-bit codes as they are, for 8-bit ones two digits, 128 * high + low.
template <int kBits>
struct DigitQueries;

template <>
struct DigitQueries<4> {
  static constexpr int kDigits = 1;
  const FoldedQueries<4>& queries;

  DigitQueries(const FoldedQueries<4>& queries, int /*heads*/, int /*head_dim*/) : queries(queries) {}
  __m512i word(int /*digit*/, int head, int four) const { return _mm512_set1_epi32(WordOf(queries, head, four)); }
};

template <>
struct DigitQueries<8> {
  static constexpr int kDigits = 2;
  alignas(64) int8_t digits[kDigits][kChunkHeads][kMaxHeadDim];

  DigitQueries(const FoldedQueries<8>& queries, int heads, int head_dim) {
    const hn::CappedTag<int16_t, 8> d16;
    const hn::Rebind<int8_t, decltype(d16)> d8;
    for (int h = 0; h < heads; ++h) {
      for (int i = 0; i < head_dim; i += 8) {
        const auto whole = hn::Load(d16, queries.whole[h] + i);
        const auto high = hn::ShiftRight<7>(hn::Add(whole, hn::Set(d16, 64)));
        hn::StoreU(hn::DemoteTo(d8, high), d8, digits[0][h] + i);
        hn::StoreU(hn::DemoteTo(d8, hn::Sub(whole, hn::ShiftLeft<7>(high))), d8, digits[1][h] + i);
      }
    }
  }
  __m512i word(int digit, int head, int four) const {
    return _mm512_set1_epi32(reinterpret_cast<const int32_t*>(digits[digit][head])[four]);
  }
};

// kGroups groups of 16 tokens from `codes` on, so that a digit is loaded once for all of them.
template <int kBits, int kHeads, int kGroups>
HWY_NOINLINE void ScoreTokenGroups(const SketchScoreArgs& args, const FoldedQueries<kBits>& folded,
                                   const DigitQueries<kBits>& digits, const uint8_t* codes, SpreadFetch& fetch,
                                   float* scores) {
  constexpr int kDigits = DigitQueries<kBits>::kDigits;
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i sums[kDigits][kHeads][kGroups];
  UnrollVnni<kDigits * kHeads * kGroups>([&](auto i)
                                             SANTA_INLINE_BODY { (&sums[0][0][0])[i] = _mm512_setzero_si512(); });
  const auto multiply = [&](int four, const __m512i* of_tokens) SANTA_INLINE_BODY {
    UnrollVnni<kDigits * kHeads>([&](auto i) SANTA_INLINE_BODY {
      const __m512i q = digits.word(i / kHeads, i % kHeads, four);
      UnrollVnni<kGroups>([&](auto g) SANTA_INLINE_BODY {
        __m512i& sum = sums[i / kHeads][i % kHeads][g];
        sum = _mm512_dpbusd_epi32(sum, of_tokens[g], q);
      });
    });
  };
  for (int word = 0; word < args.head_dim * kBits / 32; ++word, codes += args.page_size * int64_t{4}) {
    fetch.Step();
    __m512i bytes[kGroups];
    UnrollVnni<kGroups>([&](auto g) SANTA_INLINE_BODY { bytes[g] = _mm512_loadu_si512(codes + g * 64); });
    if constexpr (kBits == 8) {
      multiply(word, bytes);
    } else {
      __m512i half[kGroups];
      UnrollVnni<kGroups>([&](auto g) SANTA_INLINE_BODY { half[g] = _mm512_and_si512(bytes[g], nibble); });
      multiply(2 * word, half);
      UnrollVnni<kGroups>(
          [&](auto g) SANTA_INLINE_BODY { half[g] = _mm512_and_si512(_mm512_srli_epi16(bytes[g], 4), nibble); });
      multiply(2 * word + 1, half);
    }
  }
  UnrollVnni<kGroups>([&](auto g) SANTA_INLINE_BODY {
    Sums of_heads[kHeads];
    UnrollVnni<kHeads>([&](auto h) SANTA_INLINE_BODY {
      __m512i sum = sums[0][h][g];
      if constexpr (kDigits == 2) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 7), sums[kDigits - 1][h][g]);
      of_heads[h] = Sums{sum};
    });
    StoreSums<kBits, kHeads>(folded, of_heads, scores + g * 16 * Pitch(kHeads));
  });
}

template <int kBits, int kHeads>
HWY_INLINE void ScoreSketchVnniOf(const SketchScoreArgs& args, float* scores) {
  FoldedQueries<kBits> folded;
  Fold<kBits, kHeads>(args, folded);
  const DigitQueries<kBits> digits(folded, kHeads, args.head_dim);
  constexpr int kGroups = kBits == 8 ? 2 : 4;
  const int end = args.first + args.num_rows;
  const int begin = args.first / 16 * 16;
  SpreadFetch fetch(args.ahead, (end - begin + 16 * kGroups - 1) / (16 * kGroups) * (args.head_dim * kBits / 32));
  for (int t = begin; t < end;) {
    const uint8_t* codes = args.codes + t * 4;
    // Whole runs of groups; the page may end within one.
    const int groups = end - t >= 16 * kGroups ? kGroups : 1;
    if (groups == kGroups) {
      ScoreTokenGroups<kBits, kHeads, kGroups>(args, folded, digits, codes, fetch, scores);
    } else {
      ScoreTokenGroups<kBits, kHeads, 1>(args, folded, digits, codes, fetch, scores);
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

#endif  // SANTA_KERNELS_CPU_SKETCH_VNNI_PRODUCTS_INL_H_
