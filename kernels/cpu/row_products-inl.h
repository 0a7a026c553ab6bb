// Products with rows of K (dot products with the queries of a chunk) and of V (weighted sums).
#if defined(SANTA_KERNELS_CPU_ROW_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_ROW_PRODUCTS_INL_H_
#undef SANTA_KERNELS_CPU_ROW_PRODUCTS_INL_H_
#else
#define SANTA_KERNELS_CPU_ROW_PRODUCTS_INL_H_
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

// Lane l of every 128-bit block of the result: the sum of that block of the l-th argument.
HWY_INLINE Vector SumBlocks(Vector a, Vector b, Vector c, Vector d) {
  const FloatTag df;
  const hn::RepartitionToWide<hn::RebindToUnsigned<FloatTag>> du64;
  const auto ab = hn::BitCast(du64, hn::Add(hn::InterleaveLower(df, a, b), hn::InterleaveUpper(df, a, b)));
  const auto cd = hn::BitCast(du64, hn::Add(hn::InterleaveLower(df, c, d), hn::InterleaveUpper(df, c, d)));
  return hn::Add(hn::BitCast(df, hn::InterleaveLower(du64, ab, cd)),
                 hn::BitCast(df, hn::InterleaveUpper(du64, ab, cd)));
}

// From what SumBlocks made of each four of kLanes vectors: element i is the sum of the lanes of the i-th.
HWY_INLINE Vector SumQuarters(const Vector* blocks) {
#if HWY_MAX_BYTES == 16
  return blocks[0];
#else
  const Vector s01 =
      hn::Add(hn::OddEvenBlocks(blocks[1], blocks[0]), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(blocks[0], blocks[1])));
#if HWY_MAX_BYTES == 32
  return s01;
#else
  const FloatTag d;
  const Vector s23 =
      hn::Add(hn::OddEvenBlocks(blocks[3], blocks[2]), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(blocks[2], blocks[3])));
  return hn::Add(hn::ConcatUpperLower(d, s23, s01), hn::ConcatLowerUpper(d, s23, s01));
#endif
#endif
}

// Element i of the result: the sum of the lanes of sums[i], i in [0, kLanes).
HWY_INLINE Vector SumEach(const Vector* sums) {
  Vector blocks[kLanes / 4];
#pragma GCC unroll 4
  for (int b = 0; b < kLanes / 4; ++b) {
    blocks[b] = SumBlocks(sums[4 * b], sums[4 * b + 1], sums[4 * b + 2], sums[4 * b + 3]);
  }
  return SumQuarters(blocks);
}

// One vector of scores at a time: as many rows as fill it, each row's two vectors multiplied with every query.
template <typename Row, int kHeads>
HWY_INLINE void ScoreChunk(const ScoreArgs& args) {
  constexpr int kPitch = Pitch(kHeads);
  constexpr int kRows = kLanes / kPitch;
  const FloatTag d;
  const int pairs = args.head_dim / kPair;
  const int tail = args.head_dim % kPair;
  const int padded_dim = (pairs + (tail != 0)) * kPair;
  const int64_t row_bytes = static_cast<int64_t>(args.head_dim) * Row::kElementBytes;
  const int64_t step = FetchStep(args.ahead, args.num_rows);
  for (int first = 0; first < args.num_rows; first += kRows) {
    const uint8_t* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = args.rows + std::min(first + r, args.num_rows - 1) * row_bytes;
    PrefetchBytes(args.ahead.begin + first * step, std::min(kRows, args.num_rows - first) * step);
    Vector sums[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) sums[i] = hn::Zero(d);
    const auto multiply = [&](int r, int pair, Vector x, Vector y) HWY_ATTR {
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const float* query = args.queries + h * padded_dim + pair * kPair;
        Vector& sum = sums[r * kPitch + h];
        sum = hn::MulAdd(x, hn::LoadU(d, query), sum);
        sum = hn::MulAdd(y, hn::LoadU(d, query + kLanes), sum);
      }
    };
    for (int pair = 0; pair < pairs; ++pair) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        Vector x, y;
        Row::Load(rows[r] + pair * kPair * Row::kElementBytes, x, y);
        multiply(r, pair, x, y);
      }
    }
    if (tail != 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        Vector x, y;
        Row::LoadTail(rows[r] + pairs * kPair * Row::kElementBytes, tail, x, y);
        multiply(r, pairs, x, y);
      }
    }
    hn::StoreU(SumEach(sums), d, args.scores + first * kPitch);
  }
}

template <typename Row>
void Score(const ScoreArgs& args) {
  switch (args.heads) {
    case 1:
      return ScoreChunk<Row, 1>(args);
    case 2:
      return ScoreChunk<Row, 2>(args);
    case 3:
      return ScoreChunk<Row, 3>(args);
    default:
      return ScoreChunk<Row, 4>(args);
  }
}

// Columns [pair, pair + kPairs) * kPair of all rows, the sums in registers. kTail: one pair of `tail` elements.
template <typename Row, int kHeads, int kPairs, bool kTail>
HWY_INLINE void AccumulateColumns(const AccumulateArgs& args, int pair, int tail, int padded_dim) {
  constexpr int kPitch = Pitch(kHeads);
  // Rows at random addresses: far enough ahead to hide a miss, near enough to stay in L1.
  constexpr int kAhead = 12;
  const FloatTag d;
  const int64_t row_bytes = static_cast<int64_t>(args.head_dim) * Row::kElementBytes;
  Vector sums[kHeads][2 * kPairs];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
    for (int v = 0; v < 2 * kPairs; ++v) {
      sums[h][v] = hn::LoadU(d, args.sums + h * padded_dim + pair * kPair + v * kLanes);
    }
  }
  // Rows by pointers leave memory to spare; the first pass takes it.
  const int64_t step = pair == 0 && args.ahead.bytes > 0 ? FetchStep(args.ahead, args.num_rows) : 0;
  for (int r = 0; r < args.num_rows; ++r) {
    PrefetchBytes(args.ahead.begin + r * step, step);
    const uint8_t* row = args.rows != nullptr ? args.rows + r * row_bytes : args.row_pointers[r];
    // Each pass fetches its own columns ahead, so that memory is busy in all of them.
    const int64_t column = static_cast<int64_t>(pair) * kPair * Row::kElementBytes;
    const int64_t columns = kTail ? tail * Row::kElementBytes : kPairs * kPair * Row::kElementBytes;
    if (args.prefetch != nullptr) PrefetchBytes(args.prefetch + r * row_bytes + column, columns);
    if (args.rows == nullptr) {
      if (args.beside != nullptr) PrefetchBytes(args.beside[r] + column, columns);
      if (r + kAhead < args.num_rows) {
        for (int64_t i = 0; i < columns; i += 64) __builtin_prefetch(args.row_pointers[r + kAhead] + column + i);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      Vector x, y;
      const uint8_t* elements = row + (pair + p) * kPair * Row::kElementBytes;
      if constexpr (kTail) {
        Row::LoadTail(elements, tail, x, y);
      } else {
        Row::Load(elements, x, y);
      }
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const Vector weight = hn::Set(d, args.weights[r * kPitch + h]);
        sums[h][2 * p] = hn::MulAdd(weight, x, sums[h][2 * p]);
        sums[h][2 * p + 1] = hn::MulAdd(weight, y, sums[h][2 * p + 1]);
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
    for (int v = 0; v < 2 * kPairs; ++v) {
      hn::StoreU(sums[h][v], d, args.sums + h * padded_dim + pair * kPair + v * kLanes);
    }
  }
}

template <typename Row, int kHeads>
HWY_INLINE void AccumulateChunk(const AccumulateArgs& args) {
  // Half of the registers hold sums.
  constexpr int kRegisters = HWY_MAX_BYTES == 64 ? 32 : 16;
  constexpr int kPairs = std::max(1, kRegisters / 4 / Pitch(kHeads) > 4 ? 4 : kRegisters / 4 / Pitch(kHeads));
  const int pairs = args.head_dim / kPair;
  const int tail = args.head_dim % kPair;
  const int padded_dim = (pairs + (tail != 0)) * kPair;
  int pair = 0;
  for (; pair + kPairs <= pairs; pair += kPairs) {
    AccumulateColumns<Row, kHeads, kPairs, false>(args, pair, 0, padded_dim);
  }
  for (; pair < pairs; ++pair) AccumulateColumns<Row, kHeads, 1, false>(args, pair, 0, padded_dim);
  if (tail != 0) AccumulateColumns<Row, kHeads, 1, true>(args, pair, tail, padded_dim);
}

template <typename Row>
void Accumulate(const AccumulateArgs& args) {
  switch (args.heads) {
    case 1:
      return AccumulateChunk<Row, 1>(args);
    case 2:
      return AccumulateChunk<Row, 2>(args);
    case 3:
      return AccumulateChunk<Row, 3>(args);
    default:
      return AccumulateChunk<Row, 4>(args);
  }
}

// out: the sum over features of add(x, y, sum), of each pair of rows.
template <typename Row, typename AddTo>
HWY_INLINE void SumPairs(const PairArgs& args, AddTo add) {
  constexpr int kAhead = 8;
  const FloatTag d;
  for (int pair = 0; pair < args.num_pairs; ++pair) {
    if (pair + kAhead < args.num_pairs) {
      PrefetchBytes(args.second[pair + kAhead], int64_t{args.head_dim} * Row::kElementBytes);
    }
    Vector sums[2] = {hn::Zero(d), hn::Zero(d)};
    for (int column = 0; column < args.head_dim; column += kPair) {
      const int64_t at = column * int64_t{Row::kElementBytes};
      Vector x[2], y[2];
      if (column + kPair <= args.head_dim) {
        Row::Load(args.first[pair] + at, x[0], x[1]);
        Row::Load(args.second[pair] + at, y[0], y[1]);
      } else {
        Row::LoadTail(args.first[pair] + at, args.head_dim - column, x[0], x[1]);
        Row::LoadTail(args.second[pair] + at, args.head_dim - column, y[0], y[1]);
      }
      for (int half = 0; half < 2; ++half) sums[half] = add(x[half], y[half], sums[half]);
    }
    args.out[pair] = hn::GetLane(hn::SumOfLanes(d, hn::Add(sums[0], sums[1])));
  }
}

template <typename Row>
void Dots(const PairArgs& args) {
  SumPairs<Row>(args, [](Vector x, Vector y, Vector sum) HWY_ATTR { return hn::MulAdd(x, y, sum); });
}

template <typename Row>
void Distances(const PairArgs& args) {
  SumPairs<Row>(args, [](Vector x, Vector y, Vector sum) HWY_ATTR {
    const Vector difference = hn::Sub(x, y);
    return hn::MulAdd(difference, difference, sum);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_ROW_PRODUCTS_INL_H_
