// The paged KV cache in device memory: [layer][page][K|V][kv_head][token][D], or [D][token] where keys are
// feature-major, and beside it, where the layout has a sketch, that of every page: [layer][page][kv_head]
// (kernels/cuda/sketch_layout.h), true of full pages.
#ifndef SANTA_KERNELS_CUDA_KV_CACHE_H_
#define SANTA_KERNELS_CUDA_KV_CACHE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/staging.h"

namespace santa::cuda {

// Storage, as kernels/attention.h defines it for a Backend; work is queued on one stream. Not thread safe.
class KvCache {
 public:
  // Layout and scales must be valid. RESOURCE_EXHAUSTED where the device has not got the memory.
  static absl::StatusOr<KvCache> Allocate(const KvLayout& layout, int32_t num_pages, const KvScales& scales,
                                          cudaStream_t stream);

  // Device memory: a layer's pool, and its scales, [2][H_kv] (null: all 1).
  const void* layer(int32_t layer) const {
    return static_cast<const uint8_t*>(pool_.get()) + layout_.layer_page_bytes() * num_pages_ * layer;
  }
  const float* scales(int32_t layer) const {
    if (scales_ == nullptr) return nullptr;
    return static_cast<const float*>(scales_.get()) + static_cast<size_t>(2) * layout_.num_kv_heads * layer;
  }

  const void* sketch(int32_t layer) const {
    return static_cast<const uint8_t*>(sketch_.get()) + sketch_layer_page_bytes() * num_pages_ * layer;
  }

  // Returns once the tokens, but those that are mapped, are in pinned memory. Their way into the cache is queued then,
  // or in the next call of any of these: a few tokens are kept, as a wave may take them along.
  absl::Status Append(std::span<const KvAppend> appends);
  absl::Status QueueKept();
  // What is kept, for the caller to queue ahead of a wave; without tokens where nothing is. Then, with the stream that
  // it was queued on, KeptIsQueued.
  const KvAppendLaunch& kept() const { return kept_.launch; }
  absl::Status KeptIsQueued(cudaStream_t stream);
  // Whether anything was queued on the cache's own stream since the last KeptIsQueued, and so behind no wave.
  bool queued_alone() const { return queued_alone_; }
  // Waits for the answer.
  absl::Status Compare(std::span<const KvAppend> appends, std::span<bool> matches);
  absl::Status CopyPages(std::span<const PageCopy> copies);

 private:
  // Tokens [first, first + count) of one append.
  struct Piece {
    size_t append = 0;
    int64_t first = 0;
    int64_t count = 0;
  };
  // Pieces of appends of one source type, on their way to the device.
  struct Wave {
    Staging::Slot* slot = nullptr;
    KvAppendLaunch launch;
  };

  // Where the next piece starts: token `first` of append `append`.
  struct Cursor {
    size_t append = 0;
    int64_t first = 0;
  };
  bool TakePieces(std::span<const KvAppend> appends, Cursor& cursor);
  absl::StatusOr<Wave> FillWave(std::span<const KvAppend> appends);
  absl::Status QueueCopies(std::span<const PageCopy> copies);
  absl::Status SketchFullPages(std::span<const KvAppend> appends);
  absl::Status QueueSketches();
  size_t sketch_layer_page_bytes() const { return layout_.sketch_page_bytes() / layout_.num_layers; }
  size_t token_bytes(DType source) const {
    return static_cast<size_t>(layout_.num_kv_heads) * layout_.head_dim * SizeOf(source);
  }

  KvLayout layout_;
  int32_t num_pages_ = 0;
  cudaStream_t stream_ = nullptr;
  DeviceMemory pool_;
  DeviceMemory sketch_;  // or null
  DeviceMemory scales_;  // [layer][2][H_kv], or null
  Staging staging_;
  Wave kept_;
  bool queued_alone_ = false;

  // Kept from call to call for their memory.
  std::vector<Piece> pieces_;
  std::vector<int64_t> full_pages_;  // layer * num_pages + page
  absl::flat_hash_set<int32_t> read_, written_;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_KV_CACHE_H_
