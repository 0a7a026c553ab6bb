#include "kernels/cpu/feature_queries.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/cpu/convert.h"
#include "kernels/sampling/ternary_query.h"
#include "kernels/sampling/uniform.h"

namespace santa::cpu {
namespace {

// Puts the mean of its ternary queries in place of each head's query.
void DrawQueries(const DecodeItem& item, const DecodeShape& shape, int kv_head, FeatureScratch& scratch) {
  const int32_t dim = shape.head_dim;
  const uint32_t draws = item.options.score_draws;
  const sampling::RandomStream stream =
      sampling::MakeRandomStream(item.options.seed, item.sampling_key, item.layer, item.num_tokens - 1, kv_head);
  scratch.thresholds.resize(scratch.queries.size());
  scratch.taken.assign(scratch.queries.size(), 0);
  scratch.uniforms.resize(dim);
  std::vector<float>& queries = scratch.queries;
  const auto largest = [&](int head) {
    float most = 0;
    for (int32_t j = 0; j < dim; ++j) most = std::fmax(most, std::fabs(queries[head * dim + j]));
    return most;
  };
  for (int head = 0; head < shape.group; ++head) {
    const float most = largest(head);
    for (int32_t j = head * dim; j < (head + 1) * dim; ++j) {
      scratch.thresholds[j] = sampling::ScoreThreshold(queries[j], most);
    }
  }
  for (uint32_t draw = 0; draw < draws; ++draw) {
    for (int32_t quad = 0; quad < dim / 4; ++quad) {
      const sampling::ScoreUniforms uniforms = sampling::DrawScoreUniforms(stream, dim, draw, quad);
      std::copy_n(uniforms.of_feature, 4, scratch.uniforms.data() + 4 * quad);
    }
    for (int head = 0; head < shape.group; ++head) {
      uint32_t* taken = scratch.taken.data() + head * dim;
      const uint64_t* thresholds = scratch.thresholds.data() + head * dim;
      for (int32_t j = 0; j < dim; ++j) taken[j] += static_cast<uint32_t>(scratch.uniforms[j] < thresholds[j]);
    }
  }
  for (int head = 0; head < shape.group; ++head) {
    const float most = largest(head);
    for (int32_t j = head * dim; j < (head + 1) * dim; ++j) {
      queries[j] = sampling::DrawnFeature(queries[j], most, scratch.taken[j], draws);
    }
  }
}

}  // namespace

int32_t PackFeatures(const DecodeItem& item, const DecodeShape& shape, int kv_head, FeatureScratch& scratch,
                     int32_t* features, float* queries) {
  const int32_t dim = shape.head_dim;
  const size_t size = static_cast<size_t>(shape.group) * dim;
  scratch.queries.resize(size);
  Convert(item.io_dtype, static_cast<const uint8_t*>(item.q) + kv_head * size * SizeOf(item.io_dtype), DType::kFloat32,
          scratch.queries.data(), size);
  const bool draws = item.options.score_draws > 0;
  if (draws) DrawQueries(item, shape, kv_head, scratch);
  int32_t count = 0;
  for (int32_t j = 0; j < dim; ++j) {
    bool read = !draws;
    for (int head = 0; !read && head < shape.group; ++head) read = scratch.taken[head * dim + j] > 0;
    if (read) features[count++] = j;
  }
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    for (int32_t f = 0; f < count; ++f) {
      for (int head = chunk * kChunkHeads; head < chunk * kChunkHeads + shape.heads(chunk); ++head) {
        *queries++ = scratch.queries[head * dim + features[f]];
      }
    }
  }
  return count;
}

}  // namespace santa::cpu
