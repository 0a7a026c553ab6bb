// One wave of decode items: everything the kernels need packed into one buffer and brought to the device at once, on a
// stream of its own so that it is there before the kernels of the wave ahead have ended; with it come queries that lie
// in mapped memory. Kernels write answers into pinned memory, or straight to where they are wanted if that is mapped.
#ifndef SANTA_KERNELS_CUDA_DECODE_WAVE_H_
#define SANTA_KERNELS_CUDA_DECODE_WAVE_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/cuda/decode_plan.h"
#include "kernels/cuda/decode_scratch.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/kv_cache.h"
#include "kernels/cuda/wave_end.h"

namespace santa::cuda {

// Not thread safe. Fill, Queue, then Deliver once it has ended; then again.
class DecodeWave {
 public:
  static absl::StatusOr<DecodeWave> Allocate(const KvLayout& layout, const WaveLimits& limits);

  // Packs as many of the first items as there is room for, at least one; how many. All that their pointers name may
  // change afterwards but for the outputs and what is mapped. INVALID_ARGUMENT where even the first does not fit.
  absl::StatusOr<size_t> Fill(std::span<const DecodeItem> items, const KvCache& cache, const DecodeScratch& scratch);

  // Queues the upload on `uploads`, with it the storing of `tokens`, and behind them the kernels on `stream`. No tokens
  // while `stream` is at work.
  absl::Status Queue(const DecodeScratch& scratch, const KvAppendLaunch& tokens, cudaStream_t stream,
                     cudaStream_t uploads);
  // Each of these alone. The kernels may run over again: each time they write the same answers.
  absl::Status QueueUpload(const KvAppendLaunch& tokens, cudaStream_t stream);
  absl::Status QueueKernels(const DecodeScratch& scratch, cudaStream_t stream);
  // Whether what was queued last has ended. A look at memory: no call of CUDA.
  bool ended() const;

  // Writes the answers where the items wanted them. Returns the seconds for which the wave had the device: from the end
  // of the wave ahead, or the start of the upload, to the last kernel's end.
  double Deliver();

 private:
  // What an item's kernels count.
  struct ReadCounts {
    unsigned long long value_rows = 0;    // where rows are drawn
    unsigned long long key_features = 0;  // with score draws
  };
  // Where an item's answers go.
  struct Output {
    void* o = nullptr;
    size_t o_bytes = 0;
    size_t o_at = 0;  // in the buffer: in the pinned one where `o` is wanted and not mapped, else in the device's
    float* lse = nullptr;
    float* relative_standard_error = nullptr;
    DecodeStatistics* statistics = nullptr;
    bool mapped = false;  // o and lse: the kernels have written them
    QueryFault* query_fault = nullptr;
    size_t faults_at = 0;  // of a query that is fetched: a word for each piece, in the pinned buffer
    int32_t num_faults = 0;
    DType io_dtype = DType::kFloat32;
  };

  size_t PlanItems(std::span<const DecodeItem> items);
  void Place(std::span<const DecodeItem> items);
  void Pack(std::span<const DecodeItem> items, const KvCache& cache);
  void PackStored(std::span<const DecodeItem> items, uint8_t* scratch);
  QueryFault FindFault(const Output& output) const;
  WaveWord* word() const { return reinterpret_cast<WaveWord*>(host_at(word_at_)); }
  uint8_t* host_at(size_t offset) const { return static_cast<uint8_t*>(pinned_.get()) + offset; }
  uint8_t* device_at(size_t offset) const { return static_cast<uint8_t*>(device_.get()) + offset; }
  size_t query_bytes(DType dtype) const {
    return static_cast<size_t>(layout_.num_query_heads) * layout_.head_dim * SizeOf(dtype);
  }

  KvLayout layout_;
  WaveLimits limits_;
  PinnedMemory pinned_;
  DeviceMemory device_;
  Event uploaded_;
  uint64_t number_ = 0;  // of what was queued last

  // Of the wave at hand. Regions of the buffer, in this order; what is brought ends after `rows`, where the counts are
  // 0. Behind it lie queries that are fetched, in the device's buffer, and in the host's how.
  size_t items_at_ = 0, stored_at_ = 0, arrays_at_ = 0, numbers_at_ = 0, work_at_ = 0, tables_at_ = 0, sinks_at_ = 0,
         queries_at_ = 0, rows_at_ = 0, fetched_at_ = 0, fetches_at_ = 0, faults_at_ = 0, lse_at_ = 0, errors_at_ = 0;
  // At the end of the buffer, and of every wave: in the pinned one its word, in the device's when its upload began.
  size_t word_at_ = 0;
  size_t upload_bytes_ = 0;
  int32_t num_fetches_ = 0;
  int32_t most_fetched_bytes_ = 0;  // by one of them
  bool converts_queries_ = false;
  bool counts_rows_ = false;  // for any item: then these come down
  int32_t num_stored_ = 0;    // items of Kernel::kStoredScores: their numbers are the first in their region
  std::array<int32_t, kNumKernels> num_pilots_ = {};  // items of each kernel that have one: the last
  bool long_lines_ = false;
  int32_t most_prop_splits_ = 0;
  int32_t longest_split_ = 0;  // of them, in tokens
  int32_t most_rows_ = 0;      // that a group may read of any of them
  bool has_targets_ = false;
  std::vector<ItemPlan> plans_;
  std::vector<Output> outputs_;
  std::vector<int32_t> order_;
  std::array<WorkRange, kNumKernels> ranges_;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_DECODE_WAVE_H_
