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

  // A value row, rows in order, that a head in [0, G) drew if `drawn`: fluctuation t, into sums[head], z being the row
  // itself. Which head drew a row is a matter of chance: no branch is asked to guess it.
  void Add(int head, bool drawn, float t, const uint8_t* row, sampling::StepSums* sums) {
    if (num_steps_ == kMostSteps) Measure();
    drawn = drawn && t != 0;
    Link& last = links_[head];
    rows_[num_steps_] = row;
    before_[num_steps_] = last.row;
    taus_[num_steps_] = from_zero_ ? t : (t + last.t) / 2;
    sums_[num_steps_] = &sums[head];
    num_steps_ += static_cast<int>(drawn & (last.row != nullptr));
    sums[head].t += drawn ? t : 0;
    const bool follows = drawn && !from_zero_;
    last.row = follows ? row : last.row;
    last.t = follows ? t : last.t;
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
