// A head's sink beside its tokens.
#ifndef SANTA_KERNELS_CPU_SINK_H_
#define SANTA_KERNELS_CPU_SINK_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/attention.h"

namespace santa::cpu {

// What a sink beside the tokens leaves: lse over both, and the tokens' share of the probability.
struct WithSink {
  WithSink(const DecodeItem& item, int64_t head, double of_tokens) : lse(of_tokens) {
    if (item.sink_logits == nullptr) return;
    const double sink = item.sink_logits[head];
    const double largest = std::max(of_tokens, sink);
    lse = largest + std::log(std::exp(of_tokens - largest) + std::exp(sink - largest));
    share = std::exp(of_tokens - lse);
  }
  double lse;
  double share = 1;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_SINK_H_
