#include "client/examples/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "client/examples/simd.cc"
#include <hwy/foreach_target.h>  // compiles the rest of this file once for each instruction set
#include <hwy/highway.h>

#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace santa {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that every multiple of kSimdAlign is whole vectors.
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;

// Rows x Vectors accumulators stay in registers: 24 of AVX-512's 32, 12 of the 16 that older sets have.
constexpr int kRows = 6;
constexpr int kVectors = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

// c[0..Rows)[0..Vectors * lanes) += a b.
template <int Rows, int Vectors>
HWY_INLINE void Tile(int64_t k, const float* HWY_RESTRICT a, int64_t lda, const float* HWY_RESTRICT b, int64_t ldb,
                     float* HWY_RESTRICT c, int64_t ldc) {
  const D d;
  const int64_t lanes = hn::Lanes(d);
  V sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sum[r][v] = hn::LoadU(d, c + r * ldc + v * lanes);
  }
  for (int64_t i = 0; i < k; ++i) {
    V row[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) row[v] = hn::LoadU(d, b + i * ldb + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const V factor = hn::Set(d, a[r * lda + i]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[r][v] = hn::MulAdd(factor, row[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) hn::StoreU(sum[r][v], d, c + r * ldc + v * lanes);
  }
}

// All m rows of a panel of Vectors vectors.
template <int Vectors>
void Panel(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  for (; m >= kRows; m -= kRows, a += kRows * lda, c += kRows * ldc) Tile<kRows, Vectors>(k, a, lda, b, ldb, c, ldc);
  if (m >= 4) {
    Tile<4, Vectors>(k, a, lda, b, ldb, c, ldc);
    m -= 4, a += 4 * lda, c += 4 * ldc;
  }
  if (m >= 2) {
    Tile<2, Vectors>(k, a, lda, b, ldb, c, ldc);
    m -= 2, a += 2 * lda, c += 2 * ldc;
  }
  if (m >= 1) Tile<1, Vectors>(k, a, lda, b, ldb, c, ldc);
}

void MatMulAddImpl(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                   int64_t ldc) {
  const int64_t lanes = hn::Lanes(D());
  int64_t column = 0;
  for (; column + kVectors * lanes <= n; column += kVectors * lanes) {
    Panel<kVectors>(m, k, a, lda, b + column, ldb, c + column, ldc);
  }
  for (; column < n; column += lanes) Panel<1>(m, k, a, lda, b + column, ldb, c + column, ldc);
}

float MaxOfImpl(const float* x, int64_t n) {
  const D d;
  V best = hn::LoadU(d, x);
  for (int64_t i = hn::Lanes(d); i < n; i += hn::Lanes(d)) best = hn::Max(best, hn::LoadU(d, x + i));
  return hn::GetLane(hn::MaxOfLanes(d, best));
}

float ExpAndSumImpl(float* x, int64_t n, float shift) {
  const D d;
  const V offset = hn::Set(d, shift);
  V sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += hn::Lanes(d)) {
    const V e = hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), offset));
    hn::StoreU(e, d, x + i);
    sum = hn::Add(sum, e);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void ScaleImpl(float* x, int64_t n, float factor) {
  const D d;
  const V f = hn::Set(d, factor);
  for (int64_t i = 0; i < n; i += hn::Lanes(d)) hn::StoreU(hn::Mul(hn::LoadU(d, x + i), f), d, x + i);
}

const char* TargetImpl() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace santa
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace santa {

HWY_EXPORT(MatMulAddImpl);
HWY_EXPORT(MaxOfImpl);
HWY_EXPORT(ExpAndSumImpl);
HWY_EXPORT(ScaleImpl);
HWY_EXPORT(TargetImpl);

void MatMulAdd(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc) {
  HWY_DYNAMIC_DISPATCH(MatMulAddImpl)(m, n, k, a, lda, b, ldb, c, ldc);
}

float MaxOf(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(MaxOfImpl)(x, n); }

float ExpAndSum(float* x, int64_t n, float shift) { return HWY_DYNAMIC_DISPATCH(ExpAndSumImpl)(x, n, shift); }

void Scale(float* x, int64_t n, float factor) { HWY_DYNAMIC_DISPATCH(ScaleImpl)(x, n, factor); }

const char* SimdTarget() { return HWY_DYNAMIC_DISPATCH(TargetImpl)(); }

}  // namespace santa
#endif  // HWY_ONCE
