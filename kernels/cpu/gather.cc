#include "kernels/cpu/gather.h"

#include <bit>

namespace santa::cpu {

void Gatherer::Begin(const DecodeShape& shape) {
  const size_t size = static_cast<size_t>(shape.pitch_sum) * kBlockRows;
  counts_.AtLeast(size);
  weights_.AtLeast(size);
}

int Gatherer::Queue(const DecodeContext& context, const RunList& runs, const HeadVector* factors, float* sums) {
  Flush(context);
  const DecodeShape& shape = context.shape;
  const int64_t row_bytes = static_cast<int64_t>(context.cache.layout().row_bytes());
  sums_ = sums;
  int run = 0;
  int run_begin = 0;
  for (int group = 0; group * kRowGroup < runs.num_rows; ++group) {
    uint32_t drawn = drawn_[group];
    drawn_[group] = 0;
    for (; drawn != 0; drawn &= drawn - 1) {
      const int row = group * kRowGroup + std::countr_zero(drawn);
      while (row >= run_begin + runs.runs[run].num_rows) run_begin += runs.runs[run++].num_rows;
      const uint8_t* values = runs.runs[run].keys + context.cache.value_offset() + (row - run_begin) * row_bytes;
      for (int64_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(values + i, 0, 2);
      rows_[num_rows_] = values;
      for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
        const int pitch = shape.pitch(chunk);
        const int64_t base = static_cast<int64_t>(DecodeShape::first_lane(chunk)) * kBlockRows;
        float* counts = counts_.data() + base + row * pitch;
        float* weights = weights_.data() + base + num_rows_ * pitch;
        for (int lane = 0; lane < pitch; ++lane) {
          weights[lane] = counts[lane] * factors[chunk].lane[lane];
          counts[lane] = 0;
        }
      }
      ++num_rows_;
    }
  }
  return num_rows_;
}

void Gatherer::Flush(const DecodeContext& context) {
  if (num_rows_ == 0) return;
  const DecodeShape& shape = context.shape;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    context.kernels.accumulate(
        {.row_pointers = rows_,
         .num_rows = num_rows_,
         .head_dim = shape.head_dim,
         .heads = shape.heads(chunk),
         .weights = weights_.data() + static_cast<int64_t>(DecodeShape::first_lane(chunk)) * kBlockRows,
         .sums = sums_ + static_cast<int64_t>(chunk) * kChunkHeads * shape.padded_dim});
  }
  num_rows_ = 0;
}

}  // namespace santa::cpu
