// One element of a tensor, as a number.
#ifndef SANTA_KERNELS_ELEMENT_H_
#define SANTA_KERNELS_ELEMENT_H_

#include <cstdint>

#include "kernels/attention.h"

namespace santa {

// Element `index` of a tensor of fp32, bf16 or fp16 at `data`, which need not be aligned. For messages and
// measurements: one at a time is slow.
float ElementAsFloat(const void* data, int64_t index, DType dtype);

}  // namespace santa

#endif  // SANTA_KERNELS_ELEMENT_H_
