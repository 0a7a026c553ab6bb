// What the rows that a block of kernels/cuda/gather_corrections.cu reads differ by from what the sketches say of them.
//
// With weights w = exp(s) / pi and w~ = e~ / pi (kernels/cuda/group_layout.h), b = w - w~ and d = v - v~, a row adds b
// to the mass and w v - w~ v~ = b v + w~ d to the sum: nothing small is left of large numbers. So a stage has its rows
// twice: as they are, and as differences.
#ifndef SANTA_KERNELS_CUDA_GROUP_CORRECTIONS_CUH_
#define SANTA_KERNELS_CUDA_GROUP_CORRECTIONS_CUH_

#include <type_traits>

#include "kernels/cuda/group_sums.cuh"
#include "kernels/cuda/sketch_codes.cuh"
#include "kernels/cuda/sketch_layout.h"
#include "kernels/sampling/sketch.h"

namespace santa::cuda {

// Products of a row's values and differences.
struct RowProducts {
  float vv = 0, vd = 0, dd = 0;

  __device__ __forceinline__ void Add(float v, float d) {
    vv = fmaf(v, v, vv);
    vd = fmaf(v, d, vd);
    dd = fmaf(d, d, dd);
  }
};

template <int kBlocks>
struct CorrectionShared : OctaveShared<kBlocks> {
  alignas(16) uint16_t codes[kStageRows][8 * kBlocks];       // of the stage's rows, or as many of 8 bits
  float sketched[8 * kBlocks][kWeightPitch];                 // log2 of w~; -inf where there is none
  uint16_t of_sketch[kPartialVectors][8 * kBlocks][kPitch];  // as `packed`, for the differences
  float own[8 * kBlocks];                                    // what brings the rows' sums to the answer's reference
  unsigned alone, unread;                                    // bits of heads, as AddSketches finds them

  // Of the stage's rows; where `factor` is, which the end alone has.
  __device__ __forceinline__ RowProducts* products() {
    static_assert(sizeof(RowProducts) * kStageRows <= sizeof(this->factor));
    return reinterpret_cast<RowProducts*>(&this->factor);
  }
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

// Has the L2 cache fetch the columns of the pages of the warp's 16 entries from `at` on, at most.
template <typename Kv, int D>
__device__ __forceinline__ void FetchColumns(const ValueSketchView<D>& sketches, const GatherTask<Kv, D>& task,
                                             const int32_t* pages, const uint32_t* list, int end, int at, int lane) {
  const int shift = task.view.page_shift, index = at + lane % kSlabRows;
  const int token = task.splits.origin + PlaceOf(list[min(index, end - 1)]);
  if (index >= end || token >= task.full_end) return;
  const uint8_t* columns =
      sketches.columns + pages[(token >> shift) - (task.splits.begin >> shift)] * sketches.page_bytes;
  for (int line = lane / kSlabRows; line < SketchColumnBytes(D) / 128; line += 32 / kSlabRows) {
    FetchLine(columns + 128 * line);
  }
}

// Starts copying the codes of the warp's 16 entries from `at` on, of either kind.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void CopySketchCodes(CorrectionShared<kBlocks>& shared, const GatherTask<Kv, D>& task,
                                                const uint32_t* list, int end, int at, int lane) {
  const int warp_row = threadIdx.x / 32 * kSlabRows;
  if (task.code_bytes() == 2) {
    CopyCodes<Kv, D, kBlocks>(shared.codes + warp_row, task, list, end, at + warp_row, lane);
  } else {
    auto* codes = reinterpret_cast<uint8_t(*)[8 * kBlocks]>(shared.codes);
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
        const float code =
            wide ? shared.codes[row][head] : reinterpret_cast<const uint8_t(*)[8 * kBlocks]>(shared.codes)[row][head];
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

// What the warp leaves whose 16 rows are past the list's end.
template <int kBlocks>
__device__ __forceinline__ void LeaveNoWeight(CorrectionShared<kBlocks>& shared, int warp, int lane) {
  if (lane >= 8 * kBlocks) return;
#pragma unroll
  for (int reference = 0; reference < kReferences; ++reference) {
    shared.warp_max[reference][warp][lane] = kNegativeInfinity;
  }
}

// v less what a sketch says of it, in units of T, so that it is finite where v is.
template <typename T>
__device__ __forceinline__ float DifferenceOf(float v, float step, float low, float largest) {
  const float d = v - fmaf(step, ValueCode(v, low, InverseStep(step), largest), low);
  // Numbers of 8 exponent bits lose nothing that matters; of 5 the sketch's end may be far from the largest.
  return std::is_same_v<T, __half> ? fminf(sampling::kLargestHalf, fmaxf(-sampling::kLargestHalf, d)) : d;
}

// The differences of the warp's 16 rows of the stage, 0 of those without a sketch, and where errors are wanted the
// rows' products. Lanes (j, p) = (lane / 4, lane % 4) have rows j and j + 8; of every 16 features 2p, 2p + 1, and those
// 8 after them.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void TakeDifferences(const GatherTask<Kv, D>& task, CorrectionShared<kBlocks>& shared,
                                                unsigned char* differences, const unsigned char* values,
                                                const ValueSketchView<D>& sketches, const uint32_t* list, int end,
                                                int at, bool wants_error, int lane) {
  using T = Compute<Kv>;
  using S = Slab<Kv, D>;
  static_assert(sizeof(Kv) == 2);
  const int j = lane / 4, p = lane % 4, warp_row = threadIdx.x / 32 * kSlabRows, shift = task.view.page_shift;
  bool has[2];
  const uint4* columns[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int index = at + warp_row + j + 8 * half;
    const int token = task.splits.origin + PlaceOf(list[min(index, end - 1)]);
    has[half] = index < end && token < task.full_end;
    const int32_t page = shared.page[has[half] ? (token >> shift) - (task.splits.begin >> shift) : 0];
    columns[half] = reinterpret_cast<const uint4*>(sketches.columns + page * sketches.page_bytes) + p;
  }
  RowProducts products[2];
#pragma unroll 4
  for (int tile = 0; tile < D / 16; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Of features 2p and 2p + 1: each with the one 8 after it, which the other chunk has.
      const uint4 column = __ldg(columns[half] + 4 * tile);
      const float2 step[2] = {Unpack<__half>(column.x), Unpack<__half>(column.z)};
      const float2 low[2] = {Unpack<__half>(column.y), Unpack<__half>(column.w)};
#pragma unroll
      for (int chunk = 0; chunk < 2; ++chunk) {
        const uint32_t offset = S::At(j + 8 * half, 2 * tile + chunk) + 4 * p;
        const float2 v = Unpack<T>(*reinterpret_cast<const uint32_t*>(values + offset));
        const auto difference = [&](float x, int i) {
          return chunk == 0 ? DifferenceOf<T>(x, step[i].x, low[i].x, sketches.largest)
                            : DifferenceOf<T>(x, step[i].y, low[i].y, sketches.largest);
        };
        const float2 d = {difference(v.x, 0), difference(v.y, 1)};
        products[half].Add(v.x, d.x);
        products[half].Add(v.y, d.y);
        *reinterpret_cast<uint32_t*>(differences + offset) = has[half] ? Pack<T>(d.x, d.y) : 0;
      }
    }
  }
  if (!wants_error) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    RowProducts& mine = products[half];
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      mine.vv += __shfl_xor_sync(~0u, mine.vv, step);
      mine.vd += __shfl_xor_sync(~0u, mine.vd, step);
      mine.dd += __shfl_xor_sync(~0u, mine.dd, step);
    }
    if (p == 0) {
      shared.products()[warp_row + j + 8 * half] = has[half] ? mine : RowProducts{mine.vv, 0, 0};
    }
  }
}

// Packs b, t b and t b^2 of the stage's rows, and w~, t w~ and t b w~, against the references, which it raises, and
// adds up the rows' numbers. Thread (row, half) has every other head of one row.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void PackCorrections(const GatherTask<Kv, D>& task, CorrectionShared<kBlocks>& shared,
                                                Numbers<kBlocks>& numbers, const uint32_t* list, int end, int at,
                                                int stage, bool wants_error) {
  using T = Compute<Kv>;
  const int row = threadIdx.x % kStageRows, half = threadIdx.x / kStageRows;
  const bool listed = at + row < end;
  const auto inclusion = static_cast<float>(InclusionOf(list[listed ? at + row : end - 1]));
  const float t = listed ? 1 - inclusion / static_cast<float>(sampling::kCertain) : 0;
  const RowProducts products = wants_error && listed ? shared.products()[row] : RowProducts{};
  const auto pack = [](float x) { return static_cast<uint16_t>(Pack<T>(x, 0)); };
#pragma unroll
  for (int i = 0; i < Numbers<kBlocks>::kHeads; ++i) {
    const int head = 2 * i + half;
    if (2 * i >= task.group_size()) break;
    // Of a row past the list's end nothing may have been left.
    const float weight = listed ? shared.weight[head][row] : kNegativeInfinity;
    const float sketched = listed ? shared.sketched[head][row] : kNegativeInfinity;
    const auto raise = [&](int reference) {
      const float raised = RaisedReference(shared, stage, reference, head);
      if (row == 0) shared.reference[stage][reference][head] = raised;
      return raised;
    };
    const float of_all = raise(kOfAll), w_sketch = Exp2(sketched - of_all), b = Exp2(weight - of_all) - w_sketch;
    numbers.w[i] = fmaf(numbers.w[i], Rescale(shared.reference[stage ^ 1][kOfAll][head], of_all), b);
    shared.packed[0][head][row] = pack(b);
    shared.of_sketch[0][head][row] = pack(w_sketch);
    if (!wants_error) continue;
    const float of_chance = raise(kOfChance);
    const float u_sketch = t > 0 ? Exp2(sketched - of_chance) : 0.0f;
    const float u = t > 0 ? Exp2(weight - of_chance) - u_sketch : 0.0f, t_b = t * u, t_b2 = t_b * u;
    const float keep = Rescale(shared.reference[stage ^ 1][kOfChance][head], of_chance);
    numbers.t_w[i] = fmaf(numbers.t_w[i], keep, t_b);
    numbers.t_w2[i] = fmaf(numbers.t_w2[i], keep * keep, t_b2);
    shared.packed[1][head][row] = pack(t_b);
    shared.packed[2][head][row] = pack(t_b2);
    shared.of_sketch[1][head][row] = pack(t * u_sketch);
    shared.of_sketch[2][head][row] = pack(t_b * u_sketch);
    const float square = u * u * products.vv + 2 * u * u_sketch * products.vd + u_sketch * u_sketch * products.dd;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& sum = numbers.t_w2v2[2 * i + h];
      if (h == half) sum = fmaf(sum, keep * keep, t * square);
    }
  }
  if (wants_error && half == 0) {
    numbers.t += t;
    numbers.t_squared += t * t;
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
#pragma unroll 4
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
