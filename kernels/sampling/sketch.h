// A sketch of a page: b bits a feature, with a step and a smallest number for every feature (column) of the page.
//
//     x[t,d] ~ low[d] + step[d] * code[t,d],   code in [0, 2^b)        low, step in half precision
//
// low and step are what half precision makes of the column's smallest number and of its range / (2^b - 1); codes are
// taken against those, so that a sketch is a pure function of the page. A column with one value has the smallest
// normal step. KIVI (arXiv 2402.02750) quantises keys by channel in this way; here it decides what is read, or is
// corrected by what is read, and never is the answer.
#ifndef SANTA_KERNELS_SAMPLING_SKETCH_H_
#define SANTA_KERNELS_SAMPLING_SKETCH_H_

#include <cmath>
#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::sampling {

inline constexpr float kSmallestStep = 0x1p-14f;  // the smallest normal number of half precision
inline constexpr float kLargestStep = 1024.0f;    // so that a product with a query stays finite in half precision
inline constexpr float kLargestHalf = 65504.0f;

// What is to be rounded to half precision for a column of numbers in [smallest, largest] and b = bits. Finite for
// finite numbers.
struct ColumnRange {
  float low, step;
};
SANTA_HOST_DEVICE ColumnRange RangeOf(float smallest, float largest, int bits) {
  const float low = fmaxf(-kLargestHalf, fminf(kLargestHalf, smallest));
  const float step = (largest - low) / static_cast<float>((1 << bits) - 1);
  return {low, fmaxf(kSmallestStep, fminf(kLargestStep, step))};
}

// The code of x, given 1 / step; low and step as rounded.
SANTA_HOST_DEVICE uint32_t CodeOf(float x, float low, float inverse_step, int bits) {
  const float largest = static_cast<float>((1 << bits) - 1);
  const float code = fmaxf(0.0f, fminf(largest, (x - low) * inverse_step));
#ifdef __CUDA_ARCH__
  return __float2uint_rn(code);
#else
  return static_cast<uint32_t>(std::lrintf(code));
#endif
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_SKETCH_H_
