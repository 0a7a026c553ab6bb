// Sequences to decode, the same for every method.
#ifndef SANTA_KERNELS_BENCH_WORKLOAD_H_
#define SANTA_KERNELS_BENCH_WORKLOAD_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "kernels/bench/options.h"
#include "kernels/bench/random_rows.h"
#include "kernels/reference/estimators.h"

namespace santa::bench {

// Several batches of sequences in shuffled pages, more than the caches hold: successive calls decode different ones.
// Keys, values and queries are random (kernels/bench/random_rows.h), or those of --input.
class Workload {
 public:
  // INVALID_ARGUMENT for an --input that does not fit.
  static absl::StatusOr<Workload> Make(const Options& options);

  int64_t num_slots() const { return num_slots_; }
  int32_t num_pages() const { return static_cast<int32_t>(page_table_.size()); }
  // Bytes of K and V that one batch of EXACT reads.
  int64_t dense_bytes() const;

  // Appends every sequence.
  absl::Status Store(Backend& backend) const;

  struct Call {
    double seconds = 0;
    DecodeStatistics statistics;                 // summed over the batch
    std::vector<float> o;                        // [batch][H][D]
    std::vector<float> lse;                      // [batch][H]
    std::vector<float> relative_standard_error;  // [batch][H]; empty where it was not asked for
  };
  // The items of one Decode call on a slot, to be timed and not answered: queries as the kernels take them (bf16 for a
  // bf16 cache, else fp16), and no outputs.
  std::vector<DecodeItem> TimedItems(Method method, int64_t slot, uint64_t draw_seed) const;

  // One Decode call on a slot.
  absl::StatusOr<Call> Decode(Backend& backend, Method method, int64_t slot, uint64_t draw_seed) const;

  // What EXACT gives for the slot's first sequence, in fp64.
  reference::Output Reference(int64_t slot) const;

 private:
  explicit Workload(const Options& options);
  absl::Status ReadInput();
  // Of --input.
  int64_t Source(int64_t item, int64_t kv_head) const { return (item * options_.kv_heads + kv_head) % sources_; }

  const int32_t* PageTable(int64_t slot, int64_t item) const {
    return page_table_.data() + slot * pages_per_slot_ + first_page_[item];
  }
  // The row of one token and head of a sequence to `row`, [D].
  void CopyRow(int64_t sequence, int64_t token, int64_t kv_head, bool value, float* row) const;

  Options options_;
  std::vector<int64_t> tokens_;      // [batch]
  std::vector<int64_t> first_page_;  // [batch], in a slot's tables
  int64_t pages_per_slot_ = 0;
  int64_t num_slots_;
  std::vector<int32_t> page_table_;   // [slot][pages of its sequences]
  std::optional<RandomRows> random_;  // unless there is an --input
  int64_t sources_ = 0;
  int64_t source_tokens_ = 0;
  std::vector<float> keys_;  // [source][token][D]
  std::vector<float> values_;
  std::vector<float> queries_;           // [batch][H][D]
  std::vector<uint16_t> timed_queries_;  // the same, as TimedItems has them
  // What a server asks for beside the outputs; where timed steps say so, and nobody looks.
  mutable std::vector<DecodeStatistics> timed_statistics_;
  mutable std::vector<float> timed_errors_;
};

}  // namespace santa::bench

#endif  // SANTA_KERNELS_BENCH_WORKLOAD_H_
