// The standard error of an estimate, from the rows that it read.
//
// An estimate is a sum of z_i over the rows read, and what is random is whether a row is read once more or not: by how
// much, its fluctuation t_i, is known. The number of rows read in all is fixed, so what counts is how z_i differs from
// the others:
//
//     COORDINATED           z = p / pi v                                    t = 1 - pi
//     SKETCHED              z = w (v - o)      w = exp(s) / pi / Z           t = 1 - pi
//       with a value sketch z = w (v - o) - w~ (v~ - o)                     t = 1 - pi
//     SYSTEMATIC and S2ANTA_PROP   z = v / S   t = Fluctuation(S p) of a row that was drawn
//     S2ANTA_FLASH          the same in each tile, with its own budget and softmax; tiles add up, times their mass^2
//     STRATIFIED            z = v / S          t = StratifiedFluctuation(...) of a row that was drawn
//     SANTA                 z = v / S          t = the times that it was drawn
//
// All but SANTA take one row out of every stretch of a line. Where rows that follow one another are alike, as in a
// text, the differences between stretches are no part of the error, and it is told by the steps from one row to the
// next (successive differences: Wolter, "An investigation of some estimators of variance for systematic sampling",
// Journal of the American Statistical Association 79, 1984; StepSums):
//
//     E |o^ - o|^2 ~ sum t * sum tau |z_i - z_j|^2 / (2 sum tau)    i of t > 0, j the one before it, tau = (t_i + t_j)
//     / 2
//
// Where rows come in no order, SANTA's draws or a group's on a GPU in three passes, by their differences from the mean
// (Hajek's form of the variance; ErrorSums). Of rows that are alike that tells too much:
//
//     E |o^ - o|^2 ~ m / (m - 1) (sum t |z|^2 - |sum t z|^2 / sum t),    m = (sum t)^2 / sum t^2 rows; SANTA: m = S
#ifndef SANTA_KERNELS_SAMPLING_STANDARD_ERROR_H_
#define SANTA_KERNELS_SAMPLING_STANDARD_ERROR_H_

#include <cmath>
#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::sampling {

// x in [0, 2^31). The library's floor is a call where the instruction set is an old one.
SANTA_HOST_DEVICE float FractionOf(float x) { return x - static_cast<float>(static_cast<int32_t>(x)); }

// Of a row that systematic draws fall on `expected` times in the mean, floor or ceiling: f (1 - f), over the
// probability that the row is drawn.
SANTA_HOST_DEVICE float Fluctuation(float expected) {
  const float fraction = FractionOf(expected);
  return expected < 1 ? 1 - expected : fraction * (1 - fraction);
}

// Likewise with one draw in each stratum of length 1, for a row that covers [begin, begin + expected) of them.
SANTA_HOST_DEVICE float StratifiedFluctuation(float begin_fraction, float expected) {
  const float first = fminf(expected, 1 - begin_fraction);  // in the stratum where it begins
  const float rest = expected - first;
  const float last = FractionOf(rest);
  const float variance = first * (1 - first) + last * (1 - last);
  if (rest >= 1 || first >= 1) return variance;  // it covers a stratum
  const float drawn = 1 - (1 - first) * (1 - last);
  return drawn > 0 ? variance / drawn : 0;
}

// Of one head, or one tile of it.
struct ErrorSums {
  float t = 0;          // sum t
  float t_squared = 0;  // sum t^2
  float z_squared = 0;  // sum t |z|^2
};

// |sum t z|^2 is `sum_squared`. 0 where nothing is left to chance.
SANTA_HOST_DEVICE float SquaredError(const ErrorSums& sums, float sum_squared) {
  if (!(sums.t > 0)) return sums.t == 0 ? 0 : sums.t;  // NaN stays
  const float error = sums.z_squared - sum_squared / sums.t;
  // Of hardly more than one row little can be told.
  const float rows = fmaxf(2, sums.t * sums.t / sums.t_squared);
  return error > 0 ? error * rows / (rows - 1) : error < 0 ? 0 : error;
}

// Of one head, or one tile of it: rows of t > 0 in their order. Sums over parts of the line, steps between which are
// left out, may be added up.
struct StepSums {
  float t = 0;      // sum t
  float pairs = 0;  // sum tau
  float steps = 0;  // sum tau |z_i - z_j|^2
};

// 0 where nothing is left to chance; NaN where one row alone is: it tells nothing.
SANTA_HOST_DEVICE float SquaredError(const StepSums& sums) {
  if (sums.t == 0) return 0;
  return sums.t * (sums.steps / (2 * sums.pairs));
}

// S2ANTA_FLASH draws in each tile by itself. Of fewer draws than that in a tile too often all fall on rows that others
// would have told apart: their error is not told.
inline constexpr uint32_t kLeastToldBudget = 8;

// sqrt(E |o^ - o|^2) / |o| of an estimate of squared norm |o^|^2. The error is in that too, E |o^|^2 = |o|^2 + E |o^ -
// o|^2; what cannot be told from noise counts as a sixteenth of it.
SANTA_HOST_DEVICE float RelativeError(float squared_error, float squared_norm) {
  if (squared_error == 0) return 0;
  return sqrtf(squared_error / fmaxf(squared_norm - squared_error, squared_norm / 16));
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_STANDARD_ERROR_H_
