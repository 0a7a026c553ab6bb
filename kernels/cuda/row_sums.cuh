// The weighted sums of the rows that a block reads where its warps go their own ways: each has rows of its own, 16 (a
// slab) at a time, from their keys to the sums of their values, for one quad of the group's heads.
#ifndef SANTA_KERNELS_CUDA_ROW_SUMS_CUH_
#define SANTA_KERNELS_CUDA_ROW_SUMS_CUH_

#include "kernels/cuda/group_list.cuh"
#include "kernels/cuda/group_sums.cuh"

namespace santa::cuda {

// What a warp adds up of its rows for a quad of heads, 16 rows (a slab) at a time. The products' eight columns are
// the quad's heads twice: once for w, once for t w; those of a second product are for t w^2. Lane (r, c) weighs rows r
// and r + 8 for columns 2c and 2c + 1, and nothing but the packed weights moves between lanes.
template <typename Kv, int D>
struct RowSums {
  using T = Compute<Kv>;
  using S = Slab<Kv, D>;
  static constexpr int kVectors = kPartialVectors * kQuad, kPitch = D + 4;  // lanes write to different banks
  float out[D / 16][2][4] = {};
  float max[kReferences][2] = {{kNegativeInfinity, kNegativeInfinity}, {kNegativeInfinity, kNegativeInfinity}};
  float sum[2] = {}, sum_tw2[2] = {}, sum_tw2v2[2] = {};  // of w or t w; a lane's share
  float t = 0, t_squared = 0;

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

  // What a slab of keys says of its rows: scores become packed weights.
  struct Weights {
    uint32_t w[2], tw2[2];  // columns 2c and 2c + 1 of rows r, r + 8
    float of_tw2[2][2];     // as they were, [row][column]
  };
  __device__ __forceinline__ Weights Weigh(uint32_t keys, const QueryFragment<D> (&q)[1], const Scorer& scorer,
                                           const uint32_t* list, int count, int at, bool wants_error, int lane) {
    const int r = lane / 4, c = lane % 4;
    const bool first_half = c < 2;  // columns of w
    float s[1][4];
    Scores<Kv, D, 1>(s, keys, q, lane);
    float weight[2][2], left[2];  // [row][column]: log2 w; t
    float raised[kReferences][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = at + r + 8 * half;
      const bool listed = row < count;
      const uint32_t inclusion = InclusionOf(list[listed ? row : count - 1]);
      const float inverse = __log2f(InverseOf(inclusion));
      left[half] = listed ? 1 - static_cast<float>(inclusion) / static_cast<float>(sampling::kCertain) : 0.0f;
      t += left[half];
      t_squared = fmaf(left[half], left[half], t_squared);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float mine = listed ? scorer(s[0][2 * half + h]) + inverse : kNegativeInfinity;
        const float of_chance = left[half] > 0 ? mine : kNegativeInfinity;
        weight[half][h] = mine;
        raised[kOfAll][h] = fmaxf(half == 0 ? max[kOfAll][h] : raised[kOfAll][h], mine);
        raised[kOfChance][h] = fmaxf(half == 0 ? max[kOfChance][h] : raised[kOfChance][h], of_chance);
      }
    }
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
  __device__ __forceinline__ void Add(uint32_t values, const Weights& weights, bool wants_error, int lane) {
    if (wants_error) {
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
    constexpr int kTiles = ValueTiles<Kv>::kTiles;
#pragma unroll
    for (int pair = 0; pair < S::kChunks / 2; ++pair) {
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

  // Brings the warps of one quad to the same references, and adds them up into `partial`. results:
  // [kGatherWarps][kVectors][kPitch]. All threads call it.
  __device__ __forceinline__ void Write(AnswerShared<1>& shared, float* results, float* partial, float* numbers,
                                        int quads, int group_size, bool wants_error) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4, in_quad = 2 * (c % 2);
    const bool first_half = c < 2;
    if (r == 0 && first_half) {
#pragma unroll
      for (int reference = 0; reference < kReferences; ++reference) {
        shared.warp_max[reference][warp][in_quad] = max[reference][0];
        shared.warp_max[reference][warp][in_quad + 1] = max[reference][1];
      }
    }
    __syncthreads();
    float scale[2], scale_tw2[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto scale_of = [&](int reference) {
        float merged = kNegativeInfinity;
        for (int w = warp % quads; w < kGatherWarps; w += quads) {
          merged = fmaxf(merged, shared.warp_max[reference][w][in_quad + h]);
        }
        return Rescale(max[reference][h], merged);
      };
      const float of_all = scale_of(kOfAll), of_chance = scale_of(kOfChance);
      scale[h] = first_half ? of_all : of_chance;
      scale_tw2[h] = of_chance * of_chance;
    }
    float* const mine = results + warp * kVectors * kPitch;
#pragma unroll
    for (int tile = 0; tile < D / 16; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int head = in_quad + k % 2, dim = OutputDim<Kv>(tile, lane, k / 2);
        mine[((first_half ? 0 : kQuad) + head) * kPitch + dim] = out[tile][0][k] * scale[k % 2];
        if (first_half && wants_error) mine[(2 * kQuad + head) * kPitch + dim] = out[tile][1][k] * scale_tw2[k % 2];
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float of_column = sum[h] * scale[h], tw2 = sum_tw2[h] * scale_tw2[h], tw2v2 = sum_tw2v2[h] * scale_tw2[h];
      float all_t = t, all_tt = t_squared;
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        of_column += __shfl_xor_sync(~0u, of_column, step);
        tw2 += __shfl_xor_sync(~0u, tw2, step);
        tw2v2 += __shfl_xor_sync(~0u, tw2v2, step);
        all_t += __shfl_xor_sync(~0u, all_t, step);
        all_tt += __shfl_xor_sync(~0u, all_tt, step);
      }
      if (r != 0) continue;
      const int head = in_quad + h;
      shared.by_warp[first_half ? kSumW : kSumTW][warp][head] = of_column;
      if (!first_half) continue;
      shared.by_warp[kSumTW2][warp][head] = tw2;
      shared.by_warp[kSumTW2V2][warp][head] = tw2v2;
      shared.by_warp[kSumT][warp][head] = all_t;
      shared.by_warp[kSumTT][warp][head] = all_tt;
    }
    __syncthreads();
    const int vectors = wants_error ? kPartialVectors : 1;
#pragma unroll 1
    for (int i = threadIdx.x; i < vectors * group_size * (D / 4); i += kGatherThreads) {
      const int d = i % (D / 4), row = i / (D / 4), vector = row / group_size, head = row % group_size;
      const float* from = results + (vector * kQuad + head % kQuad) * kPitch + 4 * d;
      float4 all = {};
      for (int w = head / kQuad; w < kGatherWarps; w += quads) {
        all += *reinterpret_cast<const float4*>(from + w * kVectors * kPitch);
      }
      reinterpret_cast<float4*>(partial)[i] = all;
    }
    if (threadIdx.x < kPartialNumbers * group_size) {
      const int number = threadIdx.x / group_size, head = threadIdx.x % group_size;
      const bool is_sum = number < kPartialSums;
      float all = is_sum ? 0.0f : kNegativeInfinity;
      for (int w = head / kQuad; w < kGatherWarps; w += quads) {
        if (is_sum) {
          all += shared.by_warp[number][w][head % kQuad];
        } else {
          all = fmaxf(all, shared.warp_max[number - kPartialSums][w][head % kQuad]);
        }
      }
      numbers[threadIdx.x] = all;
    }
    __syncthreads();
  }
};

// What is needed of shared memory: two slabs a warp, later its sums.
template <typename Kv, int D>
__host__ __device__ constexpr int RowBytes() {
  const int slabs = 2 * kGatherWarps * Slab<Kv, D>::kBytes;
  const int results =
      kGatherWarps * RowSums<Kv, D>::kVectors * RowSums<Kv, D>::kPitch * static_cast<int>(sizeof(float));
  return slabs > results ? slabs : results;
}

// Sums up the rows of the list, `count` entries, and writes them as the partial result of the split. q: of the warp's
// quad, its heads twice. slabs: RowBytes. All threads call it, after a barrier behind the list and with no copy of
// theirs under way.
template <typename Kv, int D>
__device__ __forceinline__ void SumRowsByWarps(const GatherTask<Kv, D>& task, AnswerShared<1>& shared,
                                               const uint32_t* list, int count, int split,
                                               const QueryFragment<D> (&q)[1], unsigned char* slabs) {
  using S = Slab<Kv, D>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int quads = task.quads(), streams = kGatherWarps / quads;
  const int shift = task.view.page_shift, first_page = task.splits.begin >> shift;
  const Scorer scorer(task.item, task.kv_head);
  const bool wants_error = task.wants_error();
  RowSums<Kv, D> sums;
  unsigned char* const keys = slabs + 2 * warp * S::kBytes;
  unsigned char* const values = keys + S::kBytes;
  uint64_t row = 0;  // that the lane copies from
  const auto find_rows = [&](int at) {
    const int token = task.splits.origin + PlaceOf(list[min(at + lane % kSlabRows, count - 1)]);
    row = reinterpret_cast<uint64_t>(task.view.Row(shared.page[(token >> shift) - first_page], token));
  };
  const auto copy = [&](unsigned char* slab, size_t offset, int at) {
    if (at < count) {
#pragma unroll
      for (int i = 0; i < S::kCopies; ++i) {
        const int index = 32 * i + lane, slab_row = index / S::kChunks, chunk = index % S::kChunks;
        const auto* from = reinterpret_cast<const uint8_t*>(__shfl_sync(~0u, row, slab_row)) + offset + 16 * chunk;
        StreamAsync16(SharedAddress(slab) + S::At(slab_row, chunk), from, at + slab_row < count);
      }
    }
    CommitCopies();
  };
  // The next slab's keys are on their way from when these have been multiplied with, its values from when these have
  // been added.
  int at = warp / quads * kSlabRows;
  if (at < count) find_rows(at);
  copy(keys, 0, at);
  copy(values, task.view.value_offset, at);
#pragma unroll 1
  for (; at < count; at += streams * kSlabRows) {
    const int next = at + streams * kSlabRows;
    WaitCopies<1>();
    const auto weights = sums.Weigh(SharedAddress(keys), q, scorer, list, count, at, wants_error, lane);
    __syncwarp();
    if (next < count) find_rows(next);
    copy(keys, 0, next);
    WaitCopies<1>();
    sums.Add(SharedAddress(values), weights, wants_error, lane);
    __syncwarp();
    copy(values, task.view.value_offset, next);
  }
  WaitCopies<0>();
  __syncthreads();  // the slabs have been read
  float* const partial = task.arrays.partial(task.kv_head, task.first_split + split);
  sums.Write(shared, reinterpret_cast<float*>(slabs), partial, partial + task.arrays.partial_numbers(), quads,
             task.group_size(), wants_error);
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_ROW_SUMS_CUH_
