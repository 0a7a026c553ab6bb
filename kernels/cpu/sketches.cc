#include "kernels/cpu/sketches.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cpu/convert.h"
#include "kernels/sampling/sketch.h"

namespace santa::cpu {
namespace {

// One head of a page in fp32 and what becomes of it.
struct Columns {
  std::vector<float> rows;  // [token][D]
  std::vector<float> low, high, step, inverse;
};

// Ranges of the columns, and low and step into `halves`. A number that is none is passed over.
void FindRanges(const KvLayout& layout, int bits, Columns& columns, uint16_t* halves) {
  const int dims = layout.head_dim;
  columns.low.assign(dims, std::numeric_limits<float>::infinity());
  columns.high.assign(dims, -std::numeric_limits<float>::infinity());
  for (int t = 0; t < layout.page_size; ++t) {
    const float* row = columns.rows.data() + static_cast<size_t>(t) * dims;
    for (int d = 0; d < dims; ++d) {
      columns.low[d] = row[d] < columns.low[d] ? row[d] : columns.low[d];
      columns.high[d] = row[d] > columns.high[d] ? row[d] : columns.high[d];
    }
  }
  columns.step.resize(dims);
  columns.inverse.resize(dims);
  for (int d = 0; d < dims; ++d) {
    const sampling::ColumnRange range = sampling::RangeOf(columns.low[d], columns.high[d], bits);
    halves[d] = Fp16FromFloat(range.low);
    halves[dims + d] = Fp16FromFloat(range.step);
    columns.low[d] = FloatFromFp16(halves[d]);
    columns.step[d] = FloatFromFp16(halves[dims + d]);
    columns.inverse[d] = 1 / columns.step[d];
  }
}

// place(token, d, code)
template <typename Place>
void PlaceCodes(const KvLayout& layout, int bits, const Columns& columns, Place place) {
  const int dims = layout.head_dim;
  for (int t = 0; t < layout.page_size; ++t) {
    const float* row = columns.rows.data() + static_cast<size_t>(t) * dims;
    for (int d = 0; d < dims; ++d) {
      place(t, d, static_cast<uint8_t>(sampling::CodeOf(row[d], columns.low[d], columns.inverse[d], bits)));
    }
  }
}

}  // namespace

absl::StatusOr<Sketches> Sketches::Allocate(const KvLayout& layout, int32_t num_pages, ThreadPool& pool) {
  Sketches sketches;
  sketches.layout_ = layout;
  sketches.num_pages_ = num_pages;
  sketches.key_bytes_ = layout.sketch_head_bytes(KeyBits(layout.sketch));
  sketches.value_bytes_ = layout.sketch_head_bytes(ValueBits(layout.sketch));
  if (layout.sketch == Sketch::kNone) return sketches;
  // Smaller than the pages, whose size KvCache has checked.
  absl::StatusOr<PageMemory> memory =
      PageMemory::Allocate(layout.sketch_page_bytes() * static_cast<size_t>(num_pages), pool);
  if (!memory.ok()) return memory.status();
  sketches.memory_ = *std::move(memory);
  return sketches;
}

void Sketches::Build(int32_t layer, int32_t page, int32_t kv_head, const uint8_t* keys, const uint8_t* values) {
  thread_local Columns columns;
  const size_t count = static_cast<size_t>(layout_.page_size) * layout_.head_dim;
  columns.rows.resize(count);
  uint8_t* head = HeadAt(layer, page, kv_head);
  const int key_bits = KeyBits(layout_.sketch);
  const int tokens = layout_.page_size;
  Convert(layout_.dtype, keys, DType::kFloat32, columns.rows.data(), count);
  FindRanges(layout_, key_bits, columns, reinterpret_cast<uint16_t*>(head + CodeBytes(key_bits)));
  if (key_bits == 8) {
    PlaceCodes(layout_, key_bits, columns,
               [=](int t, int d, uint8_t code) { head[(d / 4 * tokens + t) * 4 + d % 4] = code; });
  } else {
    PlaceCodes(layout_, key_bits, columns, [=](int t, int d, uint8_t code) {
      uint8_t& byte = head[(d / 8 * tokens + t) * 4 + d % 4];
      byte = d % 8 < 4 ? code : static_cast<uint8_t>(byte | code << 4);
    });
  }
  const int value_bits = ValueBits(layout_.sketch);
  if (value_bits == 0) return;
  head += key_bytes_;
  const int dims = layout_.head_dim;
  Convert(layout_.dtype, values, DType::kFloat32, columns.rows.data(), count);
  FindRanges(layout_, value_bits, columns, reinterpret_cast<uint16_t*>(head + CodeBytes(value_bits)));
  if (value_bits == 8) {
    PlaceCodes(layout_, value_bits, columns, [=](int t, int d, uint8_t code) { head[t * dims + d] = code; });
  } else {
    PlaceCodes(layout_, value_bits, columns, [=](int t, int d, uint8_t code) {
      uint8_t& byte = head[t * dims / 2 + d % (dims / 2)];
      byte = d < dims / 2 ? code : static_cast<uint8_t>(byte | code << 4);
    });
  }
}

void Sketches::CopyPages(std::span<const PageCopy> copies) {
  const size_t bytes = (key_bytes_ + value_bytes_) * layout_.num_kv_heads;
  if (bytes == 0) return;
  for (const PageCopy& copy : copies) {
    for (int32_t layer = 0; layer < layout_.num_layers; ++layer) {
      std::memcpy(HeadAt(layer, copy.to, 0), HeadAt(layer, copy.from, 0), bytes);
    }
  }
}

}  // namespace santa::cpu
