// Scores from sketches (layout: kernels/cpu/sketches.h), in whole numbers.
#if defined(SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_
#undef SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_
#else
#define SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "hwy/highway.h"
#include "kernels/cpu/fetch-inl.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_load-inl.h"

#if HWY_ARCH_X86
#include <immintrin.h>
#endif

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

inline constexpr int kMaxHeadDim = 256;

// name<kCount>(body): body(i) for each i in [0, kCount), a constant in each: so an array of sums stays in registers,
// where loops unrolled by a pragma leave it in memory. Inlined only where it was defined for the same instructions,
// hence a macro.
#define SANTA_INLINE_BODY HWY_ATTR __attribute__((always_inline))
#define SANTA_DEFINE_UNROLL(name)                                           \
  template <int kCount, typename Body>                                      \
  HWY_INLINE void name(Body body) {                                         \
    [&body]<int... i>(std::integer_sequence<int, i...>) SANTA_INLINE_BODY { \
      (body(std::integral_constant<int, i>()), ...);                        \
    }                                                                       \
    (std::make_integer_sequence<int, kCount>());                            \
  }
SANTA_DEFINE_UNROLL(Unroll)

using Words = hn::Vec<hn::RebindToUnsigned<FloatTag>>;                           // of 32 bits
using Halves = hn::Vec<hn::Repartition<int16_t, hn::RebindToSigned<FloatTag>>>;  // signed, of 16 bits
using Sums = hn::Vec<hn::RebindToSigned<FloatTag>>;

// dot(q, k) ~ offset + scale * sum_d whole[d] code[d]: the step of each column goes into the query, and that is rounded
// to whole numbers, kMostWhole for its largest. What rounding takes from a feature counts with the middle of the codes,
// in the offset: so it errs by half of `scale` at most, times a code's distance from the middle. Beside the codes' own
// error, up to half a step of every feature, that is little whatever the query: with 4 bits, and even if one feature
// has all the weight, D / 768 of its variance (a sixth at D = 128), a hundredth if all have much alike; with 8 bits
// nothing.
template <int kBits>
inline constexpr int kMostWhole = kBits == 4 ? 127 : 127 * 128;

template <int kBits>
struct FoldedQueries {
  using Whole = std::conditional_t<kBits == 4, int8_t, int16_t>;
  alignas(64) Whole whole[kChunkHeads][kMaxHeadDim];
  float scale[kChunkHeads];
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

// Whole numbers from the low bits of words.
template <class V>
HWY_INLINE void StoreWhole(V words, int8_t* whole) {
#if HWY_TARGET == HWY_AVX3
  _mm_storeu_si128(reinterpret_cast<__m128i*>(whole), _mm512_cvtepi32_epi8(words.raw));
#else
  const hn::RebindToUnsigned<hn::DFromV<V>> du;
  const hn::Rebind<uint8_t, decltype(du)> du8;
  hn::StoreU(hn::U8FromU32(hn::And(hn::BitCast(du, words), hn::Set(du, 0xFF))), du8, reinterpret_cast<uint8_t*>(whole));
#endif
}
template <class V>
HWY_INLINE void StoreWhole(V words, int16_t* whole) {
  const hn::Rebind<int16_t, hn::DFromV<V>> d16;
  hn::StoreU(hn::DemoteTo(d16, hn::ShiftRight<16>(hn::ShiftLeft<16>(words))), d16, whole);
}

// `join` of the lanes of each of four vectors.
template <typename Join>
HWY_INLINE HeadVector JoinLanes(const Vector* vectors, Join join) {
  const FloatTag d;
  const hn::RepartitionToWide<hn::RebindToUnsigned<FloatTag>> du64;
  const auto pairs = [d, du64, join](Vector a, Vector b) HWY_ATTR {
    return hn::BitCast(du64, join(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  };
  const auto first = pairs(vectors[0], vectors[1]);
  const auto second = pairs(vectors[2], vectors[3]);
  // Of each block of four lanes, a lane for each vector.
  const Vector blocks = join(hn::BitCast(d, hn::InterleaveLower(du64, first, second)),
                             hn::BitCast(d, hn::InterleaveUpper(du64, first, second)));
  const hn::CappedTag<float, 4> d4;
  alignas(64) float lanes[kLanes];
  hn::Store(blocks, d, lanes);
  auto all = hn::Load(d4, lanes);
  for (int block = 1; block < kLanes / 4; ++block) all = join(all, hn::Load(d4, lanes + 4 * block));
  HeadVector joined;
  hn::StoreU(all, d4, joined.lane);
  return joined;
}

// Numbers [i, i + kLanes) of `count`, a multiple of 8; 0 beyond: there lies another head's, or nobody's.
HWY_INLINE Vector LoadSome(const float* numbers, int i, int count) {
  const FloatTag d;
  if constexpr (kLanes <= 8) return hn::LoadU(d, numbers + i);
  return i + kLanes <= count ? hn::LoadU(d, numbers + i) : hn::MaskedLoad(hn::FirstN(d, count - i), d, numbers + i);
}

inline constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is left in the low bits, rounded

// Whole numbers of 32 features at a time, as many as there are, and their sums; returns how many features it did.
template <int kHeads>
HWY_INLINE int FoldFours(const SketchScoreArgs& args, const float* step, const Vector* inverses, FoldedQueries<4>& out,
                         Vector* sums) {
#if HWY_TARGET == HWY_AVX2
  const FloatTag d;
  const __m256i round = _mm256_castps_si256(_mm256_set1_ps(kRound));
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i pairs[kHeads];
  Unroll<kHeads>([&](auto h) SANTA_INLINE_BODY { pairs[h] = _mm256_setzero_si256(); });
  int i = 0;
  for (; i + 32 <= args.head_dim; i += 32) {
    Unroll<kHeads>([&](auto h) SANTA_INLINE_BODY {
      __m256i words[4];
      Unroll<4>([&](auto v) SANTA_INLINE_BODY {
        const Vector q = hn::LoadU(d, args.queries + h * args.head_dim + i + v * 8);
        const Vector rounded = hn::MulAdd(hn::Mul(q, hn::Load(d, step + i + v * 8)), inverses[h], hn::Set(d, kRound));
        words[v] = _mm256_sub_epi32(_mm256_castps_si256(rounded.raw), round);
      });
      const __m256i bytes = _mm256_permutevar8x32_epi32(
          _mm256_packs_epi16(_mm256_packs_epi32(words[0], words[1]), _mm256_packs_epi32(words[2], words[3])), in_order);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out.whole[h] + i), bytes);
      pairs[h] = _mm256_add_epi16(pairs[h], _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes));
    });
  }
  Unroll<kHeads>([&](auto h) SANTA_INLINE_BODY {
    sums[h] = Vector{_mm256_cvtepi32_ps(_mm256_madd_epi16(pairs[h], _mm256_set1_epi16(1)))};
  });
  return i;
#else
  (void)args, (void)step, (void)inverses, (void)out;
  Unroll<kHeads>([&](auto h) SANTA_INLINE_BODY { sums[h] = hn::Zero(FloatTag()); });
  return 0;
#endif
}

template <int kBits, int kHeads>
HWY_INLINE void Fold(const SketchScoreArgs& args, FoldedQueries<kBits>& out) {
  const FloatTag d;
  constexpr float kMiddle = ((1 << kBits) - 1) / 2.0f;
  constexpr float kLeast = 0x1p-100f;  // less is as good as nothing, and has no reciprocal
  alignas(64) float low[kMaxHeadDim];
  alignas(64) float step[kMaxHeadDim];
  FloatsOf(args.low, args.head_dim, low);
  FloatsOf(args.step, args.head_dim, step);
  // All heads side by side: a sum waits for its last term, other heads' do not.
  Vector offsets[kChunkHeads];
  Vector largest[kChunkHeads];
  Unroll<kChunkHeads>([&](auto h) SANTA_INLINE_BODY { offsets[h] = largest[h] = hn::Zero(d); });
  for (int i = 0; i < args.head_dim; i += kLanes) {
    const Vector steps = hn::Load(d, step + i);
    const Vector middles = hn::MulAdd(steps, hn::Set(d, kMiddle), hn::Load(d, low + i));
    Unroll<kHeads>([&](auto h) SANTA_INLINE_BODY {
      const Vector q = LoadSome(args.queries + h * args.head_dim, i, args.head_dim);
      largest[h] = hn::Max(largest[h], hn::Abs(hn::Mul(q, steps)));
      // What is not a number, and lost to the whole numbers, stays here.
      offsets[h] = hn::MulAdd(q, middles, offsets[h]);
    });
  }
  const HeadVector most = JoinLanes(largest, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); });
  Vector inverses[kHeads];
  Vector sums[kHeads];
  Unroll<kHeads>([&](auto h) SANTA_INLINE_BODY {
    out.scale[h] = most.lane[h] / kMostWhole<kBits>;
    inverses[h] = hn::Set(d, most.lane[h] > kLeast ? kMostWhole<kBits> / most.lane[h] : 0);
    sums[h] = hn::Zero(d);
  });
  int begin = 0;
  if constexpr (kBits == 4) begin = FoldFours<kHeads>(args, step, inverses, out, sums);
  for (int i = begin; i < args.head_dim; i += kLanes) {
    const Vector steps = hn::Load(d, step + i);
    Unroll<kHeads>([&](auto h) SANTA_INLINE_BODY {
      const Vector q = LoadSome(args.queries + h * args.head_dim, i, args.head_dim);
      const Vector rounded = hn::MulAdd(hn::Mul(q, steps), inverses[h], hn::Set(d, kRound));
      StoreWhole(hn::BitCast(hn::RebindToSigned<FloatTag>(), rounded), out.whole[h] + i);
      sums[h] = hn::Add(sums[h], hn::Sub(rounded, hn::Set(d, kRound)));
    });
  }
  Unroll<kHeads>([&](auto h) SANTA_INLINE_BODY {
    offsets[h] = hn::NegMulAdd(sums[h], hn::Set(d, out.scale[h] * kMiddle), offsets[h]);
  });
  const HeadVector offset = JoinLanes(offsets, [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); });
  std::copy_n(offset.lane, kHeads, out.offset);
}

// Whole numbers as the products of codes take them, a word for features of one token. 4 bits: bytes, four features a
// word, in order.
HWY_INLINE int32_t WordOf(const FoldedQueries<4>& queries, int head, int word) {
  return reinterpret_cast<const int32_t*>(queries.whole[head])[word];
}

// 8 bits: 16 bits each, of four features the first and third, then the second and fourth.
struct PairedQueries {
  alignas(64) int32_t words[kChunkHeads][kMaxHeadDim / 2];
};

template <int kHeads>
HWY_INLINE void Pair(const FoldedQueries<8>& queries, int head_dim, PairedQueries& out) {
  const hn::CappedTag<uint32_t, 4> d;
  const auto high = hn::Set(d, 0xFFFF0000u);
  for (int h = 0; h < kHeads; ++h) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(queries.whole[h]);
    for (int i = 0; i < head_dim / 2; i += static_cast<int>(hn::Lanes(d))) {
      const auto pair = hn::Load(d, pairs + i);
      const auto other = hn::Shuffle2301(pair);  // of each four features
      const auto first = hn::Or(hn::AndNot(high, pair), hn::ShiftLeft<16>(other));
      const auto second = hn::Or(hn::ShiftRight<16>(other), hn::And(high, pair));
      hn::Store(hn::OddEven(second, first), d, reinterpret_cast<uint32_t*>(out.words[h]) + i);
    }
  }
}

// Of each word the sum of the products of its two halves.
HWY_INLINE Sums SumProducts(Halves a, Halves b) {
#if HWY_ARCH_X86 && HWY_MAX_BYTES == 64
  return Sums{_mm512_madd_epi16(a.raw, b.raw)};
#elif HWY_ARCH_X86 && HWY_MAX_BYTES == 32
  return Sums{_mm256_madd_epi16(a.raw, b.raw)};
#elif HWY_ARCH_X86
  return Sums{_mm_madd_epi16(a.raw, b.raw)};
#else
  const hn::RebindToSigned<FloatTag> d;
  const auto low = [d](Halves x) HWY_ATTR { return hn::ShiftRight<16>(hn::ShiftLeft<16>(hn::BitCast(d, x))); };
  const auto high = [d](Halves x) HWY_ATTR { return hn::ShiftRight<16>(hn::BitCast(d, x)); };
  return hn::Add(hn::Mul(low(a), low(b)), hn::Mul(high(a), high(b)));
#endif
}

// Of each half of a word the sum of the products of its two bytes, codes times signed numbers; it must fit.
HWY_INLINE Halves SumByteProducts(Words codes, Words numbers) {
#if HWY_ARCH_X86 && HWY_MAX_BYTES == 64
  return Halves{_mm512_maddubs_epi16(codes.raw, numbers.raw)};
#elif HWY_ARCH_X86 && HWY_MAX_BYTES == 32
  return Halves{_mm256_maddubs_epi16(codes.raw, numbers.raw)};
#elif HWY_ARCH_X86
  return Halves{_mm_maddubs_epi16(codes.raw, numbers.raw)};
#else
  const hn::Repartition<int16_t, FloatTag> d;
  const auto low = [d](Words x) HWY_ATTR { return hn::ShiftRight<8>(hn::ShiftLeft<8>(hn::BitCast(d, x))); };
  const auto high = [d](Words x) HWY_ATTR { return hn::ShiftRight<8>(hn::BitCast(d, x)); };
  return hn::Add(hn::Mul(low(codes), low(numbers)), hn::Mul(high(codes), high(numbers)));
#endif
}

// Tokens of kVectors vectors of words from `codes` on, so that a query's word is loaded once for all of them.
template <int kHeads, int kVectors>
using TokenSums = Sums[kVectors][kHeads];

template <int kHeads, int kVectors>
HWY_INLINE void SumCodes(const SketchScoreArgs& args, const FoldedQueries<4>& queries, const uint8_t* codes,
                         SpreadFetch& fetch, TokenSums<kHeads, kVectors>& sums) {
  // Sums of 16 bits have room for so many products of 2 * 15 * 127 at most.
  constexpr int kMostProducts = 8;
  static_assert(kMostProducts * 2 * 15 * kMostWhole<4> < 32768);
  const hn::RebindToUnsigned<FloatTag> d;
  const hn::Repartition<int16_t, decltype(d)> d16;
  const auto nibble = hn::BitCast(d, hn::Set(hn::Repartition<uint8_t, decltype(d)>(), 15));
  const Halves ones = hn::Set(d16, 1);
  const int words = args.head_dim / 8;
  for (int first = 0; first < words; first += kMostProducts / 2) {
    const int end = std::min(words, first + kMostProducts / 2);
    Halves halves[kVectors * kHeads];
#pragma GCC unroll 16
    for (int i = 0; i < kVectors * kHeads; ++i) halves[i] = hn::Zero(d16);
    for (int word = first; word < end; ++word) {
      fetch.Step();
      const auto* at = reinterpret_cast<const uint32_t*>(codes) + static_cast<int64_t>(word) * args.page_size;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        Words of_tokens[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const Words both = hn::LoadU(d, at + v * kLanes);
          of_tokens[v] = hn::And(half == 0 ? both : hn::ShiftRight<4>(both), nibble);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kVectors * kHeads; ++i) {
          const auto numbers =
              hn::Set(hn::RebindToSigned<decltype(d)>(), WordOf(queries, i / kVectors, 2 * word + half));
          halves[i] = hn::Add(halves[i], SumByteProducts(of_tokens[i % kVectors], hn::BitCast(d, numbers)));
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kVectors * kHeads; ++i) {
      Sums& sum = sums[i % kVectors][i / kVectors];
      sum = hn::Add(sum, SumProducts(halves[i], ones));
    }
  }
}

template <int kHeads, int kVectors>
HWY_INLINE void SumCodes(const SketchScoreArgs& args, const PairedQueries& queries, const uint8_t* codes,
                         SpreadFetch& fetch, TokenSums<kHeads, kVectors>& sums) {
  static_assert(int64_t{kMaxHeadDim} * 255 * kMostWhole<8> < (int64_t{1} << 31));
  const hn::RebindToUnsigned<FloatTag> d;
  const hn::Repartition<int16_t, decltype(d)> d16;
  for (int word = 0; word < args.head_dim / 4; ++word) {
    fetch.Step();
    const auto* at = reinterpret_cast<const uint32_t*>(codes) + static_cast<int64_t>(word) * args.page_size;
    Halves of_tokens[2][kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Words bytes = hn::LoadU(d, at + v * kLanes);
      of_tokens[0][v] = hn::BitCast(d16, hn::And(bytes, hn::Set(d, 0x00FF00FFu)));
      of_tokens[1][v] = hn::BitCast(d16, hn::ShiftRight<8>(hn::BitCast(hn::RebindToUnsigned<decltype(d16)>(), bytes)));
    }
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const auto numbers =
            hn::BitCast(d16, hn::Set(hn::RebindToSigned<decltype(d)>(), queries.words[h][2 * word + pair]));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums[v][h] = hn::Add(sums[v][h], SumProducts(of_tokens[pair][v], numbers));
        }
      }
    }
  }
}

template <int kBits, int kHeads>
HWY_INLINE void StoreSums(const FoldedQueries<kBits>& queries, const Sums* sums, float* scores) {
  const FloatTag d;
  Vector of_heads[kHeads];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    of_heads[h] = hn::MulAdd(hn::ConvertTo(d, sums[h]), hn::Set(d, queries.scale[h]), hn::Set(d, queries.offset[h]));
  }
  StoreTokens<kHeads>(of_heads, scores);
}

template <int kBits, int kHeads, int kVectors, typename Queries>
HWY_INLINE void ScoreTokens(const SketchScoreArgs& args, const FoldedQueries<kBits>& folded, const Queries& queries,
                            const uint8_t* codes, SpreadFetch& fetch, float* scores) {
  const hn::RebindToSigned<FloatTag> di;
  TokenSums<kHeads, kVectors> sums;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) sums[v][h] = hn::Zero(di);
  }
  SumCodes<kHeads, kVectors>(args, queries, codes, fetch, sums);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) StoreSums<kBits, kHeads>(folded, sums[v], scores + v * kLanes * Pitch(kHeads));
}

// `queries`: as SumCodes takes them.
template <int kBits, int kHeads, typename Queries>
HWY_INLINE void ScoreFolded(const SketchScoreArgs& args, const FoldedQueries<kBits>& folded, const Queries& queries,
                            float* scores) {
  // Half of the registers hold sums, of four heads.
  constexpr int kVectors = HWY_MAX_BYTES == 64 ? 4 : 2;
  const int end = args.first + args.num_rows;
  const int begin = args.first / kRowGroup * kRowGroup;
  constexpr int kRun = kLanes * kVectors;
  SpreadFetch fetch(args.ahead, (end - begin + kRun - 1) / kRun * (args.head_dim * kBits / 32));
  for (int t = begin; t < end;) {
    const uint8_t* codes = args.codes + t * 4;
    // Whole runs of vectors; the page may end within one.
    const int vectors = end - t >= kRun ? kVectors : 1;
    if (vectors == kVectors) {
      ScoreTokens<kBits, kHeads, kVectors>(args, folded, queries, codes, fetch, scores);
    } else {
      ScoreTokens<kBits, kHeads, 1>(args, folded, queries, codes, fetch, scores);
    }
    t += kLanes * vectors;
    scores += kLanes * vectors * Pitch(kHeads);
  }
}

template <int kBits, int kHeads>
HWY_INLINE void ScoreSketchOf(const SketchScoreArgs& args, float* scores) {
  FoldedQueries<kBits> folded;
  Fold<kBits, kHeads>(args, folded);
  if constexpr (kBits == 4) {
    ScoreFolded<kBits, kHeads>(args, folded, folded, scores);
  } else {
    PairedQueries paired;
    Pair<kHeads>(folded, args.head_dim, paired);
    ScoreFolded<kBits, kHeads>(args, folded, paired, scores);
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

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_SKETCH_PRODUCTS_INL_H_
