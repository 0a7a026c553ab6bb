// A warp's scores of 16 rows of K straight from global memory, wherever each lies: every lane loads what its own
// fragment of the product holds, in runs of 16 (or 8) bytes. Which feature is which column of the product then follows
// from the loads, and the queries are loaded likewise.
#ifndef SANTA_KERNELS_CUDA_KEY_ROWS_CUH_
#define SANTA_KERNELS_CUDA_KEY_ROWS_CUH_

#include <type_traits>

#include "kernels/cuda/cache_view.cuh"

namespace santa::cuda {

template <typename Kv, int D>
struct KeyRows {
  static constexpr int kRowBytes = D * sizeof(Kv);
  static constexpr int kUnitBytes = kRowBytes % 64 == 0 ? 16 : 8;  // of a load
  static constexpr int kUnits = kRowBytes / kUnitBytes / 4;        // loads of a row by each of its four lanes
  static constexpr int kFeatures = kUnitBytes / sizeof(Kv);        // of a load
  using Unit = std::conditional_t<kUnitBytes == 16, uint4, uint2>;
  static_assert(kUnits * kUnitBytes * 4 == kRowBytes && kFeatures % 4 == 0);

  Unit low[kUnits], high[kUnits];  // of rows r and r + 8

  // Lane (r, c) = (lane / 4, lane % 4) gives the addresses of rows r and r + 8.
  __device__ __forceinline__ void Load(const uint8_t* low_row, const uint8_t* high_row, int lane) {
    const int c = lane % 4;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      low[i] = __ldcs(reinterpret_cast<const Unit*>(low_row) + 4 * i + c);
      high[i] = __ldcs(reinterpret_cast<const Unit*>(high_row) + 4 * i + c);
    }
  }
};

// Loads K of the 16 tokens from `token` on; in place of an invisible one, a visible one.
template <typename Kv, int D>
__device__ __forceinline__ void LoadSlabRows(KeyRows<Kv, D>& rows, const CacheView<Kv, D>& view, int token, int lane) {
  const auto row = [&](int at) {
    const int visible = min(max(at, view.begin), view.end - 1);
    return view.Row(view.PageOf(visible), visible);
  };
  rows.Load(row(token + lane / 4), row(token + lane / 4 + 8), lane);
}

// `q`: the query of the lane's head r, 16-bit; zeros where null. For ScoreRows.
template <typename Kv, int D>
__device__ __forceinline__ void LoadRowQuery(QueryFragment<D>& fragment, const uint16_t* q, int lane) {
  using Rows = KeyRows<Kv, D>;
#pragma unroll
  for (int i = 0; i < Rows::kUnits; ++i) {
#pragma unroll
    for (int s = 0; s < Rows::kFeatures / 4; ++s) {
      const uint16_t* at = q + (4 * i + lane % 4) * Rows::kFeatures + 4 * s;
      fragment.step[i * (Rows::kFeatures / 4) + s] = q ? *reinterpret_cast<const uint2*>(at) : uint2{};
    }
  }
}

// S^T of the rows, as Scores of kernels/cuda/slab.cuh gives it.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void ScoreRows(float (&s)[kBlocks][4], const KeyRows<Kv, D>& rows,
                                          const QueryFragment<D> (&q)[kBlocks]) {
  using T = Compute<Kv>;
  using Rows = KeyRows<Kv, D>;
  float even[kBlocks][4] = {}, odd[kBlocks][4] = {};
#pragma unroll
  for (int i = 0; i < Rows::kUnits; ++i) {
    const auto* low = reinterpret_cast<const uint32_t*>(&rows.low[i]);
    const auto* high = reinterpret_cast<const uint32_t*>(&rows.high[i]);
#pragma unroll
    for (int s = 0; s < Rows::kFeatures / 4; ++s) {
      uint32_t a0, a1, a2, a3;
      if constexpr (sizeof(Kv) == 2) {
        a0 = low[2 * s], a1 = high[2 * s], a2 = low[2 * s + 1], a3 = high[2 * s + 1];
      } else {
        Widen(low[s], a0, a2);
        Widen(high[s], a1, a3);
      }
      const int step = i * (Rows::kFeatures / 4) + s;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        Mma<T>(step % 2 ? odd[block] : even[block], a0, a1, a2, a3, q[block].step[step].x, q[block].step[step].y);
      }
    }
  }
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[block][i] = even[block][i] + odd[block][i];
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_KEY_ROWS_CUH_
