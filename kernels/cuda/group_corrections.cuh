// What the rows that a block of kernels/cuda/gather_corrections.cu reads differ by from what the sketches say of them.
//
// With weights w = exp(s) / pi and w~ = e~ / pi (kernels/cuda/group_layout.h), b = w - w~ and d = v - v~, a row adds b
// to the mass and w v - w~ v~ = b v + w~ d to the sum: nothing small is left of large numbers. So a stage is summed
// twice, first as the rows lie there, then with d in their place.
#ifndef SANTA_KERNELS_CUDA_GROUP_CORRECTIONS_CUH_
#define SANTA_KERNELS_CUDA_GROUP_CORRECTIONS_CUH_

#include <type_traits>

#include "kernels/cuda/group_sums.cuh"
#include "kernels/cuda/sketch_codes.cuh"
#include "kernels/cuda/sketch_layout.h"
#include "kernels/sampling/sketch.h"

namespace santa::cuda {

template <int kBlocks>
struct CorrectionShared : CodedShared<kBlocks> {
  float sketched[8 * kBlocks][kPitch];  // log2 of w~; -inf where there is none
  float own[8 * kBlocks];               // what brings the rows' sums to the answer's reference
  unsigned alone, unread;               // bits of heads, as AddSketches finds them
};

// Where the sketches of the values of one head's pages lie.
template <int D>
struct ValueSketchView {
  const uint8_t* columns;  // of page 0
  size_t page_bytes;
  float largest;  // code

  __device__ ValueSketchView(const GroupLaunch& group, const DeviceItem& item, int kv_head) {
    const int page_size = 1 << group.decode.page_shift, bits = group.sketch == Sketch::kK4V4 ? 4 : 8;
    const size_t head_bytes = SketchHeadBytes(D, page_size, bits, bits);
    columns = static_cast<const uint8_t*>(item.sketch) + (kv_head + 1) * head_bytes - SketchColumnBytes(D);
    page_bytes = group.decode.num_kv_heads * head_bytes;
    largest = static_cast<float>((1 << bits) - 1);
  }
};

// Starts copying the codes of the warp's 16 entries from `at` on, of either kind.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void CopySketchCodes(CorrectionShared<kBlocks>& shared, const GatherTask<Kv, D>& task,
                                                const uint32_t* list, int end, int at, int lane) {
  const int warp_row = threadIdx.x / 32 * kSlabRows;
  if (task.code_bytes() == 2) {
    CopyCodes<Kv, D, kBlocks>(shared.codes[0] + warp_row, task, list, end, at + warp_row, lane);
  } else {
    auto* codes = reinterpret_cast<uint8_t(*)[8 * kBlocks]>(shared.codes[0]);
    CopyCodes<Kv, D, kBlocks>(codes + warp_row, task, list, end, at + warp_row, lane);
  }
}

// log2 of w~ of the warp's 16 rows from their codes, to be added to those of w: shared.weight and warp_max. octaves are
// the blocks' largest scores.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void WeighSketches(const GatherTask<Kv, D>& task, CorrectionShared<kBlocks>& shared,
                                              const uint32_t* list, int end, int at, int lane) {
  const int r = lane / 4, c = lane % 4, warp = threadIdx.x / 32, heads = task.quads() * kQuad;
  const bool wide = task.code_bytes() == 2;
#pragma unroll
  for (int column = 0; column < 2 * kBlocks; ++column) {
    const int head = 8 * (column / 2) + 2 * c + column % 2;
    float max[kReferences] = {kNegativeInfinity, kNegativeInfinity};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp * kSlabRows + r + 8 * half;
      const uint32_t entry = list[min(at + row, end - 1)];
      const int place = PlaceOf(entry);
      float sketched = kNegativeInfinity;
      if (head < task.group_size() && at + row < end && task.splits.origin + place < task.full_end &&
          !task.group.alone) {
        const float code = wide ? shared.codes[0][row][head]
                                : reinterpret_cast<const uint8_t(*)[8 * kBlocks]>(shared.codes[0])[row][head];
        const float steps = wide ? sampling::kStepsPerOctave<uint16_t> : sampling::kStepsPerOctave<uint8_t>;
        const float weight = SketchWeight(0x1p23f + code, steps) - 0x1p23f;
        sketched = shared.octaves[place / sampling::kCodeBlock * heads + head] + (__log2f(weight) - kWeightOctaves) +
                   __log2f(InverseOf(InclusionOf(entry)));
      }
      shared.sketched[head][row] = sketched;
      max[kOfAll] = fmaxf(max[kOfAll], sketched);
      if (InclusionOf(entry) < sampling::kCertain) max[kOfChance] = fmaxf(max[kOfChance], sketched);
    }
#pragma unroll
    for (int reference = 0; reference < kReferences; ++reference) {
      float& mine = max[reference];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) mine = fmaxf(mine, __shfl_xor_sync(~0u, mine, step));
      float& of_warp = shared.warp_max[reference][warp][head];
      if (r == 0) of_warp = fmaxf(of_warp, mine);
    }
  }
}

// What a thread of the two functions below has: a row of the stage.
template <typename Kv, int D>
struct StageRow {
  int row, half;
  bool listed;
  int token;
  float t;

  __device__ __forceinline__ StageRow(const GatherTask<Kv, D>& task, const uint32_t* list, int end, int at)
      : row(threadIdx.x % kStageRows), half(threadIdx.x / kStageRows), listed(at + row < end) {
    const uint32_t entry = list[listed ? at + row : end - 1];
    token = task.splits.origin + PlaceOf(entry);
    t = listed ? 1 - static_cast<float>(InclusionOf(entry)) / static_cast<float>(sampling::kCertain) : 0;
  }
};

// Packs b, t b and t b^2 of the stage's rows against the references, which it raises, and adds up their numbers; as
// PackWeights, but for norms.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void PackMassCorrections(const GatherTask<Kv, D>& task, CorrectionShared<kBlocks>& shared,
                                                    Numbers<kBlocks>& numbers, const uint32_t* list, int end, int at,
                                                    int stage, bool wants_error) {
  using T = Compute<Kv>;
  const StageRow<Kv, D> mine(task, list, end, at);
  const int row = mine.row;
  const auto pack = [](float x) { return static_cast<uint16_t>(Pack<T>(x, 0)); };
#pragma unroll
  for (int i = 0; i < Numbers<kBlocks>::kHeads; ++i) {
    const int head = 2 * i + mine.half;
    if (2 * i >= task.group_size()) break;
    const float weight = shared.weight[head][row], sketched = shared.sketched[head][row];
    const auto raise = [&](int reference) {
      const float raised = RaisedReference(shared, stage, reference, head);
      if (row == 0) shared.reference[stage][reference][head] = raised;
      return raised;
    };
    const float of_all = raise(kOfAll);
    const float b = Exp2(weight - of_all) - Exp2(sketched - of_all);
    numbers.w[i] = fmaf(numbers.w[i], Rescale(shared.reference[stage ^ 1][kOfAll][head], of_all), b);
    shared.packed[0][head][row] = pack(b);
    if (!wants_error) continue;
    const float of_chance = raise(kOfChance), t = mine.t;
    const float u = t > 0 ? Exp2(weight - of_chance) - Exp2(sketched - of_chance) : 0.0f, t_b = t * u, t_b2 = t_b * u;
    const float keep = Rescale(shared.reference[stage ^ 1][kOfChance][head], of_chance);
    numbers.t_w[i] = fmaf(numbers.t_w[i], keep, t_b);
    numbers.t_w2[i] = fmaf(numbers.t_w2[i], keep * keep, t_b2);
    shared.packed[1][head][row] = pack(t_b);
    shared.packed[2][head][row] = pack(t_b2);
  }
  if (wants_error && mine.half == 0) {
    numbers.t += mine.t;
    numbers.t_squared += mine.t * mine.t;
  }
}

template <typename T>
__device__ __forceinline__ float2 Unpack(uint32_t two) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&two));
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&two));
  }
}

// Products of a row's values and differences.
struct RowProducts {
  float vv = 0, vd = 0, dd = 0;

  __device__ __forceinline__ void Add(float v, float d) {
    vv = fmaf(v, v, vv);
    vd = fmaf(v, d, vd);
    dd = fmaf(d, d, dd);
  }
};

// Puts d in the place of a row's values in half of its dimensions, 0 where it has no sketch. columns: those of the
// row's page, or null.
template <typename Kv, int D>
__device__ __forceinline__ RowProducts ReplaceByDifferences(unsigned char* values, int row, int half,
                                                            const uint4* columns, float largest) {
  using T = Compute<Kv>;
  using S = Slab<Kv, D>;
  static_assert(sizeof(Kv) == 2);
  constexpr float kMost = std::is_same_v<T, __half> ? sampling::kLargestHalf : 3.3e38f;  // so that none is infinite
  RowProducts products;
  unsigned char* slab = values + row / kSlabRows * S::kBytes;
#pragma unroll 2
  for (int tile = half * (D / 32); tile < (half + 1) * (D / 32); ++tile) {
    uint4& low_chunk = *reinterpret_cast<uint4*>(slab + S::At(row % kSlabRows, 2 * tile));
    uint4& high_chunk = *reinterpret_cast<uint4*>(slab + S::At(row % kSlabRows, 2 * tile + 1));
    uint4 low = low_chunk, high = high_chunk;
    uint32_t* const words[2] = {reinterpret_cast<uint32_t*>(&low), reinterpret_cast<uint32_t*>(&high)};
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      // Of features 2 pair and 2 pair + 1: each with the one 8 after it, which the other chunk has.
      const uint4 column = columns == nullptr ? uint4{} : __ldg(columns + 4 * tile + pair);
      const float2 step[2] = {Unpack<__half>(column.x), Unpack<__half>(column.z)};
      const float2 from[2] = {Unpack<__half>(column.y), Unpack<__half>(column.w)};
#pragma unroll
      for (int chunk = 0; chunk < 2; ++chunk) {
        const float2 v = Unpack<T>(words[chunk][pair]);
        const auto difference = [&](float x, int i) {
          const float mine = chunk == 0 ? step[i].x : step[i].y, least = chunk == 0 ? from[i].x : from[i].y;
          const float d = x - fmaf(mine, ValueCode(x, least, InverseStep(mine), largest), least);
          return columns == nullptr ? 0.0f : fminf(kMost, fmaxf(-kMost, d));
        };
        const float2 d = {difference(v.x, 0), difference(v.y, 1)};
        products.Add(v.x, d.x);
        products.Add(v.y, d.y);
        words[chunk][pair] = Pack<T>(d.x, d.y);
      }
    }
    low_chunk = low;
    high_chunk = high;
  }
  return products;
}

// Puts d in the place of the stage's values, packs w~, t w~ and t b w~ of its rows and adds up t |b v + w~ d|^2, all
// against the references that PackMassCorrections has left.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void PackDifferences(const GatherTask<Kv, D>& task, CorrectionShared<kBlocks>& shared,
                                                Numbers<kBlocks>& numbers, unsigned char* values,
                                                const ValueSketchView<D>& sketches, const uint32_t* list, int end,
                                                int at, int stage, bool wants_error) {
  using T = Compute<Kv>;
  const StageRow<Kv, D> mine(task, list, end, at);
  const int row = mine.row, shift = task.view.page_shift;
  const uint4* columns = nullptr;
  if (mine.listed && mine.token < task.full_end) {
    const int32_t page = shared.page[(mine.token >> shift) - (task.splits.begin >> shift)];
    columns = reinterpret_cast<const uint4*>(sketches.columns + page * sketches.page_bytes);
  }
  const RowProducts products = ReplaceByDifferences<Kv, D>(values, row, mine.half, columns, sketches.largest);
  const auto pack = [](float x) { return static_cast<uint16_t>(Pack<T>(x, 0)); };
#pragma unroll
  for (int head = 0; head < 2 * Numbers<kBlocks>::kHeads; ++head) {
    if (head >= task.group_size()) break;
    const float sketched = shared.sketched[head][row];
    const bool packs = head % 2 == mine.half;
    if (packs) shared.packed[0][head][row] = pack(Exp2(sketched - shared.reference[stage][kOfAll][head]));
    if (!wants_error) continue;
    const float of_chance = shared.reference[stage][kOfChance][head], t = mine.t;
    const float of_sketch = t > 0 ? Exp2(sketched - of_chance) : 0.0f;
    const float b = t > 0 ? Exp2(shared.weight[head][row] - of_chance) - of_sketch : 0.0f;
    if (packs) {
      shared.packed[1][head][row] = pack(t * of_sketch);
      shared.packed[2][head][row] = pack(t * b * of_sketch);
    }
    const float keep = Rescale(shared.reference[stage ^ 1][kOfChance][head], of_chance);
    const float square = b * b * products.vv + 2 * b * of_sketch * products.vd + of_sketch * of_sketch * products.dd;
    numbers.t_w2v2[head] = fmaf(numbers.t_w2v2[head], keep * keep, t * square);
  }
}

// Adds what the sketches say of all tokens to the sums over the rows, which AddSplits has left: `vectors` and the mass,
// against the larger reference of the two. Finds the heads that are better off without, and those without a row.
template <int D, int kBlocks>
__device__ void AddSketches(const GroupArrays& arrays, int kv_head, int group_size, CorrectionShared<kBlocks>& shared,
                            float* vectors) {
  const int num_splits = arrays.num_splits(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float2* masses = arrays.sketch_masses(kv_head);
  for (int head = warp; head < group_size; head += kGatherWarps) {
    const float reference = shared.reference[0][kOfAll][head];
    float max = reference;
    for (int split = lane; split < num_splits; split += 32)
      max = fmaxf(max, __ldcg(masses + split * group_size + head).x);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
    float mass = 0;
    for (int split = lane; split < num_splits; split += 32) {
      const float2 of_split = __ldcg(masses + split * group_size + head);
      mass = fmaf(Rescale(of_split.x, max), of_split.y, mass);
    }
    mass = WarpSum(mass);
    __syncwarp();  // every lane has read the reference that lane 0 replaces
    if (lane != 0) continue;
    const float own = Rescale(reference, max), corrected = fmaf(own, shared.number[kSumW][head], mass);
    shared.own[head] = own;
    shared.reference[0][kOfAll][head] = max;
    shared.number[kSumW][head] = corrected;
    if (corrected < static_cast<float>(sampling::kLeastCorrectedMass) * mass) atomicAdd(&shared.alone, 1u << head);
    if (reference == kNegativeInfinity) atomicAdd(&shared.unread, 1u << head);
  }
  __syncthreads();
  for (int from = 0; from < num_splits; from += 32) {
    const int count = min(32, num_splits - from);
    for (int i = threadIdx.x; i < count * group_size; i += kGatherThreads) {
      const float max = shared.reference[0][kOfAll][i % group_size];
      shared.factor[kOfAll][i / group_size][i % group_size] = Rescale(__ldcg(masses + from * group_size + i).x, max);
    }
    __syncthreads();
    for (int quad = threadIdx.x; quad < group_size * D / 4; quad += kGatherThreads) {
      const int head = quad / (D / 4);
      auto& sum_at = *reinterpret_cast<float4*>(vectors + 4 * quad);
      float4 sum = from == 0 ? shared.own[head] * sum_at : sum_at;
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        sum += shared.factor[kOfAll][i][head] *
               __ldcg(reinterpret_cast<const float4*>(arrays.sketch_sums(kv_head, from + i)) + quad);
      }
      sum_at = sum;
    }
    __syncthreads();
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_CORRECTIONS_CUH_
