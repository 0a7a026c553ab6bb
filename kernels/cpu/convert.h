// Arrays of numbers from one of the three dtypes to another.
#ifndef SANTA_KERNELS_CPU_CONVERT_H_
#define SANTA_KERNELS_CPU_CONVERT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"

namespace santa::cpu {

// One number, rounded to nearest, ties to even; overflow gives infinity, NaN stays (a quiet) NaN.
uint16_t Bf16FromFloat(float value);
uint16_t Fp16FromFloat(float value);
float FloatFromBf16(uint16_t bits);
float FloatFromFp16(uint16_t bits);

// Writes `count` numbers of `from` at `source` as `to` at `target`, which do not overlap. Any alignment. Equal dtypes
// copy bit for bit. Thread safe.
void Convert(DType from, const void* source, DType to, void* target, size_t count);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_CONVERT_H_
