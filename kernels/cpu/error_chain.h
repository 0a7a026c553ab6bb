// What the rows that query heads drew say of the heads' standard errors (kernels/sampling/standard_error.h): of each
// head the steps from one row of its own to the next.
#ifndef SANTA_KERNELS_CPU_ERROR_CHAIN_H_
#define SANTA_KERNELS_CPU_ERROR_CHAIN_H_

#include <cstdint>

#include "kernels/cpu/block.h"
#include "kernels/cpu/grow_buffer.h"
#include "kernels/sampling/standard_error.h"

namespace santa::cpu {

// Rows of a block wait until Flush, when their memory has been fetched.
class ErrorChain {
 public:
  // from_zero: draws are independent, and a row's step is from 0 whatever was drawn before it.
  void Begin(const DecodeContext& context, bool from_zero);

  // The next rows have none before them.
  void StartRun();

  // What follows until Flush adds to sums[head], head in [0, G).
  void StartBlock(sampling::StepSums* sums) { sums_ = sums; }

  // A value row that a head may have drawn, its rows in order: fluctuation t, z being the row itself. At most
  // kBlockRows of a head.
  void Add(int head, bool drawn, float t, const uint8_t* row) {
    // Which heads drew a row is random: no branch is asked to guess it.
    Links& links = links_.data()[head];
    links.rows[links.count] = row;
    links.t[links.count] = t;
    links.count += static_cast<int>(drawn) & static_cast<int>(t != 0);
  }

  void Flush();

 private:
  // Rows of one head, the last of the block before among them.
  struct Links {
    const uint8_t* rows[kBlockRows + 2];
    float t[kBlockRows + 2];
    int count;
    int begin;  // of the block's own
  };

  const DecodeContext* context_ = nullptr;
  bool from_zero_ = false;
  GrowBuffer<Links> links_;  // [G]
  GrowBuffer<uint8_t> zeros_;
  const uint8_t* zero_rows_[kBlockRows] = {};
  sampling::StepSums* sums_ = nullptr;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_ERROR_CHAIN_H_
