#include "kernels/reference/head.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace santa::reference {

Head MakeHead(const Step& step, int32_t head) {
  const int32_t d = step.head_dim;
  const int32_t kv_head = head / (step.num_query_heads / step.num_kv_heads);
  const double scale = step.options.scale > 0 ? static_cast<double>(step.options.scale) : 1 / std::sqrt(d);
  const double cap = step.options.soft_cap;
  const int64_t window = step.options.window;
  Head result;
  result.first = window > 0 ? std::max<int64_t>(0, step.num_tokens - window) : 0;
  Vector scores;
  for (int64_t i = result.first; i < step.num_tokens; ++i) {
    const double* k = &step.k[(i * step.num_kv_heads + kv_head) * d];
    const double* v = &step.v[(i * step.num_kv_heads + kv_head) * d];
    const double s = scale * std::inner_product(k, k + d, &step.q[head * d], 0.0);
    scores.push_back(cap > 0 ? cap * std::tanh(s / cap) : s);
    result.v.emplace_back(v, v + d);
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double s : scores) sum += std::exp(s - largest);
  const double lse = largest + std::log(sum);
  for (const double s : scores) result.p.push_back(std::exp(s - lse));
  result.lse = result.visible_lse = lse;
  if (!step.sink_logits.empty()) {
    const double sink = step.sink_logits[head];
    const double most = std::max(lse, sink);
    result.lse = most + std::log(std::exp(lse - most) + std::exp(sink - most));
  }
  result.sink_free = std::exp(lse - result.lse);
  return result;
}

Vector Mean(const Vector& p, const Rows& v) {
  Vector mean(v[0].size(), 0.0);
  for (size_t i = 0; i < p.size(); ++i) {
    for (size_t d = 0; d < mean.size(); ++d) mean[d] += p[i] * v[i][d];
  }
  return mean;
}

}  // namespace santa::reference
