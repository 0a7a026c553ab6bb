// The storage types' rounding, from their definitions. Test-only.
#ifndef SANTA_KERNELS_REFERENCE_NUMBER_FORMAT_H_
#define SANTA_KERNELS_REFERENCE_NUMBER_FORMAT_H_

#include <cstdint>
#include <vector>

#include "kernels/attention.h"

namespace santa::reference {

// The value nearest to x that `dtype` can hold (ties to even); beyond its range, infinity (fp8: +-448). NaN stays
// NaN.
double Round(DType dtype, double x);

// The bits of x, which `dtype` holds exactly (x == Round(dtype, x)), in the low bytes; and back.
uint32_t Encode(DType dtype, double x);
double Decode(DType dtype, uint32_t bits);

// A tensor as a backend takes it: row-major little-endian numbers, each rounded to `dtype`; and back.
std::vector<uint8_t> EncodeAll(DType dtype, const std::vector<double>& values);
std::vector<double> DecodeAll(DType dtype, const std::vector<uint8_t>& bytes);

// Round for every element.
std::vector<double> RoundAll(DType dtype, const std::vector<double>& values);

// Largest relative error of one rounding of a normal number: half a unit in the last place.
double RelativeRounding(DType dtype);

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_NUMBER_FORMAT_H_
