#include "kernels/cpu/error_chain.h"

#include <algorithm>

namespace santa::cpu {

void ErrorChain::Begin(const DecodeContext& context, bool from_zero) {
  context_ = &context;
  from_zero_ = from_zero;
  links_.AtLeast(context.shape.group);
  sums_ = nullptr;
  StartRun();
  if (!from_zero) return;
  std::fill_n(zero_rows_, kBlockRows, zeros_.AtLeast(context.cache.layout().row_bytes() + PageMemory::kReadableTail));
}

void ErrorChain::StartRun() {
  for (int head = 0; head < context_->shape.group; ++head) links_.data()[head].count = links_.data()[head].begin = 0;
}

void ErrorChain::Flush() {
  if (sums_ == nullptr) return;
  for (int head = 0; head < context_->shape.group; ++head) {
    Links& links = links_.data()[head];
    if (links.count == links.begin) continue;
    // The first row of all has none to step from.
    const int first = from_zero_ ? 0 : 1;
    const int num_steps = links.count - first;
    float distances[kBlockRows];
    context_->kernels.distances({.first = links.rows + first,
                                 .second = from_zero_ ? zero_rows_ : links.rows,
                                 .num_pairs = num_steps,
                                 .head_dim = context_->shape.head_dim,
                                 .out = distances});
    sampling::StepSums sums = sums_[head];
    for (int i = links.begin; i < links.count; ++i) sums.t += links.t[i];
    for (int step = 0; step < num_steps; ++step) {
      const float tau = from_zero_ ? links.t[step] : (links.t[step] + links.t[step + 1]) / 2;
      sums.pairs += tau;
      sums.steps += tau * distances[step];
    }
    sums_[head] = sums;
    links.rows[0] = links.rows[links.count - 1];
    links.t[0] = links.t[links.count - 1];
    links.count = links.begin = first;
  }
  sums_ = nullptr;
}

}  // namespace santa::cpu
