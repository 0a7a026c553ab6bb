// Device memory in which the kernels of a wave leave what nobody else sees, and how much of it a wave may have.
#ifndef SANTA_KERNELS_CUDA_DECODE_SCRATCH_H_
#define SANTA_KERNELS_CUDA_DECODE_SCRATCH_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/decode_plan.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/group_layout.h"

namespace santa::cuda {

// The method that an item's stored scores are for.
Method StoredMethod(const ItemPlan& plan, const DecodeItem& item);
// Scratch that the item's scores take; and where it lies of an item whose kernel draws by group.
int64_t StoredBytes(const ItemPlan& plan, const DecodeItem& item, const KvLayout& layout);
GroupArrays ArraysOf(uint8_t* scratch, Method method, const KvLayout& layout, const ItemPlan& plan);

// What one wave can hold. A single item always fits.
struct WaveLimits {
  int32_t items = 0;
  int32_t splits = 0;         // of all items
  int64_t table_entries = 0;  // of all page tables
  int64_t stored_bytes = 0;   // of scratch for stored scores

  // Scratch for stored scores, unless one item wants more or all items together less.
  static constexpr int64_t kStoredBytes = int64_t{512} << 20;
  static WaveLimits For(const KvLayout& layout, int32_t num_pages);
};

// Device memory in which an item's queries are brought into the form in which the kernels take them.
size_t QueryScratchBytes(const KvLayout& layout);

// Device memory in which waves leave what only the kernels see. Waves on one stream share it.
class DecodeScratch {
 public:
  static absl::StatusOr<DecodeScratch> Allocate(const KvLayout& layout, const WaveLimits& limits, cudaStream_t stream);

  // A launch over nothing yet.
  DecodeLaunch launch(const KvLayout& layout) const;
  void* queries() const { return queries_.get(); }  // [items] of QueryScratchBytes
  uint8_t* stored() const { return static_cast<uint8_t*>(stored_.get()); }
  uint64_t* last_end() const { return static_cast<uint64_t*>(last_end_.get()); }  // of waves: WaveEnd's

 private:
  DeviceMemory partial_o_;
  DeviceMemory partial_max_sum_;
  DeviceMemory partial_errors_;
  DeviceMemory tickets_;  // DecodeLaunch::tickets, then its next_unit
  size_t num_tickets_ = 0;
  DeviceMemory queries_;
  DeviceMemory stored_;
  DeviceMemory last_end_;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_DECODE_SCRATCH_H_
