// The weighted sums of the rows that a block reads, 64 rows (a stage) at a time: a warp
// takes 16 rows' weights, from their codes or, of SKETCHED, from K itself, and then a quarter of the dimensions of all
// 64 value rows.
#ifndef SANTA_KERNELS_CUDA_GROUP_SUMS_CUH_
#define SANTA_KERNELS_CUDA_GROUP_SUMS_CUH_

#include <cuda_pipeline_primitives.h>

#include <type_traits>

#include "kernels/cuda/group_list.cuh"

namespace santa::cuda {

// The first split from `split` on that has rows, or the last one.
__device__ __forceinline__ int FirstWithRows(const int* list_at, int split, int num_splits) {
  while (split < num_splits - 1 && list_at[split] == list_at[split + 1]) ++split;
  return min(split, num_splits - 1);
}

// Two stages of rows, of values both or of keys and values, with room for what is there before and after them:
// inclusions, and the splits' sum.
template <typename Kv, int D>
__host__ __device__ inline int StageBytes(const GroupLaunch& group) {
  const int inclusions = group.longest_split * group.splits_of_block * static_cast<int>(sizeof(uint32_t));
  const int vectors = kPartialVectors * group.decode.group_size * D * static_cast<int>(sizeof(float));
  const int stages = 2 * kGatherWarps * Slab<Kv, D>::kBytes;
  return inclusions > stages ? (inclusions > vectors ? inclusions : vectors) : (stages > vectors ? stages : vectors);
}

// Where the K row of a listed token lies. pages: AnswerShared::page.
template <typename Kv, int D>
__device__ __forceinline__ uint64_t RowOf(const GatherTask<Kv, D>& task, const int32_t* pages, uint32_t entry) {
  const int shift = task.view.page_shift, token = task.splits.origin + PlaceOf(entry);
  return reinterpret_cast<uint64_t>(task.view.Row(pages[(token >> shift) - (task.splits.begin >> shift)], token));
}

// Starts copying the rows that lie `offset` bytes after those of K that lanes 0 to 15 name; zeros past the first
// `count`.
template <typename Kv, int D>
__device__ __forceinline__ void CopyRowsOf(uint32_t slab, uint64_t row, size_t offset, int count, int lane) {
  using S = Slab<Kv, D>;
#pragma unroll
  for (int i = 0; i < S::kCopies; ++i) {
    const int index = 32 * i + lane, slab_row = index / S::kChunks, chunk = index % S::kChunks;
    const auto* from = reinterpret_cast<const uint8_t*>(__shfl_sync(~0u, row, slab_row)) + offset + 16 * chunk;
    StreamAsync16(slab + S::At(slab_row, chunk), from, slab_row < count);
  }
}

// Starts copying the rows, `offset` bytes after those of K, of the 16 entries of the list from `at` on; zeros past its
// end.
template <typename Kv, int D>
__device__ __forceinline__ void CopyEntries(uint32_t slab, size_t offset, const GatherTask<Kv, D>& task,
                                            const int32_t* pages, const uint32_t* list, int end, int at, int lane) {
  const uint64_t row = RowOf(task, pages, list[min(at + lane % kSlabRows, end - 1)]);
  CopyRowsOf<Kv, D>(slab, row, offset, end - at, lane);
}

// 1 / pi.
__device__ __forceinline__ float InverseOf(uint32_t inclusion) {
  return __fdividef(static_cast<float>(sampling::kCertain), static_cast<float>(inclusion));
}

// Starts copying the codes of the 16 entries of the list from `at` on.
template <typename Kv, int D, int kBlocks, typename Code>
__device__ __forceinline__ void CopyCodes(Code (*codes)[8 * kBlocks], const GatherTask<Kv, D>& task,
                                          const uint32_t* list, int end, int at, int lane) {
  const int row = lane % kSlabRows, quads = task.quads();
  if (at + row >= end) return;
  const QuadCodes<Code>* from = task.template codes<Code>(PlaceOf(list[at + row]));
  for (int quad = lane / kSlabRows; quad < quads; quad += 32 / kSlabRows) {
    __pipeline_memcpy_async(codes[row] + kQuad * quad, from + quad, sizeof(*from));
  }
}

// log2 w of the warp's 16 rows from their codes.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void WeighByCodes(const GatherTask<Kv, D>& task, CodedShared<kBlocks>& shared, int stage,
                                             const uint32_t* list, int end, int at, int lane) {
  const int row = threadIdx.x / 32 * kSlabRows + lane % kSlabRows, quads = task.quads();
  const bool listed = at + row < end;
  const uint32_t entry = list[listed ? at + row : end - 1];
  const int place = PlaceOf(entry);
  for (int quad = lane / kSlabRows; quad < quads; quad += 32 / kSlabRows) {
    const auto codes = *reinterpret_cast<const QuadCodes<uint16_t>*>(shared.codes[stage][row] + kQuad * quad);
    const float inverse = InverseOf(InclusionOf(entry));
    const float* octaves = shared.octaves + (place / sampling::kCodeBlock * quads + quad) * kQuad;
#pragma unroll
    for (int h = 0; h < kQuad; ++h) {
      shared.weight[kQuad * quad + h][row] =
          listed ? __log2f(codes.Weight(h, octaves[h]) * inverse) : kNegativeInfinity;
    }
  }
}

// log2 w of the warp's 16 rows from their keys, and their largest.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void WeighByKeys(const GatherTask<Kv, D>& task, GatherShared<kBlocks>& shared, uint32_t keys,
                                            const QueryFragment<D> (&q)[kBlocks], const Scorer& scorer,
                                            const uint32_t* list, int end, int at, int lane) {
  const int r = lane / 4, c = lane % 4, warp_row = threadIdx.x / 32 * kSlabRows;
  float s[kBlocks][4];
  Scores<Kv, D, kBlocks>(s, keys, q, lane);
  float max[kReferences][kBlocks][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + r + 8 * half;
    const bool listed = at + row < end;
    const uint32_t inclusion = InclusionOf(list[listed ? at + row : end - 1]);
    const float inverse = __log2f(InverseOf(inclusion));
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float weight = listed ? scorer(s[block][2 * half + h]) + inverse : kNegativeInfinity;
        const float of_chance = inclusion < sampling::kCertain ? weight : kNegativeInfinity;
        shared.weight[8 * block + 2 * c + h][row] = weight;
        float(&of_all)[2] = max[kOfAll][block], (&left)[2] = max[kOfChance][block];
        of_all[h] = half == 0 ? weight : fmaxf(of_all[h], weight);
        left[h] = half == 0 ? of_chance : fmaxf(left[h], of_chance);
      }
    }
  }
#pragma unroll
  for (int reference = 0; reference < kReferences; ++reference) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& mine = max[reference][block][h];
#pragma unroll
        for (int step = 4; step < 32; step *= 2) mine = fmaxf(mine, __shfl_xor_sync(~0u, mine, step));
        if (r == 0) shared.warp_max[reference][threadIdx.x / 32][8 * block + 2 * c + h] = mine;
      }
    }
  }
}

// A head's reference with the stage whose weights are there; `stage`: the half of shared.reference that is its.
template <int kBlocks>
__device__ __forceinline__ float RaisedReference(const GatherShared<kBlocks>& shared, int stage, int reference,
                                                 int head) {
  float max = shared.reference[stage ^ 1][reference][head];
#pragma unroll
  for (int w = 0; w < kGatherWarps; ++w) max = fmaxf(max, shared.warp_max[reference][w][head]);
  return max;
}

// A thread's share of a split's numbers.
template <int kBlocks>
struct Numbers {
  static constexpr int kHeads = 4 * kBlocks;  // of a thread: every other one
  float w[kHeads] = {}, t_w[kHeads] = {}, t_w2[kHeads] = {};
  float t_w2v2[2 * kHeads] = {};  // of all heads, for its half of the dimensions
  float t = 0, t_squared = 0;
};

// Packs the stage's weights against the references, which it raises, and adds up numbers. Thread (row, half) has one
// row; every other head of it, and for the norms half of its dimensions.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void PackWeights(const GatherTask<Kv, D>& task, GatherShared<kBlocks>& shared,
                                            Numbers<kBlocks>& numbers, const unsigned char* values,
                                            const uint32_t* list, int end, int at, int stage, bool wants_error) {
  using T = Compute<Kv>;
  const int row = threadIdx.x % kStageRows, half = threadIdx.x / kStageRows;
  const float pi =
      at + row < end ? static_cast<float>(InclusionOf(list[at + row])) / static_cast<float>(sampling::kCertain) : 1.0f;
  const float t = 1 - pi;
  const auto pack = [](float x) { return static_cast<uint16_t>(Pack<T>(x, 0)); };
#pragma unroll
  for (int i = 0; i < Numbers<kBlocks>::kHeads; ++i) {
    const int head = 2 * i + half;
    if (2 * i >= task.group_size()) break;
    const float weight = shared.weight[head][row];
    const auto raise = [&](int reference) {
      const float raised = RaisedReference(shared, stage, reference, head);
      if (row == 0) shared.reference[stage][reference][head] = raised;
      return raised;
    };
    const float of_all = raise(kOfAll);
    const float w = Exp2(weight - of_all);
    numbers.w[i] = fmaf(numbers.w[i], Rescale(shared.reference[stage ^ 1][kOfAll][head], of_all), w);
    shared.packed[0][head][row] = pack(w);
    if (!wants_error) continue;
    const float of_chance = raise(kOfChance);
    const float u = t > 0 ? Exp2(weight - of_chance) : 0.0f, t_w = t * u, t_w2 = t_w * u;
    const float keep = Rescale(shared.reference[stage ^ 1][kOfChance][head], of_chance);
    numbers.t_w[i] = fmaf(numbers.t_w[i], keep, t_w);
    numbers.t_w2[i] = fmaf(numbers.t_w2[i], keep * keep, t_w2);
    shared.packed[1][head][row] = pack(t_w);
    shared.packed[2][head][row] = pack(t_w2);
  }
  if (!wants_error) return;
  if (half == 0) {
    numbers.t += t;
    numbers.t_squared += t * t;
  }
  using S = Slab<Kv, D>;
  const uint32_t slab = row / kSlabRows * S::kBytes;
  float norm = 0;
#pragma unroll
  for (int i = 0; i < S::kChunks / 2; ++i) {
    const uint4 chunk = *reinterpret_cast<const uint4*>(values + slab + S::At(row % kSlabRows, 2 * i + half));
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t pairs[2] = {words[w], 0};
      if constexpr (sizeof(Kv) == 1) Widen(words[w], pairs[0], pairs[1]);
#pragma unroll
      for (int p = 0; p < 2 / static_cast<int>(sizeof(Kv)); ++p) {
        float2 x;
        if constexpr (std::is_same_v<T, __nv_bfloat16>) {
          x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pairs[p]));
        } else {
          x = __half22float2(*reinterpret_cast<const __half2*>(&pairs[p]));
        }
        norm = fmaf(x.x, x.x, fmaf(x.y, x.y, norm));
      }
    }
  }
  const float t_norm = t * norm;
#pragma unroll
  for (int head = 0; head < 2 * Numbers<kBlocks>::kHeads; ++head) {
    if (head >= task.group_size()) break;
    const float of_chance = RaisedReference(shared, stage, kOfChance, head);
    const float keep = Rescale(shared.reference[stage ^ 1][kOfChance][head], of_chance);
    const float u = t > 0 ? Exp2(shared.weight[head][row] - of_chance) : 0.0f;
    numbers.t_w2v2[head] = fmaf(numbers.t_w2v2[head], keep * keep, t_norm * u * u);
  }
}

// The value rows' weighted sums, of the warp's pairs of chunks.
template <typename Kv, int D, int kBlocks>
struct ValueSums {
  static constexpr int kTiles = ValueTiles<Kv>::kTiles, kPairs = Slab<Kv, D>::kChunks / 2;
  static constexpr int kMine = (kPairs + kGatherWarps - 1) / kGatherWarps, kColumns = kPartialVectors * kBlocks;
  float out[kMine][kTiles][kColumns][4] = {};

  // Adds a stage of value rows, times shared.packed.
  __device__ __forceinline__ void Add(const GatherShared<kBlocks>& shared, uint32_t values, int stage,
                                      bool wants_error) {
    Raise(shared, stage, wants_error);
    Multiply(shared.packed, values, kGatherWarps, wants_error);
  }

  // Adds the stage's first `slabs` of 16 rows, times `packed`, where the sums are against its references already.
  __device__ __forceinline__ void Multiply(const uint16_t (&packed)[kPartialVectors][8 * kBlocks][kPitch],
                                           uint32_t values, int slabs, bool wants_error) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
#pragma unroll
    for (int slab = 0; slab < kGatherWarps; ++slab) {
      if (slab >= slabs) break;
      uint32_t weights[kColumns][2];
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        if (column >= kBlocks && !wants_error) break;
        const uint16_t* of_head = &packed[column / kBlocks][8 * (column % kBlocks) + r][slab * kSlabRows + 2 * c];
        weights[column][0] = *reinterpret_cast<const uint32_t*>(of_head);
        weights[column][1] = *reinterpret_cast<const uint32_t*>(of_head + 8);
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const int pair = warp + i * kGatherWarps;
        if (pair >= kPairs) break;
        const ValueTiles<Kv> v = LoadValues<Kv, D>(values + slab * Slab<Kv, D>::kBytes, pair, lane);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int column = 0; column < kColumns; ++column) {
            if (column >= kBlocks && !wants_error) break;
            Mma<Compute<Kv>>(out[i][tile][column], v.a[tile][0], v.a[tile][1], v.a[tile][2], v.a[tile][3],
                             weights[column][0], weights[column][1]);
          }
        }
      }
    }
  }

  // Brings the sums to the stage's references.
  __device__ __forceinline__ void Raise(const GatherShared<kBlocks>& shared, int stage, bool wants_error) {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (column >= kBlocks && !wants_error) break;
      const int vector = column / kBlocks, reference = vector == 0 ? kOfAll : kOfChance;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head = 8 * (column % kBlocks) + 2 * (threadIdx.x % 4) + h;
        float keep = Rescale(shared.reference[stage ^ 1][reference][head], shared.reference[stage][reference][head]);
        if (vector == 2) keep *= keep;
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            out[i][tile][column][h] *= keep;
            out[i][tile][column][2 + h] *= keep;
          }
        }
      }
    }
  }

  __device__ __forceinline__ void Write(float* partial, int group_size, bool wants_error) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = lane % 4;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int pair = warp + i * kGatherWarps;
      if (pair >= kPairs) break;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int column = 0; column < kBlocks; ++column) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int head = 8 * column + 2 * c + (k & 1);
            if (head >= group_size) continue;
            const int at = head * D + OutputDim<Kv>(kTiles * pair + tile, lane, k / 2);
            const auto& sums = out[i][tile];
            partial[at] = sums[column][k];
            if (wants_error) {
              WriteErrorWord(partial, group_size * D + at, sums[kBlocks + column][k], sums[2 * kBlocks + column][k]);
            }
          }
        }
      }
    }
  }
};

// Writes a split's numbers; `stage`: of the split's last. Warps 0 and 1 have the even heads, 2 and 3 the odd ones. All
// threads call it.
template <int kBlocks>
__device__ void WriteNumbers(GatherShared<kBlocks>& shared, const Numbers<kBlocks>& numbers, float* partial, int stage,
                             int group_size, bool wants_error) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float t = 0, t_squared = 0;
  if (wants_error) {
    t = WarpSum(numbers.t);
    t_squared = WarpSum(numbers.t_squared);
  }
#pragma unroll
  for (int i = 0; i < Numbers<kBlocks>::kHeads; ++i) {
    if (2 * i >= group_size) break;
    const float w = WarpSum(numbers.w[i]);
    float t_w = 0, t_w2 = 0, t_w2v2[2] = {};
    if (wants_error) {
      t_w = WarpSum(numbers.t_w[i]);
      t_w2 = WarpSum(numbers.t_w2[i]);
      t_w2v2[0] = WarpSum(numbers.t_w2v2[2 * i]);
      t_w2v2[1] = WarpSum(numbers.t_w2v2[2 * i + 1]);
    }
    if (lane != 0) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = 2 * i + half;
      const bool mine = half == warp / 2;
      shared.by_warp[kSumW][warp][head] = mine ? w : 0;
      shared.by_warp[kSumT][warp][head] = t;
      shared.by_warp[kSumTT][warp][head] = t_squared;
      shared.by_warp[kSumTW][warp][head] = mine ? t_w : 0;
      shared.by_warp[kSumTW2][warp][head] = mine ? t_w2 : 0;
      shared.by_warp[kSumTW2V2][warp][head] = t_w2v2[half];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kPartialNumbers * group_size; i += kGatherThreads) {
    const int number = i / group_size, head = i % group_size;
    if (number >= kPartialSums) {
      partial[i] = shared.reference[stage][number - kPartialSums][head];
      continue;
    }
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kGatherWarps; ++w) sum += shared.by_warp[number][w][head];
    partial[i] = sum;
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_SUMS_CUH_
