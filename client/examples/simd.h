// The decoder's inner loops, vectorised for the CPU that runs them (Google Highway, chosen at run time).
// Row-major fp32; pointers need no alignment. Thread safe.
#ifndef SANTA_CLIENT_EXAMPLES_SIMD_H_
#define SANTA_CLIENT_EXAMPLES_SIMD_H_

#include <cstdint>

namespace santa {

// Column counts and lengths below are multiples of this.
inline constexpr int64_t kSimdAlign = 16;

// c += a b. a: [m][k] with rows lda apart, b: [k][n], c: [m][n]; n a multiple of kSimdAlign. Each element of c is
// summed over k in order, so that a row's result does not depend on m.
void MatMulAdd(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc);

float MaxOf(const float* x, int64_t n);

// x[i] = exp(x[i] - shift); returns the sum. x[i] <= shift.
float ExpAndSum(float* x, int64_t n, float shift);

// x[i] *= factor.
void Scale(float* x, int64_t n, float factor);

// The name of the instruction set in use, "AVX3" for example.
const char* SimdTarget();

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_SIMD_H_
