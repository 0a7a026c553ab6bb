// The paged KV cache in host memory: [layer][page][K|V][kv_head][token][D], K also as [D][token] (KeyOrder).
#ifndef SANTA_KERNELS_CPU_KV_CACHE_H_
#define SANTA_KERNELS_CPU_KV_CACHE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/cpu/page_memory.h"
#include "kernels/cpu/sketches.h"
#include "kernels/cpu/thread_pool.h"

namespace santa::cpu {

// Storage, as kernels/attention.h defines it for a Backend. Not thread safe, but for reading rows.
class KvCache {
 public:
  // The layout must be valid. RESOURCE_EXHAUSTED where there is no memory for the pages.
  static absl::StatusOr<KvCache> Allocate(const KvLayout& layout, int32_t num_pages, ThreadPool& pool);

  const KvLayout& layout() const { return layout_; }
  int32_t num_pages() const { return num_pages_; }

  // K of one head of a page; V is value_offset() bytes further.
  const uint8_t* KeyRows(int32_t layer, int32_t page, int32_t kv_head) const {
    return memory_.data() + PageOffset(layer, page) + layout_.head_page_bytes() * kv_head;
  }
  const Sketches& sketches() const { return sketches_; }
  int64_t value_offset() const { return static_cast<int64_t>(layout_.layer_page_bytes() / 2); }

  void Append(const KvAppend& append, ThreadPool& pool);
  bool Compare(const KvAppend& append);
  void CopyPages(std::span<const PageCopy> copies);

 private:
  size_t PageOffset(int32_t layer, int32_t page) const {
    return (static_cast<size_t>(layer) * num_pages_ + page) * layout_.layer_page_bytes();
  }
  // Where a head of the page of a token begins, K first; and the token's row in it, of token-major numbers.
  uint8_t* HeadOf(const KvAppend& append, int64_t token, int32_t kv_head) const;
  size_t RowOffset(int64_t token) const { return layout_.row_bytes() * (token % layout_.page_size); }

  KvLayout layout_;
  int32_t num_pages_ = 0;
  PageMemory memory_;
  Sketches sketches_;
  std::vector<uint8_t> row_;     // one converted row
  std::vector<uint8_t> stored_;  // and one of feature-major keys, gathered
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_KV_CACHE_H_
