// Score draws over kernels/sampling (ternary_query.h), in plain loops.
#ifndef SANTA_KERNELS_REFERENCE_DRAWN_QUERIES_H_
#define SANTA_KERNELS_REFERENCE_DRAWN_QUERIES_H_

#include <cstdint>
#include <vector>

#include "kernels/sampling/uniform.h"

namespace santa::reference {

// Puts in place of each query of a group, [G][D], the mean of the ternary ones that `stream` draws for it. Returns how
// many features some of them has.
int64_t DrawQueries(const sampling::RandomStream& stream, uint32_t draws, std::vector<std::vector<double>>& queries);

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_DRAWN_QUERIES_H_
