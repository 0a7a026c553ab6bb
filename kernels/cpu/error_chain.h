// What the rows that query heads drew say of the heads' standard errors (kernels/sampling/standard_error.h): of each
// head the steps from one row of its own to the next.
#ifndef SANTA_KERNELS_CPU_ERROR_CHAIN_H_
#define SANTA_KERNELS_CPU_ERROR_CHAIN_H_

#include <cstdint>

#include "kernels/cpu/block.h"
#include "kernels/cpu/grow_buffer.h"
#include "kernels/sampling/standard_error.h"

namespace santa::cpu {

// Steps wait until Flush, when the rows' memory has been fetched. Of a run with many of them not all are measured: each
// that is stands for some more.
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
    if (last.row != nullptr && last.left_out++ == last.leaves_out) {
      if (num_steps_ == kMostSteps) Measure();
      rows_[num_steps_] = row;
      before_[num_steps_] = last.row;
      taus_[num_steps_] = from_zero_ ? t : (t + last.t) / 2 * static_cast<float>(last.left_out);
      sums_[num_steps_++] = &sums[head];
      last.left_out = 0;
      if (!from_zero_ && ++last.steps >= kAllSteps) last.leaves_out = kLeavesOut;
    }
    if (from_zero_) return;
    last.row = row;
    last.t = t;
  }

  void Flush() {
    if (num_steps_ > 0) Measure();
  }

 private:
  struct Link {
    const uint8_t* row = nullptr;
    float t = 0;
    int steps = 0;  // measured
    int left_out = 0;
    int leaves_out = 0;  // before the next one that is measured
  };
  // So many steps of a run are all measured, and then one after so many that are not.
  static constexpr int kAllSteps = 8;
  static constexpr int kLeavesOut = 3;
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
