#include "kernels/cpu/gather.h"

#include <algorithm>
#include <bit>

#include "kernels/sampling/draws.h"

namespace santa::cpu {
namespace {

template <int kPitch>
void TakeCounts(const float* counts, const HeadVector& factors, float* weights) {
  for (int lane = 0; lane < kPitch; ++lane) weights[lane] = counts[lane] * factors.lane[lane];
}

}  // namespace

void Gatherer::Begin(const DecodeContext& context, bool independent) {
  const DecodeShape& shape = context.shape;
  chain_.Begin(context, independent);
  block_below_.AtLeast(shape.group);
  const size_t size = static_cast<size_t>(shape.pitch_sum) * kBlockRows;
  counts_.AtLeast(size);
  weights_.AtLeast(size);
  mass_sums_.AtLeast(size);
}

void Gatherer::StartBlock(const DecodeContext& context, const RunList& runs) {
  const auto row_bytes = static_cast<int64_t>(context.cache.layout().row_bytes());
  num_block_rows_ = runs.num_rows;
  const uint8_t** row = values_;
  for (int run = 0; run < runs.count; ++run) {
    const uint8_t* values = runs.runs[run].values;
    for (int i = 0; i < runs.runs[run].num_rows; ++i) *row++ = values + i * row_bytes;
  }
}

void Gatherer::ClearChunk(const DecodeContext& context, const BlockArrays& arrays, int chunk) {
  const int pitch = context.shape.pitch(chunk);
  std::fill_n(counts_.data() + FirstOf(chunk), kBlockRows * pitch, 0.0f);
  context.kernels.cumulate(arrays.chunk_masses(chunk), num_block_rows_, pitch, mass_sums_.data() + FirstOf(chunk));
}

void Gatherer::DrawSystematically(const DecodeContext& context, const BlockArrays& arrays, int chunk,
                                  SystematicDraws* of_heads, const Ahead& ahead) {
  const DecodeShape& shape = context.shape;
  const int pitch = shape.pitch(chunk);
  SystematicArgs args = {.masses = arrays.chunk_masses(chunk),
                         .num_rows = num_block_rows_,
                         .pitch = pitch,
                         .draws_per_mass = {},
                         .phase = {},
                         .below = {},
                         .ahead = ahead};
  bool exact_in_double = true;
  for (int lane = 0; lane < 4; ++lane) {
    const int head = lane % pitch;
    const bool none = head >= shape.heads(chunk) || of_heads[head].draws == 0;
    const double total = none ? 1 : static_cast<double>(of_heads[head].total);
    args.draws_per_mass[lane] = none ? 0 : of_heads[head].draws / total;
    args.phase[lane] = none ? 0.5 : static_cast<double>(of_heads[head].offset) / total;
    args.below[lane] = none ? 0 : static_cast<double>(of_heads[head].below);
    exact_in_double = exact_in_double && total < 0x1p53;
  }
  uint16_t drawn[kBlockGroups];
  if (exact_in_double && context.kernels.systematic_counts(args, counts_.data() + FirstOf(chunk), drawn)) {
    for (int group = 0; group < kBlockGroups; ++group)
      drawn_[group] = static_cast<uint16_t>(drawn_[group] | drawn[group]);
    for (int head = 0; head < shape.heads(chunk); ++head) {
      of_heads[head].below += MassOfBlock(shape, arrays, num_block_rows_, chunk * kChunkHeads + head);
    }
    return;
  }
  ClearChunk(context, arrays, chunk);
  for (int head = 0; head < shape.heads(chunk); ++head) {
    SystematicDraws& draws = of_heads[head];
    if (draws.draws == 0) continue;
    const sampling::DrawGrid grid = sampling::MakeDrawGrid(draws.total, draws.draws);
    const uint32_t first = sampling::SystematicDrawsBelow(grid, draws.below, draws.offset);
    if (first == draws.draws) continue;
    sampling::SystematicCursor cursor(grid, draws.offset, first);
    Draw(shape, chunk * kChunkHeads + head, &draws.below, cursor);
  }
}

// Of one row of the block, which some head drew.
void Gatherer::AddErrors(const DecodeShape& shape, const BlockArrays& arrays, const DrawErrors& errors, int row) {
  using Design = DrawErrors::Design;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    const int64_t first = int64_t{row} * shape.pitch(chunk);
    const float* counts = counts_.data() + FirstOf(chunk) + first;
    const uint32_t* masses = arrays.chunk_masses(chunk) + first;
    const uint64_t* through = mass_sums_.data() + FirstOf(chunk) + first;
    uint32_t drawn = 0;
    for (int lane = 0; lane < shape.heads(chunk); ++lane) drawn |= static_cast<uint32_t>(counts[lane] != 0) << lane;
    for (; drawn != 0; drawn &= drawn - 1) {
      const int lane = std::countr_zero(drawn);
      const int head = chunk * kChunkHeads + lane;
      float t = counts[lane];
      if (errors.design == Design::kSystematic) {
        t = sampling::Fluctuation(static_cast<float>(masses[lane]) * static_cast<float>(errors.draws_per_mass[head]));
      } else if (errors.design == Design::kStratified) {
        const double begin =
            static_cast<double>(block_below_.data()[head] + through[lane] - masses[lane]) * errors.draws_per_mass[head];
        t = sampling::StratifiedFluctuation(
            static_cast<float>(begin - static_cast<double>(static_cast<int64_t>(begin))),
            static_cast<float>(masses[lane] * errors.draws_per_mass[head]));
      }
      chain_.Add(head, t, values_[row], errors.sums);
    }
  }
}

int Gatherer::Queue(const DecodeContext& context, const HeadVector* factors, float* sums, const BlockArrays& arrays,
                    const DrawErrors* errors) {
  Flush(context);
  const DecodeShape& shape = context.shape;
  const auto row_bytes = static_cast<int64_t>(context.cache.layout().row_bytes());
  sums_ = sums;
  for (int group = 0; group * kRowGroup < num_block_rows_; ++group) {
    uint32_t drawn = drawn_[group];
    drawn_[group] = 0;
    for (; drawn != 0; drawn &= drawn - 1) {
      const int row = group * kRowGroup + std::countr_zero(drawn);
      const uint8_t* values = values_[row];
      for (int64_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(values + i, 0, 2);
      rows_[num_rows_] = values;
      for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
        const int pitch = shape.pitch(chunk);
        const int64_t base = FirstOf(chunk);
        const float* counts = counts_.data() + base + row * pitch;
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
      if (errors != nullptr) AddErrors(shape, arrays, *errors, row);
    }
  }
  return num_rows_;
}

void Gatherer::Flush(const DecodeContext& context, KeyFetcher* fetcher) {
  if (num_rows_ == 0) return;
  const DecodeShape& shape = context.shape;
  const Ahead ahead = fetcher != nullptr ? fetcher->Beside(kBytesBesideSum * num_rows_) : Ahead{};
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    context.kernels.accumulate({.row_pointers = rows_,
                                .num_rows = num_rows_,
                                .head_dim = shape.head_dim,
                                .heads = shape.heads(chunk),
                                .weights = weights_.data() + FirstOf(chunk),
                                .sums = sums_ + static_cast<int64_t>(chunk) * kChunkHeads * shape.padded_dim,
                                .ahead = chunk == 0 ? ahead : Ahead{}});
  }
  chain_.Flush();
  num_rows_ = 0;
}

}  // namespace santa::cpu
