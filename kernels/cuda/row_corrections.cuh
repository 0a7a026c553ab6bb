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
  __device__ __forceinline__ Weights Weigh(const float (&dots)[4], const Scorer& scorer, const LaneRows& rows,
                                           const RowSketches& sketches, int split, int lane) {
    const bool of_w = lane % 4 < 2;
    float w[2][2];  // [row][column], log2
    float s[2], raised[2] = {this->max[0], this->max[1]};
    this->TakeChances(s, rows, split, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool counts = of_w ? rows.listed[half] : rows.IsChance(half);
      const float inverse = __log2f(InverseOf(rows.inclusion[half]));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        w[half][h] = counts ? scorer(dots[2 * half + h]) + inverse : kNegativeInfinity;
        const float sketch = __log2f(sketches.weight[half][h]) + sketches.log_unit[h];
        raised[h] = fmaxf(raised[h], of_w || !counts ? w[half][h] : fmaxf(w[half][h], sketch));
      }
    }
    this->RaiseTo(raised);
    Weights weights;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool counts = rows.IsChance(half);
      float x[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float of_row = Rescale(w[half][h], this->max[h]);
        const float sketch =
            counts ? s[half] * sketches.weight[half][h] * Exp2(sketches.log_unit[h] - this->max[h]) : 0;
        x[h] = of_w ? of_row : s[half] * of_row - sketch;
        this->sum[h] += x[h];
        if (!of_w) this->rounding[h] += sketch * sketch * sketches.squared_rounding[half];
      }
      const uint32_t packed = Pack<T>(x[0], x[1]);
      const float2 kept = Unpack<T>(packed);
      weights.w[half] = Transpose8x8(packed);
      weights.rest[half] = Transpose8x8(Pack<T>(x[0] - kept.x, x[1] - kept.y));
    }
    return weights;
  }

  // Adds a slab of values.
  __device__ __forceinline__ void Add(uint32_t values, const Weights& weights, int lane) {
    Sums::Add(values, weights, Share<false>(), lane);
#pragma unroll
    for (int pair = 0; pair < Sums::kPairs; ++pair) {
      const ValueTiles<Kv> v = LoadValues<Kv, D>(values, pair, lane);
#pragma unroll
      for (int tile = 0; tile < Sums::kTiles; ++tile) {
        const auto& a = v.a[tile];
        Mma<T>(this->out[Sums::kTiles * pair + tile], a[0], a[1], a[2], a[3], weights.rest[0], weights.rest[1]);
      }
    }
  }

  // Adds what the sketches say of the split's tokens: sums of a head's features r and r + 8 of every 16, as lane (r,
  // head) has them, in units of 2^log_unit, and the mass, which all of a head's lanes have.
  __device__ __forceinline__ void AddSketches(const float (&sums)[D / 16][2], float mass, float log_unit, int lane) {
    static_assert(Sums::kTiles == 1, "lanes have other dimensions of a cache of 8 bits");
    const bool of_w = lane % 4 < 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int source = lane / 4 * 4 + 2 * (lane % 2) + h;
      const float of_head = __shfl_sync(~0u, log_unit, source), mass_of_head = __shfl_sync(~0u, mass, source);
      float& reference = this->max[h];
      const float raised = of_w ? fmaxf(reference, of_head) : reference;
      const float keep = of_w ? Rescale(reference, raised) : 1, unit = of_w ? Exp2(of_head - raised) : 0;
      reference = raised;
      this->sum[h] = keep * this->sum[h] + (lane / 4 == 0 ? unit * mass_of_head : 0.0f);
#pragma unroll
      for (int tile = 0; tile < D / 16; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& mine = this->out[tile][2 * half + h];
          mine = keep * mine + unit * __shfl_sync(~0u, sums[tile][half], source);
        }
      }
    }
  }
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_ROW_CORRECTIONS_CUH_
