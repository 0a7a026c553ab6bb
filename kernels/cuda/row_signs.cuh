// What rows that were left to chance tell of an answer's error, in one pass (kernels/sampling/standard_error.h).
//
// A split's rows of 0 < t = 1 - pi, in the order of their list, are taken in pairs, and summed up once more, times
// sqrt(t), the second of a pair with the opposite sign and pairs with signs at random:
//
//     X = sum s w v,  Y = sum s w,  s = +-sqrt(t);    |X - o Y|^2 ~ sum over pairs t |z_i - z_j|^2,  z = w (v - o)
//
// on average, for what one pair's rows differ by says nothing of the next pair's. (COORDINATED's z is w v.) That is the
// variance by successive differences, and takes neither the rows' norms nor sums of squares: the columns of s w are
// those that a product for four heads leaves free. A split with a row left over is squared together with the next ones,
// up to the next that has one, whose row is the other of the pair; but with none of another four.
#ifndef SANTA_KERNELS_CUDA_ROW_SIGNS_CUH_
#define SANTA_KERNELS_CUDA_ROW_SIGNS_CUH_

#include <cstdint>

#include "kernels/cuda/group_layout.h"
#include "kernels/sampling/inclusion.h"

namespace santa::cuda {

// Within 1 ulp or so, of x >= 0.
__device__ __forceinline__ float SquareRoot(float x) {
  float result;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The sign bit of a pair of a split.
__device__ __forceinline__ uint32_t SignOfPair(int pair, int split) {
  const uint32_t mixed = (static_cast<uint32_t>(pair) + 1) * 0x9e3779b9u + static_cast<uint32_t>(split) * 0x85ebca6bu;
  return (mixed ^ mixed >> 15) * 0x2c1b3c6du & 0x80000000u;
}
// Of the split's chance row of that rank.
__device__ __forceinline__ uint32_t SignOfRow(int rank, int split) {
  return SignOfPair(rank / 2, split) ^ static_cast<uint32_t>(rank) << 31;
}
__device__ __forceinline__ float Signed(float x, uint32_t sign) { return __uint_as_float(__float_as_uint(x) ^ sign); }

// How four splits with so many chance rows are squared: their sums' signs, and whether a split is the last of those
// that are squared together.
struct SplitSigns {
  uint32_t sign[kSplitsOfFour];
  bool last[kSplitsOfFour];

  __device__ __forceinline__ SplitSigns(const float (&rows)[kSplitsOfFour], int first_split) {
    bool left_over = false;
#pragma unroll
    for (int i = 0; i < kSplitsOfFour; ++i) {
      const int count = static_cast<int>(rows[i]);
      const bool odd = count % 2 != 0;
      sign[i] = odd ? SignOfPair(count / 2, first_split + i) ^ (left_over ? 0x80000000u : 0) : 0;
      left_over ^= odd;
      last[i] = !left_over || i + 1 == kSplitsOfFour;
    }
  }
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_ROW_SIGNS_CUH_
