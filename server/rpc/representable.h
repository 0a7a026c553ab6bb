// Whether every element of a tensor is finite once it is stored in the cache's dtype.
#ifndef SANTA_SERVER_RPC_REPRESENTABLE_H_
#define SANTA_SERVER_RPC_REPRESENTABLE_H_

#include <cstdint>

#include "kernels/attention.h"

namespace santa {

// The first of `count` elements of dtype `from` at `data` that is NaN, infinite, or rounds to an infinity in `to`;
// -1 if there is none. `data` need not be aligned. Runs at memory speed when there is none.
int64_t FindUnrepresentable(const void* data, int64_t count, DType from, DType to);

}  // namespace santa

#endif  // SANTA_SERVER_RPC_REPRESENTABLE_H_
