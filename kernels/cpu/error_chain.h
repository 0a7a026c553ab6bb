// What the rows that query heads drew say of the heads' standard errors (kernels/sampling/standard_error.h): of each
// head the steps from one row of its own to the next.
#ifndef SANTA_KERNELS_CPU_ERROR_CHAIN_H_
#define SANTA_KERNELS_CPU_ERROR_CHAIN_H_

#include <cstdint>

#include "kernels/cpu/block.h"
#include "kernels/cpu/grow_buffer.h"
#include "kernels/sampling/standard_error.h"

namespace santa::cpu {

// Steps wait until Flush, when the rows' memory has been fetched.
class ErrorChain {
 public:
  // from_zero: draws are independent, and a row's step is from 0 whatever was drawn before it.
  void Begin(const DecodeContext& context, bool from_zero);

  // The next rows have none before them.
  void StartRun();

  // A value row that a head in [0, G) drew, its rows in order: fluctuation t, into sums[head], z being the row itself.
  void Add(int head, float t, const uint8_t* row, sampling::StepSums* sums) {
    if (t == 0) return;
    sums[head].t += t;
    Link& last = links_[head];
    if (last.row != nullptr) {
      if (num_steps_ == kMostSteps) Measure();
      rows_[num_steps_] = row;
      before_[num_steps_] = last.row;
      taus_[num_steps_] = from_zero_ ? t : (t + last.t) / 2;
      sums_[num_steps_++] = &sums[head];
    }
    if (!from_zero_) last = {row, t};
  }

  void Flush() {
    if (num_steps_ > 0) Measure();
  }

 private:
  struct Link {
    const uint8_t* row = nullptr;
    float t = 0;
  };
  static constexpr int kMostSteps = 256;

  void Measure();

  const DecodeContext* context_ = nullptr;
  bool from_zero_ = false;
  int num_heads_ = 0;
  GrowBuffer<Link> links_buffer_;
  Link* links_ = nullptr;  // [G]
  GrowBuffer<uint8_t> zeros_;
  int num_steps_ = 0;
  const uint8_t* rows_[kMostSteps] = {};
  const uint8_t* before_[kMostSteps] = {};
  float taus_[kMostSteps] = {};
  sampling::StepSums* sums_[kMostSteps] = {};
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_ERROR_CHAIN_H_
