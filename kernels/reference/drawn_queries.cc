#include "kernels/reference/drawn_queries.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/sampling/ternary_query.h"

namespace santa::reference {

int64_t DrawQueries(const sampling::RandomStream& stream, uint32_t draws, std::vector<std::vector<double>>& queries) {
  const auto dim = static_cast<int32_t>(queries[0].size());
  std::vector<bool> read(dim, false);
  for (std::vector<double>& query : queries) {
    float largest = 0;
    for (const double q : query) largest = std::fmax(largest, static_cast<float>(std::abs(q)));
    for (int32_t j = 0; j < dim; ++j) {
      const auto q = static_cast<float>(query[j]);
      uint32_t taken = 0;
      for (uint32_t draw = 0; draw < draws; ++draw) {
        const sampling::ScoreUniforms uniforms = sampling::DrawScoreUniforms(stream, dim, draw, j / 4);
        taken += uniforms.of_feature[j % 4] < sampling::ScoreThreshold(q, largest);
      }
      query[j] = sampling::DrawnFeature(q, largest, taken, draws);
      if (taken > 0) read[j] = true;
    }
  }
  return std::count(read.begin(), read.end(), true);
}

}  // namespace santa::reference
