// The shapes and options that the suite goes through.
#ifndef SANTA_KERNELS_TESTING_SHAPES_H_
#define SANTA_KERNELS_TESTING_SHAPES_H_

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/testing/cache.h"

namespace santa::testing {

// Layouts in which every G of {1, 3, 4, 5, 7, 8, 16} meets several head dimensions (8 to 256), page sizes (16 to 256)
// and storage types, or what the backend has nearest to them.
inline std::vector<KvLayout> Layouts(const BackendUnderTest& backend) {
  constexpr int32_t kGroups[] = {1, 3, 4, 5, 7, 8, 16};
  constexpr int32_t kHeadDims[] = {64, 8, 256, 72, 128, 96};
  constexpr int32_t kPageSizes[] = {16, 32, 64, 128, 256};
  constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  std::vector<KvLayout> layouts;
  for (int i = 0; i < 21; ++i) {
    const int32_t kv_heads = i % 2 + 1;
    layouts.push_back(backend.Nearest({.num_layers = 1,
                                       .num_query_heads = kGroups[i % 7] * kv_heads,
                                       .num_kv_heads = kv_heads,
                                       .head_dim = kHeadDims[i % 6],
                                       .page_size = kPageSizes[i % 5],
                                       .dtype = kTypes[(i + i / 7) % 3]}));
  }
  return layouts;
}

// Gives a query its q and the index-th of the eight combinations of window, soft cap and sinks, and of the three io
// types. A query of standard deviation 1.5 gives scores of 1.5.
inline Query WithOptions(const KvLayout& layout, const Sequence& sequence, AttentionOptions options, int index,
                         std::mt19937_64& random) {
  Query query{.sequence = &sequence, .options = options};
  constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  query.io_dtype = kTypes[index % 3];
  query.q = RandomNumbers(static_cast<size_t>(layout.num_query_heads) * layout.head_dim, 1.5, random);
  if (index & 1) query.options.window = static_cast<uint32_t>(sequence.tokens.count * 3 / 4 + 1);
  if (index & 2) query.options.soft_cap = 3;
  if (index & 4) {
    for (const double sink : RandomNumbers(layout.num_query_heads, 2, random)) {
      query.sink_logits.push_back(static_cast<float>(3 + sink));
    }
  }
  return query;
}

}  // namespace santa::testing

#endif  // SANTA_KERNELS_TESTING_SHAPES_H_
