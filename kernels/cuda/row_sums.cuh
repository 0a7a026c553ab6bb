// The weighted sums of the rows that are read of a split in one pass: 16 rows (a slab) at a time in the order of the
// list, from their keys to the sums of their values, for one quad of the group's heads. A warp may have all dimensions
// of the values or a part of them; either way it weighs every slab, so that the sums are the same bit for bit.
#ifndef SANTA_KERNELS_CUDA_ROW_SUMS_CUH_
#define SANTA_KERNELS_CUDA_ROW_SUMS_CUH_

#include "kernels/cuda/group_list.cuh"
#include "kernels/cuda/group_sums.cuh"

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
};

// Which of the values' dimensions a warp has: all, or those of every `sharers`-th pair of chunks.
template <bool kShared>
struct Share {
  int share = 0, sharers = 1;

  __device__ __forceinline__ bool IsFirst() const { return !kShared || share == 0; }
  __device__ __forceinline__ bool Has(int pair) const { return !kShared || pair % sharers == share; }
};

// What is of no dimension.
struct RowTotals {
  float max[kReferences][2] = {{kNegativeInfinity, kNegativeInfinity}, {kNegativeInfinity, kNegativeInfinity}};
  float sum[2] = {}, sum_tw2[2] = {}, sum_tw2v2[2] = {};  // of w or t w; a lane's share
  float t = 0, t_squared = 0;

  // As part of a split's partial result.
  __device__ __forceinline__ void Write(float* numbers, int quad, int group_size, int lane) const {
    const int c = lane % 4;
    const bool first_half = c < 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float of_column = sum[h], tw2 = sum_tw2[h], tw2v2 = sum_tw2v2[h], all_t = t, all_tt = t_squared;
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        of_column += __shfl_xor_sync(~0u, of_column, step);
        tw2 += __shfl_xor_sync(~0u, tw2, step);
        tw2v2 += __shfl_xor_sync(~0u, tw2v2, step);
        all_t += __shfl_xor_sync(~0u, all_t, step);
        all_tt += __shfl_xor_sync(~0u, all_tt, step);
      }
      const int head = kQuad * quad + 2 * (c % 2) + h;
      if (lane / 4 != 0 || head >= group_size) continue;
      numbers[(first_half ? kSumW : kSumTW) * group_size + head] = of_column;
      if (!first_half) continue;
      numbers[kSumTW2 * group_size + head] = tw2;
      numbers[kSumTW2V2 * group_size + head] = tw2v2;
      numbers[kSumT * group_size + head] = all_t;
      numbers[kSumTT * group_size + head] = all_tt;
#pragma unroll
      for (int reference = 0; reference < kReferences; ++reference) {
        numbers[(kPartialSums + reference) * group_size + head] = max[reference][h];
      }
    }
  }
};

// What a warp adds up of the rows for a quad of heads. The products' eight columns are the quad's heads twice: once for
// w, once for t w; those of a second product are for t w^2. Lane (r, c) weighs rows r and r + 8 for columns 2c and
// 2c + 1, and nothing but the packed weights moves between lanes.
// The first of those that share the dimensions has the sums that are of none, too.
template <typename Kv, int D>
struct RowSums : RowTotals {
  using T = Compute<Kv>;
  using S = Slab<Kv, D>;
  static constexpr int kPairs = S::kChunks / 2, kTiles = ValueTiles<Kv>::kTiles;
  float out[D / 16][2][4] = {};

  // |v|^2 of rows r and r + 8: the diagonal of V V^T.
  static __device__ __forceinline__ void Norms(float (&norms)[2], uint32_t values, int lane) {
    const int row = lane % 16, high = lane / 16, r = lane / 4;
    float first[4] = {}, second[4] = {};
#pragma unroll
    for (int pair = 0; pair < S::kChunks / 2; ++pair) {
      const uint4 v = LoadMatrices(values + S::At(row, 2 * pair + high));
      if constexpr (sizeof(Kv) == 2) {
        Mma<T>(first, v.x, v.y, v.z, v.w, v.x, v.z);
        Mma<T>(second, v.x, v.y, v.z, v.w, v.y, v.w);
      } else {
        uint32_t low[4], top[4];
        Widen(v.x, low[0], top[0]);
        Widen(v.y, low[1], top[1]);
        Widen(v.z, low[2], top[2]);
        Widen(v.w, low[3], top[3]);
        Mma<T>(first, low[0], low[1], top[0], top[1], low[0], top[0]);
        Mma<T>(second, low[0], low[1], top[0], top[1], low[1], top[1]);
        Mma<T>(first, low[2], low[3], top[2], top[3], low[2], top[2]);
        Mma<T>(second, low[2], low[3], top[2], top[3], low[3], top[3]);
      }
    }
    norms[0] = __shfl_sync(~0u, r % 2 == 0 ? first[0] : first[1], 4 * r + r / 2);
    norms[1] = __shfl_sync(~0u, r % 2 == 0 ? second[2] : second[3], 4 * r + r / 2);
  }

  // Multiplies the sums by what their references have moved by. keep: of the first product's columns; keep_tw2.
  __device__ __forceinline__ void Raise(const float (&keep)[2], const float (&keep_tw2)[2]) {
    if (!__any_sync(~0u, keep[0] != 1 || keep[1] != 1 || keep_tw2[0] != 1 || keep_tw2[1] != 1)) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int tile = 0; tile < D / 16; ++tile) {
        out[tile][0][h] *= keep[h];
        out[tile][0][2 + h] *= keep[h];
        out[tile][1][h] *= keep_tw2[h];
        out[tile][1][2 + h] *= keep_tw2[h];
      }
      sum[h] *= keep[h];
      sum_tw2[h] *= keep_tw2[h];
      sum_tw2v2[h] *= keep_tw2[h];
    }
  }

  // What a row leaves to chance, 1 - pi, which is counted; 0 of one that is not listed.
  __device__ __forceinline__ float CountRow(const LaneRows& rows, int half) {
    const float of_row = rows.listed[half]
                             ? 1 - static_cast<float>(rows.inclusion[half]) / static_cast<float>(sampling::kCertain)
                             : 0.0f;
    t += of_row;
    t_squared = fmaf(of_row, of_row, t_squared);
    return of_row;
  }

  // Brings the references to the largest of what the lanes of a column ask for, and the sums with them. first_half:
  // whether the lane's columns are of w.
  __device__ __forceinline__ void RaiseTo(float (&raised)[kReferences][2], bool first_half) {
    float keep[2], keep_tw2[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int reference = 0; reference < kReferences; ++reference) {
        float& mine = raised[reference][h];
#pragma unroll
        for (int step = 4; step < 32; step *= 2) mine = fmaxf(mine, __shfl_xor_sync(~0u, mine, step));
      }
      const float of_all = Rescale(max[kOfAll][h], raised[kOfAll][h]);
      const float of_chance = Rescale(max[kOfChance][h], raised[kOfChance][h]);
      keep[h] = first_half ? of_all : of_chance;
      keep_tw2[h] = of_chance * of_chance;
      max[kOfAll][h] = raised[kOfAll][h];
      max[kOfChance][h] = raised[kOfChance][h];
    }
    Raise(keep, keep_tw2);
  }

  // What a slab of keys says of its rows: scores become packed weights. q: of the quad's heads, twice.
  struct Weights {
    uint32_t w[2], tw2[2];  // columns 2c and 2c + 1 of rows r, r + 8
    float of_tw2[2][2];     // as they were, [row][column]
  };
  __device__ __forceinline__ Weights Weigh(uint32_t keys, const QueryFragment<D> (&q)[1], const Scorer& scorer,
                                           const LaneRows& rows, bool wants_error, int lane) {
    const bool first_half = lane % 4 < 2;  // columns of w
    float s[1][4];
    Scores<Kv, D, 1>(s, keys, q, lane);
    float weight[2][2], left[2];  // [row][column]: log2 w; t
    float raised[kReferences][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool listed = rows.listed[half];
      const float inverse = __log2f(InverseOf(rows.inclusion[half]));
      left[half] = CountRow(rows, half);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float mine = listed ? scorer(s[0][2 * half + h]) + inverse : kNegativeInfinity;
        const float of_chance = left[half] > 0 ? mine : kNegativeInfinity;
        weight[half][h] = mine;
        raised[kOfAll][h] = fmaxf(half == 0 ? max[kOfAll][h] : raised[kOfAll][h], mine);
        raised[kOfChance][h] = fmaxf(half == 0 ? max[kOfChance][h] : raised[kOfChance][h], of_chance);
      }
    }
    RaiseTo(raised, first_half);
    Weights weights;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[2], y[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float w = Exp2(weight[half][h] - max[kOfAll][h]);
        const float u = left[half] > 0 ? Exp2(weight[half][h] - max[kOfChance][h]) : 0.0f, t_w = left[half] * u;
        x[h] = first_half ? w : t_w;
        y[h] = first_half ? t_w * u : 0.0f;
        sum[h] += x[h];
        sum_tw2[h] += y[h];
        weights.of_tw2[half][h] = y[h];
      }
      weights.w[half] = Transpose8x8(Pack<T>(x[0], x[1]));
      weights.tw2[half] = wants_error ? Transpose8x8(Pack<T>(y[0], y[1])) : 0;
    }
    return weights;
  }

  // Adds a slab of values.
  template <bool kShared>
  __device__ __forceinline__ void Add(uint32_t values, const Weights& weights, Share<kShared> share, bool wants_error,
                                      int lane) {
    if (wants_error && share.IsFirst()) {
      float norms[2];
      Norms(norms, values, lane);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          sum_tw2v2[h] = fmaf(weights.of_tw2[half][h], norms[half], sum_tw2v2[h]);
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (!share.Has(pair)) continue;
      const ValueTiles<Kv> v = LoadValues<Kv, D>(values, pair, lane);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float(&sums)[2][4] = out[kTiles * pair + tile];
        Mma<T>(sums[0], v.a[tile][0], v.a[tile][1], v.a[tile][2], v.a[tile][3], weights.w[0], weights.w[1]);
        if (wants_error) {
          Mma<T>(sums[1], v.a[tile][0], v.a[tile][1], v.a[tile][2], v.a[tile][3], weights.tw2[0], weights.tw2[1]);
        }
      }
    }
  }

  // Writes the share's sums as part of a split's partial result (kernels/cuda/group_layout.h).
  template <bool kShared>
  __device__ __forceinline__ void Write(float* partial, int quad, Share<kShared> share, int group_size,
                                        bool wants_error, int lane) const {
    const int c = lane % 4, first_head = kQuad * quad + 2 * (c % 2);
    const bool first_half = c < 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = first_head + h;
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        if (!share.Has(pair)) continue;
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          const int tile = kTiles * pair + i / 2, at = head * D + OutputDim<Kv>(tile, lane, i % 2);
          // The lanes of t w have the heads and dimensions of those of w.
          const float once = out[tile][0][2 * (i % 2) + h];
          const float squared = wants_error ? __shfl_xor_sync(~0u, out[tile][1][2 * (i % 2) + h], 2) : 0.0f;
          if (head >= group_size) continue;
          if (first_half) {
            partial[at] = once;
          } else if (wants_error) {
            WriteErrorWord(partial, group_size * D + at, once, squared);
          }
        }
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

// What SumRowsOfSplit needs of shared memory: so many stages, each of four slabs of keys and four of values.
template <typename Kv, int D>
__host__ __device__ constexpr int RowBytes(int stages) {
  return stages * 2 * kGatherWarps * Slab<Kv, D>::kBytes;
}

// Sums up the rows of the list, `count` entries, and writes them as the partial result of the block's split. Each warp
// copies a slab of a stage; its quad's share the dimensions. bytes: RowBytes(stages); with two stages the next one's
// rows are on their way while those of one are added. All threads call it, after a barrier behind the list and with no
// copy of theirs under way.
template <typename Kv, int D>
__device__ __forceinline__ void SumRowsOfSplit(const GatherTask<Kv, D>& task, const AnswerShared<1>& shared,
                                               const uint32_t* list, int count, unsigned char* bytes, int stages) {
  using S = Slab<Kv, D>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int quads = task.quads(), quad = warp % quads;
  const Share<true> share{warp / quads, kGatherWarps / quads};
  const Scorer scorer(task.item, task.kv_head);
  const bool wants_error = task.wants_error();
  QueryFragment<D> q[1];
  LoadRowQueries<Kv, D>(q, task, quad, lane);
  RowSums<Kv, D> sums;
  const auto keys_of = [&](int stage, int slab) {
    return SharedAddress(bytes) + (stage * kGatherWarps + slab) * 2 * S::kBytes;
  };
  const auto copy = [&](int stage, int stage_at) {
    const int at = stage_at + warp * kSlabRows;
    if (at < count) {
      const uint64_t row = RowOf(task, shared.page, list[min(at + lane % kSlabRows, count - 1)]);
      CopyRowsOf<Kv, D>(keys_of(stage, warp), row, 0, count - at, lane);
      CopyRowsOf<Kv, D>(keys_of(stage, warp) + S::kBytes, row, task.view.value_offset, count - at, lane);
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
      const uint32_t keys = keys_of(stage, slab);
      const auto weights = sums.Weigh(keys, q, scorer, rows, wants_error, lane);
      sums.Add(keys + S::kBytes, weights, share, wants_error, lane);
    }
    if (stages == 2) {
      stage ^= 1;
    } else if (next < count) {
      __syncthreads();  // the stage has been read
      copy(0, next);
    }
  }
  WaitCopies<0>();
  float* const partial = task.arrays.partial(task.kv_head, task.first_split);
  sums.Write(partial, quad, share, task.group_size(), wants_error, lane);
  if (share.IsFirst()) sums.RowTotals::Write(partial + task.arrays.partial_numbers(), quad, task.group_size(), lane);
  __syncthreads();
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_ROW_SUMS_CUH_
