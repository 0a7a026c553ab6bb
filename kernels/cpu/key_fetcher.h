// Fetches the keys that a group of units will score, while scores are made and also between: weighing, drawing and
// adding up what was fetched before leave memory idle.
#ifndef SANTA_KERNELS_CPU_KEY_FETCHER_H_
#define SANTA_KERNELS_CPU_KEY_FETCHER_H_

#include <cstdint>

#include "kernels/cpu/block.h"
#include "kernels/cpu/row_kernels.h"

namespace santa::cpu {

// What is fetched beside a row that is weighed, or drawn from, and beside a drawn row that is added up: about what
// memory brings meanwhile. A CPU drops what is asked of it faster.
inline constexpr int64_t kBytesBesideRow = 32;
inline constexpr int64_t kBytesBesideSum = 128;

// Of feature-major keys nothing: which of their features will be scored is for the score kernel to know. Else it
// follows the runs of `num_heads` neighbouring heads in the order in which ScoreBlock takes them, block by block, and
// stays ahead of it by what fits in an L2 cache.
class KeyFetcher {
 public:
  // Tokens [begin, end); the arguments outlive it. The first run is scored next.
  void Begin(const DecodeContext& context, const DecodeItem& item, int kv_head, int num_heads, int64_t begin,
             int64_t end);

  // What to fetch while a run of `bytes` is scored.
  Ahead WhileScoring(int64_t bytes);

  // What to fetch beside other work: at most `bytes`.
  Ahead Beside(int64_t bytes);

 private:
  Ahead Next(int64_t bytes);

  const DecodeContext* context_ = nullptr;
  const DecodeItem* item_ = nullptr;
  int kv_head_ = 0;
  int num_heads_ = 0;
  int64_t end_ = 0;
  RunList list_;            // of the block that is being fetched
  int64_t next_block_ = 0;  // its end
  int index_ = 0;           // of the run, as in RunOrder
  int64_t offset_ = 0;      // in the run, bytes
  int64_t ahead_ = 0;       // bytes fetched that are not yet scored
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_KEY_FETCHER_H_
