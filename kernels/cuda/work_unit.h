#ifndef SANTA_KERNELS_CUDA_WORK_UNIT_H_
#define SANTA_KERNELS_CUDA_WORK_UNIT_H_

#include <cstdint>

namespace santa::cuda {

// Where a pilot gives the threshold (kernels/cuda/decode_plan.h) an item's units come in fours, which a block of
// kernels/cuda/warp_pass.cu takes: the last ones may be empty.
inline constexpr int kUnitsOfBlock = 4;

// One split of one item: tokens [begin, end), some of the visible ones. A kernel that takes tiles wants them whole:
// begin and end are multiples of 256 but for the item's own ends.
struct WorkUnit {
  int32_t item = 0;
  int32_t split = 0;  // counted from the item's first
  int32_t begin = 0, end = 0;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_WORK_UNIT_H_
