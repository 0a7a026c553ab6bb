// The weighted sums of the rows that are read of a split in one pass: 16 rows (a slab) at a time in the order of the
// list, from their keys to the sums of their values, for one quad of the group's heads. A warp may have all dimensions
// of the values or a part of them; either way it weighs every slab, so that the sums are the same bit for bit.
#ifndef SANTA_KERNELS_CUDA_ROW_SUMS_CUH_
#define SANTA_KERNELS_CUDA_ROW_SUMS_CUH_

#include "kernels/cuda/group_list.cuh"
#include "kernels/cuda/group_sums.cuh"
#include "kernels/cuda/row_signs.cuh"

namespace santa::cuda {

// A lane's rows r and r + 8 of a slab.
struct LaneRows {
  uint32_t inclusion[2];
  bool listed[2];

  // entry(row): that of a row of the slab, of which there are `count`, at least one.
  template <typename Entries>
  __device__ __forceinline__ LaneRows(const Entries& entry, int count, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      listed[half] = row < count;
      inclusion[half] = InclusionOf(entry(min(row, count - 1)));
    }
  }
  __device__ __forceinline__ bool IsChance(int half) const {
    return listed[half] && inclusion[half] < sampling::kCertain;
  }
};

// Which of the values' dimensions a warp has: all, or those of every `sharers`-th pair of chunks.
template <bool kShared>
struct Share {
  int share = 0, sharers = 1;

  __device__ __forceinline__ bool IsFirst() const { return !kShared || share == 0; }
  __device__ __forceinline__ bool Has(int pair) const { return !kShared || pair % sharers == share; }
};

// What is of no dimension, of a lane's columns: of w, or where c >= 2 of s w.
struct RowTotals {
  float max[2] = {kNegativeInfinity, kNegativeInfinity};  // log2 w, of all rows or of those left to chance
  float sum[2] = {};                                      // a lane's share
  float rounding[2] = {};                                 // likewise, where c >= 2 and values have a sketch
  int chance_rows = 0;

  // The rows' s, 0 where nothing is left to chance; counts them.
  __device__ __forceinline__ void TakeChances(float (&s)[2], const LaneRows& rows, int split, int lane) {
    const unsigned earlier = (1u << (lane & ~3)) - 1;  // lanes; a row has four
    const unsigned first = __ballot_sync(~0u, rows.IsChance(0)), second = __ballot_sync(~0u, rows.IsChance(1));
    const int rank[2] = {chance_rows + __popc(first & earlier) / 4,
                         chance_rows + (__popc(first) + __popc(second & earlier)) / 4};
    chance_rows += (__popc(first) + __popc(second)) / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float t = 1 - static_cast<float>(rows.inclusion[half]) / static_cast<float>(sampling::kCertain);
      s[half] = rows.IsChance(half) ? Signed(SquareRoot(t), SignOfRow(rank[half], split)) : 0.0f;
    }
  }

  // As part of a split's partial result.
  __device__ __forceinline__ void Write(float* numbers, int quad, int group_size, int lane) const {
    const int c = lane % 4;
    const bool of_w = c < 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float of_column = sum[h], of_rounding = rounding[h];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        of_column += __shfl_xor_sync(~0u, of_column, step);
        of_rounding += __shfl_xor_sync(~0u, of_rounding, step);
      }
      const int head = kQuad * quad + 2 * (c % 2) + h;
      if (lane / 4 != 0 || head >= group_size) continue;
      numbers[(of_w ? kPassW : kPassSigned) * group_size + head] = of_column;
      numbers[(of_w ? kPassOfAll : kPassOfChance) * group_size + head] = max[h];
      if (of_w) continue;
      numbers[kPassRounding * group_size + head] = of_rounding;
      numbers[kPassRows * group_size + head] = static_cast<float>(chance_rows);
    }
  }
};

// What a warp adds up of the rows for a quad of heads. The products' eight columns are the quad's heads twice: once for
// w, once for s w. Lane (r, c) weighs rows r and r + 8 for columns 2c and 2c + 1, and nothing but the packed weights
// moves between lanes. The first of those that share the dimensions has the sums that are of none, too.
template <typename Kv, int D>
struct RowSums : RowTotals {
  using T = Compute<Kv>;
  using S = Slab<Kv, D>;
  static constexpr int kPairs = S::kChunks / 2, kTiles = ValueTiles<Kv>::kTiles;
  float out[D / 16][4] = {};

  // Brings the references to the largest of what the lanes of a column ask for, and the sums with them.
  __device__ __forceinline__ void RaiseTo(float (&raised)[2]) {
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) raised[h] = fmaxf(raised[h], __shfl_xor_sync(~0u, raised[h], step));
      keep[h] = Rescale(max[h], raised[h]);
      max[h] = raised[h];
    }
    if (!__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int tile = 0; tile < D / 16; ++tile) {
        out[tile][h] *= keep[h];
        out[tile][2 + h] *= keep[h];
      }
      sum[h] *= keep[h];
      rounding[h] *= keep[h] * keep[h];
    }
  }

  // What a slab's dot products say of its rows: they become packed weights. dots: as Scores gives those of the quad's
  // heads, twice.
  struct Weights {
    uint32_t w[2];  // columns 2c and 2c + 1 of rows r, r + 8
  };
  __device__ __forceinline__ Weights Weigh(const float (&dots)[4], const Scorer& scorer, const LaneRows& rows,
                                           int split, int lane) {
    const bool of_w = lane % 4 < 2;
    float weight[2][2];  // [row][column], log2
    float s[2], raised[2] = {max[0], max[1]};
    TakeChances(s, rows, split, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool counts = of_w ? rows.listed[half] : rows.IsChance(half);
      const float inverse = __log2f(InverseOf(rows.inclusion[half]));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        weight[half][h] = counts ? scorer(dots[2 * half + h]) + inverse : kNegativeInfinity;
        raised[h] = fmaxf(raised[h], weight[half][h]);
      }
    }
    RaiseTo(raised);
    Weights weights;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        x[h] = Rescale(weight[half][h], max[h]) * (of_w ? 1 : s[half]);
        sum[h] += x[h];
      }
      weights.w[half] = Transpose8x8(Pack<T>(x[0], x[1]));
    }
    return weights;
  }

  // Adds a slab of values.
  template <bool kShared>
  __device__ __forceinline__ void Add(uint32_t values, const Weights& weights, Share<kShared> share, int lane) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (!share.Has(pair)) continue;
      const ValueTiles<Kv> v = LoadValues<Kv, D>(values, pair, lane);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const auto& a = v.a[tile];
        Mma<T>(out[kTiles * pair + tile], a[0], a[1], a[2], a[3], weights.w[0], weights.w[1]);
      }
    }
  }

  // Writes the share's sums of a split: sum w v, [G][D], and those of s w v as a PassSplit has them.
  template <bool kShared>
  __device__ __forceinline__ void Write(float* output, uint32_t* signed_pairs, int quad, Share<kShared> share,
                                        int group_size, int lane) const {
    const int c = lane % 4, head = kQuad * quad + 2 * (c % 2);
    if (head >= group_size) return;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (!share.Has(pair)) continue;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const int tile = kTiles * pair + i / 2, at = OutputDim<Kv>(tile, lane, i % 2);
        const float first = out[tile][2 * (i % 2)], second = out[tile][2 * (i % 2) + 1];  // heads
        if (c >= 2) {
          signed_pairs[head / 2 * D + at] = Pack<__nv_bfloat16>(first, second);
          continue;
        }
        output[head * D + at] = first;
        if (head + 1 < group_size) output[(head + 1) * D + at] = second;
      }
    }
  }
};

// The query of a lane's column: of the quad's heads, twice.
template <typename Kv, int D>
__device__ __forceinline__ void LoadRowQueries(QueryFragment<D> (&q)[1], const BlockTask& task, int quad, int lane) {
  const int head = kQuad * quad + lane / 4 % kQuad;
  const auto* query = static_cast<const uint16_t*>(task.item.q) + (task.kv_head * task.group_size() + head) * D;
  LoadQuery<Kv, D>(q[0], head < task.group_size() ? query : nullptr, lane);
}

// What SumRowsOfSplit needs of shared memory: so many stages, each of four slabs of keys, if it is to read these, and
// four of values.
template <typename Kv, int D>
__host__ __device__ constexpr int RowBytes(int stages, bool reads_keys) {
  return stages * (reads_keys ? 2 : 1) * kGatherWarps * Slab<Kv, D>::kBytes;
}

// Sums up the rows of the list, `count` entries, and writes them as the partial result of the block's split. Each warp
// copies a slab of a stage; its quad's share the dimensions. kHolds: dot products are held to what a score has room
// for; kept: these of all tokens, [place][quad][head], or null for those that keys give once more, the same bit for
// bit. bytes: RowBytes(stages); with two stages the next one's rows are on their way while those of one are added. All
// threads call it, after a barrier behind the list and with no copy of theirs under way.
template <bool kHolds, typename Kv, int D>
__device__ __forceinline__ void SumRowsOfSplit(const GatherTask<Kv, D>& task, const AnswerShared<1>& shared,
                                               const uint32_t* list, int count, const float* kept, unsigned char* bytes,
                                               int stages) {
  using S = Slab<Kv, D>;
  const bool reads_keys = kept == nullptr;
  const int key_bytes = reads_keys ? S::kBytes : 0;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int quads = task.quads(), quad = warp % quads;
  const Share<true> share{warp / quads, kGatherWarps / quads};
  const Scorer scorer(task.item, task.kv_head);
  QueryFragment<D> q[1] = {};
  if (reads_keys) LoadRowQueries<Kv, D>(q, task, quad, lane);
  RowSums<Kv, D> sums;
  // A slab's keys, if they are read, and behind them its values.
  const auto rows_of = [&](int stage, int slab) {
    return SharedAddress(bytes) + (stage * kGatherWarps + slab) * (key_bytes + S::kBytes);
  };
  const auto copy = [&](int stage, int stage_at) {
    const int at = stage_at + warp * kSlabRows;
    if (at < count) {
      const uint64_t row = RowOf(task, shared.page, list[min(at + lane % kSlabRows, count - 1)]);
      if (reads_keys) CopyRowsOf<Kv, D>(rows_of(stage, warp), row, 0, count - at, lane);
      CopyRowsOf<Kv, D>(rows_of(stage, warp) + key_bytes, row, task.view.value_offset, count - at, lane);
    }
    CommitCopies();
  };
  copy(0, 0);
  int stage = 0;
#pragma unroll 1
  for (int at = 0; at < count; at += kStageRows) {
    const int next = at + kStageRows;
    WaitCopies<0>();
    __syncthreads();
    if (stages == 2) copy(stage ^ 1, next);
#pragma unroll 1
    for (int slab = 0; slab < kGatherWarps && at + slab * kSlabRows < count; ++slab) {
      const int first = at + slab * kSlabRows;
      const LaneRows rows([&](int row) { return list[first + row]; }, count - first, lane);
      float dots[1][4];
      if (reads_keys) {
        Scores<Kv, D, 1>(dots, rows_of(stage, slab), q, lane);
        if constexpr (kHolds) {
#pragma unroll
          for (float& dot : dots[0]) dot = Hold(dot);
        }
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int place = PlaceOf(list[min(first + lane / 4 + 8 * half, count - 1)]);
          const float2 two = reinterpret_cast<const float2*>(kept)[(place * quads + quad) * (kQuad / 2) + lane % 2];
          dots[0][2 * half] = two.x;
          dots[0][2 * half + 1] = two.y;
        }
      }
      const auto weights = sums.Weigh(dots[0], scorer, rows, task.first_split, lane);
      sums.Add(rows_of(stage, slab) + key_bytes, weights, share, lane);
    }
    if (stages == 2) {
      stage ^= 1;
    } else if (next < count) {
      __syncthreads();  // the stage has been read
      copy(0, next);
    }
  }
  WaitCopies<0>();
  const int kv_head = task.kv_head, split = task.first_split, group_size = task.group_size();
  sums.Write(task.arrays.pass_output(kv_head, split), task.arrays.pass_signed(kv_head, split), quad, share, group_size,
             lane);
  if (share.IsFirst()) sums.RowTotals::Write(task.arrays.pass_numbers(kv_head, split), quad, group_size, lane);
  __syncthreads();
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_ROW_SUMS_CUH_
