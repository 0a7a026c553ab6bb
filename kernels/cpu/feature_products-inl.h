// Dot products of a chunk's queries with keys that lie feature by feature: [feature][token].
#if defined(SANTA_KERNELS_CPU_FEATURE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_FEATURE_PRODUCTS_INL_H_
#undef SANTA_KERNELS_CPU_FEATURE_PRODUCTS_INL_H_
#else
#define SANTA_KERNELS_CPU_FEATURE_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/fetch-inl.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

// Tokens [first, first + kPairs * kPair), their sums in registers from the first feature to the last.
template <typename Row, int kHeads, int kPairs>
HWY_INLINE void ScoreFeatureTokens(const FeatureScoreArgs& args, int first) {
  const FloatTag d;
  Vector sums[2 * kPairs][kHeads];
#pragma GCC unroll 16
  for (int v = 0; v < 2 * kPairs; ++v) {
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) sums[v][h] = hn::Zero(d);
  }
  const int64_t fetched = first == 0 && args.ahead != nullptr ? int64_t{args.num_rows} * Row::kElementBytes : 0;
  for (int f = 0; f < args.num_features; ++f) {
    const int64_t strip = args.features[f] * args.stride;
    if (fetched > 0) PrefetchBytes(args.ahead + strip, fetched);
    const uint8_t* elements = args.keys + strip + int64_t{first} * Row::kElementBytes;
    const float* queries = args.queries + int64_t{f} * kHeads;
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      Vector x, y;
      Row::Load(elements + p * kPair * Row::kElementBytes, x, y);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const Vector query = hn::Set(d, queries[h]);
        sums[2 * p][h] = hn::MulAdd(query, x, sums[2 * p][h]);
        sums[2 * p + 1][h] = hn::MulAdd(query, y, sums[2 * p + 1][h]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) Row::ToOrder(sums[2 * p][h], sums[2 * p + 1][h]);
  }
#pragma GCC unroll 16
  for (int v = 0; v < 2 * kPairs; ++v) {
    // A vector may go beyond the last token by less than kRowGroup, no vector begins there.
    const int token = first + v * kLanes;
    if (token < args.num_rows) StoreTokens<kHeads>(sums[v], args.scores + int64_t{token} * Pitch(kHeads));
  }
}

template <typename Row, int kHeads>
HWY_INLINE void ScoreFeaturesChunk(const FeatureScoreArgs& args) {
  // Half of the registers hold sums.
  constexpr int kRegisters = HWY_MAX_BYTES == 64 ? 32 : 16;
  constexpr int kPairs = std::max(1, std::min(kMaxRun / kPair, kRegisters / 4 / Pitch(kHeads)));
  int first = 0;
  for (; first + kPairs * kPair <= args.num_rows; first += kPairs * kPair) {
    ScoreFeatureTokens<Row, kHeads, kPairs>(args, first);
  }
  for (; first < args.num_rows; first += kPair) ScoreFeatureTokens<Row, kHeads, 1>(args, first);
}

template <typename Row>
void ScoreFeatures(const FeatureScoreArgs& args) {
  switch (args.heads) {
    case 1:
      return ScoreFeaturesChunk<Row, 1>(args);
    case 2:
      return ScoreFeaturesChunk<Row, 2>(args);
    case 3:
      return ScoreFeaturesChunk<Row, 3>(args);
    default:
      return ScoreFeaturesChunk<Row, 4>(args);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_FEATURE_PRODUCTS_INL_H_
