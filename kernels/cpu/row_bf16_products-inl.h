// Dot products of rows of bf16 with queries that bf16 holds too, by AVX512-BF16: vdpbf16ps multiplies two pairs of bf16
// a lane and adds them to a fp32 sum. Half the multiplications of the general loop, and no widening. Only for the
// AVX3 target; Highway 1.0.3 has neither the instruction nor a target that has it, hence intrinsics.
#if defined(SANTA_KERNELS_CPU_ROW_BF16_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_ROW_BF16_PRODUCTS_INL_H_
#undef SANTA_KERNELS_CPU_ROW_BF16_PRODUCTS_INL_H_
#else
#define SANTA_KERNELS_CPU_ROW_BF16_PRODUCTS_INL_H_
#endif

#if HWY_TARGET == HWY_AVX3
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_products-inl.h"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace santa::cpu {
namespace HWY_NAMESPACE {

// The products are exact and their sums fp32, as in the general loop. But the instruction takes subnormal numbers for
// 0, and leaves 0 where a sum would be subnormal. What that takes from a score is below 2^-60 if no number of the query
// is subnormal, or above 2^64: other queries are refused. (It also raises no exception, and always rounds to nearest:
// nothing here looks at either.)
inline bool PackBf16(const float* vector, int head_dim, uint16_t* packed) {
  constexpr float kLeast = 0x1p-126f;
  constexpr float kMost = 0x1p64f;
  for (int i = 0; i < head_dim; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(vector[i]);
    const float magnitude = std::bit_cast<float>(bits & 0x7FFFFFFFu);
    // Not a number, whatever its bits, stays that. (Refusing it would change the rounding of the item's other heads.)
    const bool nan = magnitude != magnitude;
    const bool fits = magnitude == 0 || (magnitude >= kLeast && magnitude <= kMost) ||
                      magnitude == std::numeric_limits<float>::infinity();
    if (!nan && (!fits || (bits & 0xFFFFu) != 0)) return false;
    packed[i] = nan ? 0x7FC0 : static_cast<uint16_t>(bits >> 16);
  }
  std::fill(packed + head_dim, packed + (head_dim + kPair - 1) / kPair * kPair, uint16_t{0});
  return true;
}

// ScoreChunk with other products: a vector of scores at a time, as many rows as fill it.
template <int kHeads>
HWY_INLINE void ScoreBf16Chunk(const ScoreArgs& args) {
  constexpr int kPitch = Pitch(kHeads);
  constexpr int kRows = kLanes / kPitch;
  const FloatTag d;
  const int64_t row_bytes = static_cast<int64_t>(args.head_dim) * 2;
  const int padded_dim = (args.head_dim + kPair - 1) / kPair * kPair;
  const int64_t step = FetchStep(args.ahead, args.num_rows);
  for (int first = 0; first < args.num_rows; first += kRows) {
    const uint8_t* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = args.rows + std::min(first + r, args.num_rows - 1) * row_bytes;
    PrefetchBytes(args.ahead.begin + first * step, std::min(kRows, args.num_rows - first) * step);
    __m512 sums[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) sums[i] = _mm512_setzero_ps();
    for (int column = 0; column < args.head_dim; column += kPair) {
      __m512bh queries[kHeads];
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        queries[h] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(args.bf16_queries + h * padded_dim + column));
      }
      // Of the last columns only those that there are: what lies beyond may be anything, or no memory.
      const int words = std::min(kPair, args.head_dim - column) / 2;
      const auto mask = static_cast<__mmask16>((1u << words) - 1);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const auto row = reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi32(mask, rows[r] + column * int64_t{2}));
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          sums[r * kPitch + h] = _mm512_dpbf16_ps(sums[r * kPitch + h], queries[h], row);
        }
      }
    }
    Vector vectors[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) vectors[i] = Vector{sums[i]};
    hn::StoreU(SumEach(vectors), d, args.scores + first * kPitch);
  }
}

// The same for rows of kColumns vectors: the queries stay in registers, and so do sums, of which four at a time are
// needed before they are added up.
template <int kHeads, int kColumns>
HWY_INLINE void ScoreBf16Rows(const ScoreArgs& args) {
  constexpr int kPitch = Pitch(kHeads);
  constexpr int kRows = 4 / kPitch;  // of four sums
  constexpr int64_t kRowBytes = kColumns * int64_t{64};
  __m512bh queries[kHeads][kColumns];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      queries[h][c] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(args.bf16_queries + (h * kColumns + c) * kPair));
    }
  }
  const int last = args.num_rows - 1;
  const int64_t step = FetchStep(args.ahead, args.num_rows);
  for (int first = 0; first <= last; first += 4 * kRows) {
    Vector blocks[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int index = std::min(first + b * kRows + r, last);
        const int64_t offset = index * kRowBytes;
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) {
          const auto row = reinterpret_cast<__m512bh>(_mm512_loadu_si512(args.rows + offset + c * 64));
#pragma GCC unroll 4
          for (int h = 0; h < kHeads; ++h) {
            sums[r * kPitch + h] = _mm512_dpbf16_ps(sums[r * kPitch + h], queries[h][c], row);
          }
        }
        PrefetchBytes(args.ahead.begin + index * step, step);
      }
      blocks[b] = SumBlocks(Vector{sums[0]}, Vector{sums[1]}, Vector{sums[2]}, Vector{sums[3]});
    }
    hn::StoreU(SumQuarters(blocks), FloatTag(), args.scores + first * kPitch);
  }
}

template <int kHeads>
HWY_INLINE void ScoreBf16Heads(const ScoreArgs& args) {
  // The usual head dimensions.
  if (args.head_dim == 128) return ScoreBf16Rows<kHeads, 4>(args);
  if (args.head_dim == 64) return ScoreBf16Rows<kHeads, 2>(args);
  ScoreBf16Chunk<kHeads>(args);
}

inline void ScoreBf16(const ScoreArgs& args) {
  if (args.bf16_queries == nullptr) return Score<Bf16Row>(args);
  switch (args.heads) {
    case 1:
      return ScoreBf16Heads<1>(args);
    case 2:
      return ScoreBf16Heads<2>(args);
    case 3:
      return ScoreBf16Heads<3>(args);
    default:
      return ScoreBf16Heads<4>(args);
  }
}

// Dots of pairs of rows of kColumns vectors, a vector of sums at a time. What the instruction takes from a sum is as
// little as from a score.
template <int kColumns>
HWY_INLINE void DotsBf16Rows(const PairArgs& args) {
  const auto column = [](const uint8_t* row, int c)
                          HWY_ATTR { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(row + c * 64)); };
  for (int first = 0; first < args.num_pairs; first += kLanes) {
    const int count = std::min(kLanes, args.num_pairs - first);
    alignas(64) float sums[kLanes];
    Vector vectors[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const int pair = first + std::min(i, count - 1);
      const uint8_t* x = args.first[pair];
      const uint8_t* y = args.second[pair];
      __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) sum = _mm512_dpbf16_ps(sum, column(x, c), column(y, c));
      vectors[i] = Vector{sum};
    }
    hn::Store(SumEach(vectors), FloatTag(), sums);
    std::copy_n(sums, count, args.out + first);
  }
}

inline void DotsBf16(const PairArgs& args) {
  // The usual head dimensions.
  if (args.head_dim == 128) return DotsBf16Rows<4>(args);
  if (args.head_dim == 64) return DotsBf16Rows<2>(args);
  Dots<Bf16Row>(args);
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_POP_ATTRIBUTES
#endif  // HWY_TARGET == HWY_AVX3

#endif  // SANTA_KERNELS_CPU_ROW_BF16_PRODUCTS_INL_H_
