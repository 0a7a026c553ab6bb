#include "kernels/cpu/kv_cache.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/convert.h"

namespace santa::cpu {
namespace {

constexpr int64_t kTokensPerTask = 64;
constexpr size_t kMaxRowBytes = 256 * sizeof(float);

// A token's row of feature-major keys: numbers of `size` bytes that are `stride` bytes apart, from `first` on.
struct Column {
  uint8_t* first;
  size_t stride;
  size_t size;
  int32_t count;

  void Scatter(const uint8_t* row) const {
    for (int32_t j = 0; j < count; ++j) std::memcpy(first + j * stride, row + j * size, size);
  }
  void Gather(uint8_t* row) const {
    for (int32_t j = 0; j < count; ++j) std::memcpy(row + j * size, first + j * stride, size);
  }
};

Column ColumnOf(const KvLayout& layout, uint8_t* head, int64_t token) {
  const size_t size = SizeOf(layout.dtype);
  return {head + token % layout.page_size * size, layout.page_size * size, size, layout.head_dim};
}

}  // namespace

absl::StatusOr<KvCache> KvCache::Allocate(const KvLayout& layout, int32_t num_pages, ThreadPool& pool) {
  size_t layer_bytes = 0;
  size_t bytes = 0;
  if (__builtin_mul_overflow(layout.layer_page_bytes(), static_cast<size_t>(num_pages), &layer_bytes) ||
      __builtin_mul_overflow(layer_bytes, static_cast<size_t>(layout.num_layers), &bytes) ||
      bytes > std::numeric_limits<size_t>::max() / 4) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a KV cache of ", num_pages, " pages of ", layout.page_bytes(), " bytes has no address"));
  }
  absl::StatusOr<PageMemory> memory = PageMemory::Allocate(bytes, pool);
  if (!memory.ok()) return memory.status();
  KvCache cache;
  cache.layout_ = layout;
  cache.num_pages_ = num_pages;
  cache.memory_ = *std::move(memory);
  absl::StatusOr<Sketches> sketches = Sketches::Allocate(layout, num_pages, pool);
  if (!sketches.ok()) return sketches.status();
  cache.sketches_ = *std::move(sketches);
  cache.row_.resize(layout.row_bytes());
  cache.stored_.resize(layout.row_bytes());
  return cache;
}

uint8_t* KvCache::HeadOf(const KvAppend& append, int64_t token, int32_t kv_head) const {
  const int32_t page = append.page_table[token / layout_.page_size];
  return memory_.data() + PageOffset(append.layer, page) + layout_.head_page_bytes() * kv_head;
}

void KvCache::Append(const KvAppend& append, ThreadPool& pool) {
  const size_t head_bytes = static_cast<size_t>(layout_.head_dim) * SizeOf(append.dtype);
  const auto* k = static_cast<const uint8_t*>(append.k);
  const auto* v = static_cast<const uint8_t*>(append.v);
  pool.ParallelFor((append.num_tokens + kTokensPerTask - 1) / kTokensPerTask, [&](int64_t task, int) {
    const int64_t end = std::min((task + 1) * kTokensPerTask, append.num_tokens);
    for (int64_t token = task * kTokensPerTask; token < end; ++token) {
      for (int32_t head = 0; head < layout_.num_kv_heads; ++head) {
        const size_t source = (static_cast<size_t>(token) * layout_.num_kv_heads + head) * head_bytes;
        const int64_t position = append.position + token;
        uint8_t* of_head = HeadOf(append, position, head);
        uint8_t* row = of_head + RowOffset(position);
        if (layout_.key_order == KeyOrder::kFeatureMajor) {
          std::array<uint8_t, kMaxRowBytes> key;
          Convert(append.dtype, k + source, layout_.dtype, key.data(), layout_.head_dim);
          ColumnOf(layout_, of_head, position).Scatter(key.data());
        } else {
          Convert(append.dtype, k + source, layout_.dtype, row, layout_.head_dim);
        }
        Convert(append.dtype, v + source, layout_.dtype, row + value_offset(), layout_.head_dim);
      }
    }
  });
  if (layout_.sketch == Sketch::kNone) return;
  // Pages whose last token this was.
  const int64_t first = append.position / layout_.page_size;
  const int64_t end = (append.position + append.num_tokens) / layout_.page_size;
  pool.ParallelFor((end - first) * layout_.num_kv_heads, [&](int64_t task, int) {
    const int32_t page = append.page_table[first + task / layout_.num_kv_heads];
    const auto head = static_cast<int32_t>(task % layout_.num_kv_heads);
    const uint8_t* keys = KeyRows(append.layer, page, head);
    sketches_.Build(append.layer, page, head, keys, keys + value_offset());
  });
}

bool KvCache::Compare(const KvAppend& append) {
  const size_t head_bytes = static_cast<size_t>(layout_.head_dim) * SizeOf(append.dtype);
  const auto matches = [&](const void* tensor, size_t source, const uint8_t* row) {
    Convert(append.dtype, static_cast<const uint8_t*>(tensor) + source, layout_.dtype, row_.data(), layout_.head_dim);
    return std::memcmp(row_.data(), row, row_.size()) == 0;
  };
  for (int64_t token = 0; token < append.num_tokens; ++token) {
    for (int32_t head = 0; head < layout_.num_kv_heads; ++head) {
      const size_t source = (static_cast<size_t>(token) * layout_.num_kv_heads + head) * head_bytes;
      const int64_t position = append.position + token;
      uint8_t* of_head = HeadOf(append, position, head);
      const uint8_t* row = of_head + RowOffset(position);
      const uint8_t* key = row;
      if (layout_.key_order == KeyOrder::kFeatureMajor) {
        ColumnOf(layout_, of_head, position).Gather(stored_.data());
        key = stored_.data();
      }
      if (!matches(append.k, source, key) || !matches(append.v, source, row + value_offset())) return false;
    }
  }
  return true;
}

void KvCache::CopyPages(std::span<const PageCopy> copies) {
  for (const PageCopy& copy : copies) {
    for (int32_t layer = 0; layer < layout_.num_layers; ++layer) {
      std::memcpy(memory_.data() + PageOffset(layer, copy.to), memory_.data() + PageOffset(layer, copy.from),
                  layout_.layer_page_bytes());
    }
  }
  sketches_.CopyPages(copies);
}

}  // namespace santa::cpu
