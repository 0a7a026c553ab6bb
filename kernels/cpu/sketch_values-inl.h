// Values from sketches (layout: kernels/cpu/sketches.h): their weighted sums, and rows beside the values themselves.
#if defined(SANTA_KERNELS_CPU_SKETCH_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_SKETCH_VALUES_INL_H_
#undef SANTA_KERNELS_CPU_SKETCH_VALUES_INL_H_
#else
#define SANTA_KERNELS_CPU_SKETCH_VALUES_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_load-inl.h"
#include "kernels/cpu/sketch_products-inl.h"
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

// Bytes of codes of one row, and of each of its halves: a byte of 8 bits holds one feature, of 4 bits one of either
// half.
template <int kBits>
constexpr int CodeHalves = 8 / kBits;

// The codes at kLanes neighbouring bytes, of each half. Bytes past the row's end, which may be read (the columns'
// ranges follow the codes), give codes of no meaning.
template <int kBits>
HWY_INLINE void LoadCodes(const uint8_t* bytes, Vector* halves) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<uint8_t, FloatTag> du8;
  const auto words = hn::PromoteTo(di, hn::LoadU(du8, bytes));
  if constexpr (kBits == 8) {
    halves[0] = hn::ConvertTo(d, words);
  } else {
    halves[0] = hn::ConvertTo(d, hn::And(words, hn::Set(di, 15)));
    halves[1] = hn::ConvertTo(d, hn::ShiftRight<4>(words));
  }
}

// sums[half][h][byte]: of weight * code.
using CodeSums = float[2][kChunkHeads][kMaxHeadDim + 16];

// Columns of `kVectors` vectors of bytes from `first` on, all rows, the sums in registers.
template <int kBits, int kHeads, int kVectors>
HWY_INLINE void SumCodeColumns(const SketchSumArgs& args, int first, CodeSums& out) {
  constexpr int kHalves = CodeHalves<kBits>;
  constexpr int kPitch = Pitch(kHeads);
  const FloatTag d;
  const int64_t row_bytes = args.head_dim / kHalves;
  Vector sums[kHeads][kVectors * kHalves];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors * kHalves; ++v) sums[h][v] = hn::Zero(d);
  }
  const uint8_t* bytes = args.codes + first;
  for (int row = 0; row < args.num_rows; ++row, bytes += row_bytes) {
    Vector codes[kVectors * kHalves];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) LoadCodes<kBits>(bytes + v * kLanes, codes + v * kHalves);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const Vector weight = hn::Set(d, args.weights[row * kPitch + h]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors * kHalves; ++v) sums[h][v] = hn::MulAdd(weight, codes[v], sums[h][v]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors * kHalves; ++v) {
      hn::StoreU(sums[h][v], d, out[v % kHalves][h] + first + v / kHalves * kLanes);
    }
  }
}

// Of each head.
HWY_INLINE HeadVector SumWeights(const float* weights, int num_rows, int pitch) {
  const FloatTag d;
  const int count = num_rows * pitch;
  Vector sum = hn::Zero(d);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) sum = hn::Add(sum, hn::LoadU(d, weights + i));
  if (i < count) sum = hn::Add(sum, hn::MaskedLoad(hn::FirstN(d, count - i), d, weights + i));
  return Fold(sum, pitch, [](float a, float b) { return a + b; });
}

template <int kBits, int kHeads>
HWY_INLINE HeadVector SketchSumsOf(const SketchSumArgs& args) {
  constexpr int kHalves = CodeHalves<kBits>;
  // Half of the registers hold sums.
  constexpr int kVectors = std::max(1, (HWY_MAX_BYTES == 64 ? 16 : 8) / Pitch(kHeads) / kHalves > 4
                                           ? 4 / kHalves
                                           : (HWY_MAX_BYTES == 64 ? 16 : 8) / Pitch(kHeads) / kHalves);
  const int row_bytes = args.head_dim / kHalves;
  CodeSums codes;
  int first = 0;
  for (; first + kVectors * kLanes <= row_bytes; first += kVectors * kLanes) {
    SumCodeColumns<kBits, kHeads, kVectors>(args, first, codes);
  }
  for (; first < row_bytes; first += kLanes) SumCodeColumns<kBits, kHeads, 1>(args, first, codes);

  alignas(64) float low[kMaxHeadDim];
  alignas(64) float step[kMaxHeadDim];
  FloatsOf(args.low, args.head_dim, low);
  FloatsOf(args.step, args.head_dim, step);
  HeadVector mass = SumWeights(args.weights, args.num_rows, Pitch(kHeads));
  const hn::CappedTag<float, 4> d4;  // half of head_dim is a multiple of 4
  for (int h = 0; h < kHeads; ++h) {
    const auto factor = hn::Set(d4, args.factors.lane[h]);
    const auto of_low = hn::Set(d4, mass.lane[h]);
    for (int half = 0; half < kHalves; ++half) {
      for (int byte = 0; byte < row_bytes; byte += 4) {
        const int d = half * row_bytes + byte;
        const auto of_codes = hn::LoadU(d4, codes[half][h] + byte);
        const auto value = hn::MulAdd(hn::Load(d4, step + d), of_codes, hn::Mul(hn::Load(d4, low + d), of_low));
        float* sum = args.sums + h * args.head_dim + d;
        hn::StoreU(hn::MulAdd(factor, value, hn::LoadU(d4, sum)), d4, sum);
      }
    }
    mass.lane[h] *= args.factors.lane[h];
  }
  return mass;
}

template <int kBits>
HWY_INLINE HeadVector SketchSumsBits(const SketchSumArgs& args) {
  switch (args.heads) {
    case 1:
      return SketchSumsOf<kBits, 1>(args);
    case 2:
      return SketchSumsOf<kBits, 2>(args);
    case 3:
      return SketchSumsOf<kBits, 3>(args);
    default:
      return SketchSumsOf<kBits, 4>(args);
  }
}

inline HeadVector SketchSums(const SketchSumArgs& args) {
  return args.bits == 4 ? SketchSumsBits<4>(args) : SketchSumsBits<8>(args);
}

// One row by its sketch, in order.
template <int kBits>
HWY_INLINE void SketchedRow(const uint8_t* codes, const uint16_t* ranges, int head_dim, float* row) {
  constexpr int kHalves = CodeHalves<kBits>;
  alignas(64) float low[kMaxHeadDim];
  alignas(64) float step[kMaxHeadDim];
  alignas(64) float of_codes[2][kMaxHeadDim + 16];
  FloatsOf(ranges, head_dim, low);
  FloatsOf(ranges + head_dim, head_dim, step);
  const int row_bytes = head_dim / kHalves;
  for (int first = 0; first < row_bytes; first += kLanes) {
    Vector halves[kHalves];
    LoadCodes<kBits>(codes + first, halves);
    for (int half = 0; half < kHalves; ++half) hn::StoreU(halves[half], FloatTag(), of_codes[half] + first);
  }
  const hn::CappedTag<float, 4> d4;
  for (int half = 0; half < kHalves; ++half) {
    for (int byte = 0; byte < row_bytes; byte += 4) {
      const int d = half * row_bytes + byte;
      const auto code = hn::LoadU(d4, of_codes[half] + byte);
      hn::StoreU(hn::MulAdd(hn::Load(d4, step + d), code, hn::Load(d4, low + d)), d4, row + d);
    }
  }
}

template <typename Row>
void SketchRows(const SketchRowArgs& args) {
  const FloatTag d;
  const int padded_dim = (args.head_dim + kPair - 1) / kPair * kPair;
  alignas(64) float plain[kMaxHeadDim] = {};  // 0 past head_dim
  for (int r = 0; r < args.num_rows; ++r) {
    const bool has_sketch = args.codes[r] != nullptr;
    if (has_sketch && args.bits == 4) SketchedRow<4>(args.codes[r], args.ranges[r], args.head_dim, plain);
    if (has_sketch && args.bits == 8) SketchedRow<8>(args.codes[r], args.ranges[r], args.head_dim, plain);
    float* sketched = args.sketched + static_cast<int64_t>(r) * padded_dim;
    float* differences = args.differences + static_cast<int64_t>(r) * padded_dim;
    for (int column = 0; column < args.head_dim; column += kPair) {
      Vector value[2];
      const uint8_t* elements = args.rows[r] + column * int64_t{Row::kElementBytes};
      if (column + kPair <= args.head_dim) {
        Row::Load(elements, value[0], value[1]);
      } else {
        Row::LoadTail(elements, args.head_dim - column, value[0], value[1]);
      }
      Vector by_sketch[2] = {value[0], value[1]};
      Vector difference[2] = {hn::Zero(d), hn::Zero(d)};
      if (has_sketch) {
        Row::LoadFloats(plain + column, by_sketch[0], by_sketch[1]);
        for (int half = 0; half < 2; ++half) difference[half] = hn::Sub(value[half], by_sketch[half]);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        hn::StoreU(by_sketch[half], d, sketched + column + half * kLanes);
        hn::StoreU(difference[half], d, differences + column + half * kLanes);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_SKETCH_VALUES_INL_H_
