#include "kernels/cpu/key_fetcher.h"

#include <algorithm>

#include "kernels/cpu/unit.h"

namespace santa::cpu {
namespace {

constexpr int64_t kLeastAhead = 32 << 10;  // hides a miss
constexpr int64_t kMostAhead = 384 << 10;  // fits in the L2 cache of most CPUs, with what else is there

}  // namespace

void KeyFetcher::Begin(const DecodeContext& context, const DecodeItem& item, int kv_head, int num_heads, int64_t begin,
                       int64_t end) {
  context_ = &context;
  item_ = &item;
  kv_head_ = kv_head;
  num_heads_ = num_heads;
  end_ = end;
  list_ = {};
  next_block_ = context.cache.layout().key_order == KeyOrder::kFeatureMajor ? end : begin;
  index_ = 0;
  offset_ = 0;
  ahead_ = 0;
  // What is scored at once needs no fetching.
  while (ahead_ < kLeastAhead && Next(kLeastAhead).bytes > 0) continue;
}

Ahead KeyFetcher::WhileScoring(int64_t bytes) {
  ahead_ -= bytes;
  // With much in stock half is enough: the rest is fetched beside other work.
  return Next(ahead_ < kLeastAhead ? bytes : bytes / 2);
}

Ahead KeyFetcher::Beside(int64_t bytes) { return ahead_ + bytes <= kMostAhead ? Next(bytes) : Ahead{}; }

// Of one run, whose memory is in one piece.
Ahead KeyFetcher::Next(int64_t bytes) {
  if (index_ == list_.count * num_heads_) {
    if (next_block_ == end_) return {};
    const int64_t block_end = BlockEnd(next_block_, end_);
    list_ = ListRuns(*context_, *item_, kv_head_, next_block_, block_end);
    next_block_ = block_end;
    index_ = 0;
  }
  const RunOrder order = {*context_, list_, num_heads_, /*values=*/false};
  const int64_t run_bytes =
      static_cast<int64_t>(context_->cache.layout().row_bytes()) * list_.runs[index_ / num_heads_].num_rows;
  const Ahead next = {order.rows(index_) + offset_, std::min(bytes, run_bytes - offset_)};
  offset_ += next.bytes;
  if (offset_ == run_bytes) {
    ++index_;
    offset_ = 0;
  }
  ahead_ += next.bytes;
  return next;
}

}  // namespace santa::cpu
