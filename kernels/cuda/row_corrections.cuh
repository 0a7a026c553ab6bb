// What the rows that a warp reads of a split correct of its value sketches: as kernels/cuda/row_sums.cuh, a slab of 16
// rows at a time for a quad of heads.
//
// With weights w = exp(s) / pi and w~ = e~ / pi (kernels/cuda/group_layout.h) a row adds w v here and -w~ v~ where its
// sketch is summed up (kernels/cuda/warp_split.cuh). w is in two parts of 16 bits: what it is rounded by would be
// little of w v, but more of what is left when w~ v~ has been taken off.
//
// For the standard error z = b (v - o) + w~ d is needed of every row, with b = w - w~ and d = v - v~, which nobody has
// at once. d is what v was rounded by: evenly spread within its page's steps, whatever v and b are. So |d|^2 counts as
// sum step^2 / 12 over its page's columns, and products of d with anything else as nothing.
#ifndef SANTA_KERNELS_CUDA_ROW_CORRECTIONS_CUH_
#define SANTA_KERNELS_CUDA_ROW_CORRECTIONS_CUH_

#include "kernels/cuda/row_sums.cuh"

namespace santa::cuda {

// What the sketches say of a lane's rows and columns.
struct RowSketches {
  float weight[2][2], log_unit[2];  // [row][column]: w~, in units of that column, whose log2 that is
  float squared_rounding[2];        // |d|^2
};

// Columns and lanes as RowSums has them.
template <typename Kv, int D>
struct RowCorrections : RowSums<Kv, D> {
  using Sums = RowSums<Kv, D>;
  using T = Compute<Kv>;

  struct Weights : Sums::Weights {
    uint32_t rest[2];  // of w, as packed
  };
  __device__ __forceinline__ Weights Weigh(uint32_t keys, const QueryFragment<D> (&q)[1], const Scorer& scorer,
                                           const LaneRows& rows, const RowSketches& sketches, bool wants_error,
                                           int lane) {
    const bool first_half = lane % 4 < 2;  // columns of w
    float s[1][4];
    Scores<Kv, D, 1>(s, keys, q, lane);
    float w[2][2], t[2];  // log2 of w
    float raised[kReferences][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float inverse = __log2f(InverseOf(rows.inclusion[half]));
      t[half] = this->CountRow(rows, half);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float mine = rows.listed[half] ? scorer(s[0][2 * half + h]) + inverse : kNegativeInfinity;
        const float larger = fmaxf(mine, __log2f(sketches.weight[half][h]) + sketches.log_unit[h]);
        const float of_chance = t[half] > 0 ? larger : kNegativeInfinity;
        w[half][h] = mine;
        raised[kOfAll][h] = fmaxf(half == 0 ? this->max[kOfAll][h] : raised[kOfAll][h], mine);
        raised[kOfChance][h] = fmaxf(half == 0 ? this->max[kOfChance][h] : raised[kOfChance][h], of_chance);
      }
    }
    this->RaiseTo(raised, first_half);
    Weights weights;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[2], y[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const bool of_chance = t[half] > 0;
        const float unit = Exp2(sketches.log_unit[h] - this->max[kOfChance][h]);
        const float w_sketch = of_chance ? sketches.weight[half][h] * unit : 0.0f;
        const float b = of_chance ? Exp2(w[half][h] - this->max[kOfChance][h]) - w_sketch : 0.0f, t_b = t[half] * b;
        x[h] = first_half ? Exp2(w[half][h] - this->max[kOfAll][h]) : t_b;
        y[h] = first_half ? t_b * b : 0.0f;
        this->sum[h] += x[h];
        this->sum_tw2[h] += y[h];
        this->sum_tw2v2[h] += t[half] * w_sketch * w_sketch * sketches.squared_rounding[half];
        weights.of_tw2[half][h] = y[h];
      }
      const uint32_t packed = Pack<T>(x[0], x[1]);
      const float2 kept = Unpack<T>(packed);
      weights.w[half] = Transpose8x8(packed);
      weights.rest[half] = Transpose8x8(Pack<T>(x[0] - kept.x, x[1] - kept.y));
      weights.tw2[half] = wants_error ? Transpose8x8(Pack<T>(y[0], y[1])) : 0;
    }
    return weights;
  }

  // Adds a slab of values.
  __device__ __forceinline__ void Add(uint32_t values, const Weights& weights, bool wants_error, int lane) {
    Sums::Add(values, weights, Share<false>(), wants_error, lane);
#pragma unroll
    for (int pair = 0; pair < Sums::kPairs; ++pair) {
      const ValueTiles<Kv> v = LoadValues<Kv, D>(values, pair, lane);
#pragma unroll
      for (int tile = 0; tile < Sums::kTiles; ++tile) {
        const auto& a = v.a[tile];
        Mma<T>(this->out[Sums::kTiles * pair + tile][0], a[0], a[1], a[2], a[3], weights.rest[0], weights.rest[1]);
      }
    }
  }

  // Adds what the sketches say of the split's tokens: sums of a head's features r and r + 8 of every 16, as lane (r,
  // head) has them, in units of 2^log_unit, and the mass, which all of a head's lanes have.
  __device__ __forceinline__ void AddSketches(const float (&sums)[D / 16][2], float mass, float log_unit, int lane) {
    static_assert(Sums::kTiles == 1, "lanes have other dimensions of a cache of 8 bits");
    const bool first_half = lane % 4 < 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int source = lane / 4 * 4 + 2 * (lane % 2) + h;
      const float of_head = __shfl_sync(~0u, log_unit, source), mass_of_head = __shfl_sync(~0u, mass, source);
      float& reference = this->max[kOfAll][h];
      const float raised = fmaxf(reference, of_head);
      const float keep = first_half ? Rescale(reference, raised) : 1, unit = first_half ? Exp2(of_head - raised) : 0;
      reference = raised;
      this->sum[h] = keep * this->sum[h] + (lane / 4 == 0 ? unit * mass_of_head : 0.0f);
#pragma unroll
      for (int tile = 0; tile < D / 16; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& mine = this->out[tile][0][2 * half + h];
          mine = keep * mine + unit * __shfl_sync(~0u, sums[tile][half], source);
        }
      }
    }
  }
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_ROW_CORRECTIONS_CUH_
