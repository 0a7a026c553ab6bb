#include "kernels/cpu/gather.h"

#include <bit>

namespace santa::cpu {
namespace {

template <int kPitch>
void TakeCounts(float* counts, const HeadVector& factors, float* weights) {
  for (int lane = 0; lane < kPitch; ++lane) weights[lane] = counts[lane] * factors.lane[lane];
  for (int lane = 0; lane < kPitch; ++lane) counts[lane] = 0;
}

}  // namespace

void Gatherer::Begin(const DecodeShape& shape) {
  const size_t size = static_cast<size_t>(shape.pitch_sum) * kBlockRows;
  counts_.AtLeast(size);
  weights_.AtLeast(size);
  mass_sums_.AtLeast(size);
}

void Gatherer::StartBlock(const DecodeContext& context, const RunList& runs, const BlockArrays& arrays) {
  row_bytes_ = static_cast<int64_t>(context.cache.layout().row_bytes());
  num_block_rows_ = runs.num_rows;
  const uint8_t** row = values_;
  for (int run = 0; run < runs.count; ++run) {
    const uint8_t* values = runs.runs[run].keys + context.cache.value_offset();
    for (int i = 0; i < runs.runs[run].num_rows; ++i) *row++ = values + i * row_bytes_;
  }
  for (int chunk = 0; chunk < context.shape.num_chunks; ++chunk) {
    context.kernels.cumulate(arrays.chunk_masses(chunk), runs.num_rows, context.shape.pitch(chunk),
                             mass_sums_.data() + static_cast<int64_t>(DecodeShape::first_lane(chunk)) * kBlockRows);
  }
}

int Gatherer::Queue(const DecodeContext& context, const HeadVector* factors, float* sums) {
  Flush(context);
  const DecodeShape& shape = context.shape;
  sums_ = sums;
  for (int group = 0; group * kRowGroup < num_block_rows_; ++group) {
    uint32_t drawn = drawn_[group];
    drawn_[group] = 0;
    for (; drawn != 0; drawn &= drawn - 1) {
      const int row = group * kRowGroup + std::countr_zero(drawn);
      rows_[num_rows_] = values_[row];
      for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
        const int pitch = shape.pitch(chunk);
        const int64_t base = static_cast<int64_t>(DecodeShape::first_lane(chunk)) * kBlockRows;
        float* counts = counts_.data() + base + row * pitch;
        float* weights = weights_.data() + base + num_rows_ * pitch;
        if (pitch == kChunkHeads) {
          TakeCounts<kChunkHeads>(counts, factors[chunk], weights);
        } else if (pitch == 2) {
          TakeCounts<2>(counts, factors[chunk], weights);
        } else {
          TakeCounts<1>(counts, factors[chunk], weights);
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
