#include "kernels/cpu/error_chain.h"

#include <algorithm>

namespace santa::cpu {

void ErrorChain::Begin(const DecodeContext& context, bool from_zero) {
  context_ = &context;
  from_zero_ = from_zero;
  num_heads_ = context.shape.group;
  links_ = links_buffer_.AtLeast(num_heads_);
  num_steps_ = 0;
  StartRun();
}

void ErrorChain::StartRun() {
  Link none;
  if (from_zero_) none.row = zeros_.AtLeast(context_->cache.layout().row_bytes() + PageMemory::kReadableTail);
  std::fill_n(links_, num_heads_, none);
}

void ErrorChain::Measure() {
  float distances[kMostSteps];
  context_->kernels.distances({.first = rows_,
                               .second = before_,
                               .num_pairs = num_steps_,
                               .head_dim = context_->shape.head_dim,
                               .out = distances});
  for (int step = 0; step < num_steps_; ++step) {
    sums_[step]->pairs += taus_[step];
    sums_[step]->steps += taus_[step] * distances[step];
  }
  num_steps_ = 0;
}

}  // namespace santa::cpu
