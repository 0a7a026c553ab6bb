// The sketches (kernels/sampling/sketch.h) of a KvCache's full pages: memory beside the pages', with the same page ids.
//
// Of one head of one page: codes of K; low[D] and step[D] of K, each in half precision; then, where values are
// sketched, the same of V.
//
// Codes of K are stored in fours of features, token by token, so that a 32-bit lane of a vector holds features of one
// token, and a vector those of neighbouring tokens: no sum goes across lanes.
//
//     8 bits: byte [d / 4][token][d % 4]
//     4 bits: byte [d / 8][token][d % 4], low half: d % 8 < 4, high half: the others
//
// Codes of V lie row by row: 8 bits: byte [token][d]; 4 bits: byte [token][d % (D / 2)], low half: d < D / 2.
#ifndef SANTA_KERNELS_CPU_SKETCHES_H_
#define SANTA_KERNELS_CPU_SKETCHES_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/cpu/page_memory.h"
#include "kernels/cpu/thread_pool.h"

namespace santa::cpu {

// Of one head of one page, of K or of V.
struct SketchView {
  const uint8_t* codes;
  const uint16_t* low;   // [D], half precision
  const uint16_t* step;  // [D]
};

class Sketches {
 public:
  // Nothing for a layout without a sketch. RESOURCE_EXHAUSTED where the system has not got the memory.
  static absl::StatusOr<Sketches> Allocate(const KvLayout& layout, int32_t num_pages, ThreadPool& pool);

  SketchView Keys(int32_t layer, int32_t page, int32_t kv_head) const {
    return View(HeadAt(layer, page, kv_head), KeyBits(layout_.sketch));
  }
  SketchView Values(int32_t layer, int32_t page, int32_t kv_head) const {
    return View(HeadAt(layer, page, kv_head) + key_bytes_, ValueBits(layout_.sketch));
  }

  // Makes the sketch of one head of a page from its rows of K and V, of the layout's dtype. Thread safe for different
  // heads and pages.
  void Build(int32_t layer, int32_t page, int32_t kv_head, const uint8_t* keys, const uint8_t* values);

  void CopyPages(std::span<const PageCopy> copies);

 private:
  uint8_t* HeadAt(int32_t layer, int32_t page, int32_t kv_head) const {
    const size_t pages = static_cast<size_t>(layer) * num_pages_ + page;
    return memory_.data() + (pages * layout_.num_kv_heads + kv_head) * (key_bytes_ + value_bytes_);
  }
  size_t CodeBytes(int bits) const { return static_cast<size_t>(layout_.page_size) * layout_.head_dim * bits / 8; }
  SketchView View(const uint8_t* head, int bits) const {
    const auto* halves = reinterpret_cast<const uint16_t*>(head + CodeBytes(bits));
    return {head, halves, halves + layout_.head_dim};
  }

  KvLayout layout_;
  int32_t num_pages_ = 0;
  size_t key_bytes_ = 0;  // of one head of one page
  size_t value_bytes_ = 0;
  PageMemory memory_;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_SKETCHES_H_
