// Exact attention in this process, in fp32: the prefill's, and the yardstick for the server's answers.
#ifndef SANTA_CLIENT_EXAMPLES_LOCAL_ATTENTION_H_
#define SANTA_CLIENT_EXAMPLES_LOCAL_ATTENTION_H_

#include <cstdint>
#include <map>
#include <span>

#include "client/examples/attention_provider.h"
#include "client/examples/kv_history.h"
#include "client/examples/thread_pool.h"

namespace santa {

// Causal attention of n queries at positions first, first + 1, ... over the history, which holds them already.
// q and o: [n][H][D], H a multiple of the history's heads; scale 1 / sqrt(D). Blocked with a running softmax
// (FlashAttention, arXiv 2205.14135), threads over heads and blocks of queries.
void AttendCausal(const KvHistory& history, int32_t layer, int64_t first, int64_t n, int32_t num_query_heads,
                  const float* q, float* o, ThreadPool& pool);

class LocalAttention : public AttentionProvider {
 public:
  // `pool` must outlive it.
  LocalAttention(int32_t num_query_heads, ThreadPool* pool) : num_query_heads_(num_query_heads), pool_(pool) {}

  int64_t Add(KvHistory history);

  absl::StatusOr<int64_t> Fork(int64_t parent, uint64_t sampling_key) override;
  absl::Status Release(int64_t sequence) override;
  absl::Status Attend(int32_t layer, std::span<const AttentionStep> steps) override;

 private:
  int32_t num_query_heads_;
  ThreadPool* pool_;
  int64_t next_ = 0;
  std::map<int64_t, KvHistory> sequences_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_LOCAL_ATTENTION_H_
