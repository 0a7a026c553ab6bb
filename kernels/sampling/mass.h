// Softmax weights as whole numbers. Sums of integers do not depend on their order, so every thread count, vector width
// and split of the tokens gives the same cumulative sums and hence the same draws.
//
// A row's mass is exp(s_i - m) in units of 2^-30, m the largest score of what is drawn from (a head's, or a tile's).
// The row with the largest score has mass 2^30, so a total is never 0. A row more than 31 ln 2 = 21.5 below the largest
// score has mass 0 and is never drawn; what that leaves out of n rows' probability is below n * 2^-31.
// Up to 2^32 rows fit a sum of 64 bits.
#ifndef SANTA_KERNELS_SAMPLING_MASS_H_
#define SANTA_KERNELS_SAMPLING_MASS_H_

#include <cmath>
#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::sampling {

inline constexpr float kMassOne = 0x1p30f;

// The mass of a row of weight w = exp(s - m) in [0, 1]: w * 2^30 to the nearest integer, ties to even (what the vector
// conversions of every instruction set do). The product is exact.
SANTA_HOST_DEVICE uint32_t RowMass(float weight) {
#ifdef __CUDA_ARCH__
  return static_cast<uint32_t>(__float2int_rn(weight * kMassOne));
#else
  return static_cast<uint32_t>(std::lrintf(weight * kMassOne));
#endif
}

// The mass of a whole tile beside other tiles: its rows' sum, taken against the tile's own largest score m_t, brought
// to the scale of the head's largest score m. weight = exp(m_t - m) in [0, 1]. The sum must be below 2^53.
SANTA_HOST_DEVICE uint64_t TileMass(uint64_t row_masses, float weight) {
#ifdef __CUDA_ARCH__
  return static_cast<uint64_t>(__double2ll_rn(static_cast<double>(row_masses) * weight));
#else
  return static_cast<uint64_t>(std::llrint(static_cast<double>(row_masses) * weight));
#endif
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_MASS_H_
