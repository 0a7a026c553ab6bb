// What a tile's draws tell of their own error (kernels/sampling/standard_error.h), in the pass that reads their rows.
//
// Each head's drawn rows, in their order, are taken in pairs, and the tensor cores sum them up once more, the second of
// a pair with the opposite sign, both times sqrt(tau):
//
//     u = sum over pairs sqrt(tau) (v_i - v_j),    |u|^2 ~ sum over pairs tau |v_i - v_j|^2
//
// on average, for what one pair's rows differ by says nothing of the next pair's. StepSums has the same of all steps
// from a row to the next, at the price of their distances. A row that is left over counts with its tile's others.
#ifndef SANTA_KERNELS_CUDA_TILE_ERRORS_CUH_
#define SANTA_KERNELS_CUDA_TILE_ERRORS_CUH_

#include <cstdint>

#include "kernels/cuda/tile_draws.cuh"
#include "kernels/sampling/standard_error.h"

namespace santa::cuda {

// A drawn token's number of draws, with its row's factor in u: bits 0..20, and 21..29 in units of 2^-8 (every type of
// the products holds these), bit 31 its sign.
inline constexpr int kPairShift = 21;
inline constexpr float kPairUnit = 256;

__device__ __forceinline__ uint32_t DrawsOf(uint32_t value) { return value & ((1u << kPairShift) - 1); }
__device__ __forceinline__ float PairFactorOf(uint32_t value) {
  const auto factor = static_cast<float>(value >> kPairShift & 511);
  return value >> 31 ? -factor : factor;
}

// How the draws of systematic draws fluctuate, by what CountRun left of a token's mass beside its count.
struct MassChance {
  uint32_t count_mask;   // of the count's bits
  float draws_per_mass;  // of the lane's head

  __device__ __forceinline__ uint32_t Draws(uint32_t value) const { return value & count_mask; }
  __device__ __forceinline__ float operator()(uint32_t value) const {
    return sampling::Fluctuation(static_cast<float>(value & ~count_mask) * draws_per_mass);
  }
};

// Likewise by t itself, in units of 2^-10 from the same bit on as factors.
struct ToldChance {
  static constexpr float kUnit = 1024;

  static __device__ __forceinline__ uint32_t Tell(uint32_t draws, float t) {
    return draws == 0 ? 0 : draws | static_cast<uint32_t>(rintf(kUnit * t)) << kPairShift;
  }
  __device__ __forceinline__ uint32_t Draws(uint32_t value) const { return DrawsOf(value); }
  __device__ __forceinline__ float operator()(uint32_t value) const {
    return static_cast<float>(value >> kPairShift) / kUnit;
  }
};

// Takes every head's drawn rows in pairs: value to draws and factors. chance: of the lane's head, lane / kLanes, whose
// t and pairs (in units of 2^-16) the lane adds its share of to `sums`. rows: scratch of the warp, [kHeads][256].
template <int kHeads, typename Chance>
__device__ __forceinline__ void PairRows(TileMemory<kHeads>& memory, const DrawnMask<kHeads>& drawn, uint8_t* rows,
                                         const Chance& chance, sampling::StepSums& sums, int lane) {
  using Memory = TileMemory<kHeads>;
  constexpr int kLanes = Memory::kLanes, kWords = DrawnMask<kHeads>::kWords;
  const int part = lane % kLanes;
  uint8_t* mine = rows + lane / kLanes * kTileTokens;
  uint32_t* value = memory.value[lane / kLanes];
  int through = 0;
#pragma unroll
  for (int word = 0; word < kWords; ++word) through += __popc(drawn.word[word]);
  int at = -through;
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const int other = __shfl_up_sync(~0u, through, step, kLanes);
    if (part >= step) through += other;
  }
  at += through;
  const int listed = __shfl_sync(~0u, through, kLanes - 1, kLanes);
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
#pragma unroll 1
    for (uint32_t bits = drawn.word[word]; bits != 0; bits &= bits - 1) {
      mine[at++] = static_cast<uint8_t>(part * Memory::kRun + 32 * word + __ffs(bits) - 1);
    }
  }
  __syncwarp();
#pragma unroll 1
  for (int row = 2 * part; row < listed; row += 2 * kLanes) {
    const bool paired = row + 1 < listed;
    uint32_t& first = value[Memory::Column(mine[row])];
    uint32_t& second = value[Memory::Column(mine[paired ? row + 1 : row])];
    const float t = chance(first), t_second = paired ? chance(second) : 0.0f;
    const float tau = (t + t_second) / 2;
    // However small, lest pairs of almost certain rows alone tell nothing.
    const float factor = paired && tau > 0 ? fmaxf(1, rintf(kPairUnit * sqrtf(tau))) : 0.0f;
    const uint32_t bits = static_cast<uint32_t>(factor) << kPairShift;
    sums.t += t + t_second;
    sums.pairs += factor * factor;
    if (paired) second = chance.Draws(second) | bits | 1u << 31;
    first = chance.Draws(first) | bits;
  }
  __syncwarp();
}

// u of a tile, for all heads of the group. Up to 4 heads leave 4 columns of the products with the value rows free,
// which have it then: head h's is column 4 + h of the outputs. Else it has products of its own, of some of the
// dimensions, lest the kernel run out of registers.
template <typename Kv, int D, int kHeads>
class PairSums {
 public:
  static constexpr int kBlocks = kHeads > 8 ? 2 : 1;
  static constexpr bool kInOutputs = kHeads == 4;
  using Outputs = OutputFragment<D>[kBlocks];

  // part: which dimensions; any number, in turns or at random.
  __device__ __forceinline__ void Start(Outputs& out, uint32_t part, int lane) {
    if constexpr (kInOutputs) {
      if (lane % 4 < 2) return;
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[0].o[j][i] = 0;
      }
    } else {
      first_ = part % kParts * kPairs;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) sum_[block] = {};
    }
  }

  // Adds the slab with the value rows of the list's entries from `at` on. value(head, entry): as of PairRows.
  template <typename Value>
  __device__ __forceinline__ void Add(uint32_t slab, const Value& value, int listed, int at, int lane) {
    if constexpr (kInOutputs) return;  // with the heads'
    using T = Compute<Kv>;
    const int r = lane / 4, c = lane % 4;
    WeightFragment p[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int head = 8 * block + r;
      float factor[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int entry = at + 2 * c + (i & 1) + 4 * (i & 2);
        factor[i] = entry < listed && head < kHeads ? PairFactorOf(value(head, entry)) : 0.0f;
      }
      p[block] = {Pack<T>(factor[0], factor[1]), Pack<T>(factor[2], factor[3])};
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const ValueTiles<Kv> v = LoadValues<Kv, D>(slab, first_ + pair, lane);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          Mma<T>(sum_[block].o[kTiles * pair + tile], v.a[tile][0], v.a[tile][1], v.a[tile][2], v.a[tile][3],
                 p[block].low, p[block].high);
        }
      }
    }
  }

  // The lane's share of |u|^2, of head 8 * block + 2 * (lane % 4) + h, in the units of StepSums::pairs. All lanes call
  // it.
  __device__ __forceinline__ float Square(const Outputs& out, int block, int h) const {
    if constexpr (kInOutputs) return __shfl_xor_sync(~0u, SquareOf(out[0].o, h), 2);
    return kParts * SquareOf(sum_[block].o, h);
  }

 private:
  template <int kCount>
  static __device__ __forceinline__ float SquareOf(const float (&o)[kCount][4], int h) {
    float square = 0;
#pragma unroll
    for (int j = 0; j < kCount; ++j) square = fmaf(o[j][h], o[j][h], fmaf(o[j][h + 2], o[j][h + 2], square));
    return square;
  }

  static constexpr int kTiles = ValueTiles<Kv>::kTiles, kAllPairs = Slab<Kv, D>::kChunks / 2;
  // As few parts of the same size as there are registers for one of: few where the outputs alone take most.
  static constexpr int kRegisters = D * kBlocks > 256 ? 8 : 32;
  static constexpr int PartsOf() {
    int parts = 1;
    while (parts < kAllPairs && (kAllPairs % parts != 0 || 4 * kBlocks * kTiles * (kAllPairs / parts) > kRegisters)) {
      ++parts;
    }
    return parts;
  }
  static constexpr int kParts = PartsOf(), kPairs = kAllPairs / kParts;

  int first_ = 0;
  OutputFragment<D / kParts> sum_[kBlocks];
};

// Of draws that are independent: the sum of |v|^2, which the tensor cores have as V V^T's diagonal.
template <typename Kv, int D, int kHeads>
class NormSums {
 public:
  static constexpr int kBlocks = kHeads > 8 ? 2 : 1;

  // Adds the slab with the value rows of the list's entries from `at` on, each as often as draws(head, entry).
  template <typename Draws>
  __device__ __forceinline__ void Add(uint32_t slab, const Draws& draws, int listed, int at, int lane) {
    using T = Compute<Kv>;
    const int row = lane % 16, high = lane / 16, r = lane / 4, c = lane % 4;
    float left[4] = {}, right[4] = {};  // products with the slab's tokens 0 to 7, and 8 to 15
#pragma unroll
    for (int pair = 0; pair < Slab<Kv, D>::kChunks / 2; ++pair) {
      const uint4 v = LoadMatrices(slab + Slab<Kv, D>::At(row, 2 * pair + high));
      if constexpr (sizeof(Kv) == 2) {
        Mma<T>(left, v.x, v.y, v.z, v.w, v.x, v.z);
        Mma<T>(right, v.x, v.y, v.z, v.w, v.y, v.w);
      } else {
        uint32_t low[4], top[4];
        Widen(v.x, low[0], top[0]);
        Widen(v.y, low[1], top[1]);
        Widen(v.z, low[2], top[2]);
        Widen(v.w, low[3], top[3]);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          Mma<T>(left, low[i], low[i + 1], top[i], top[i + 1], low[i], top[i]);
          Mma<T>(right, low[i], low[i + 1], top[i], top[i + 1], low[i + 1], top[i + 1]);
        }
      }
    }
    // Token 2c is on the diagonal in lane (2c, c), token 2c + 1 in lane (2c + 1, c).
    const float norm[4] = {__shfl_sync(~0u, left[0], 9 * c), __shfl_sync(~0u, left[1], 9 * c + 4),
                           __shfl_sync(~0u, right[2], 9 * c), __shfl_sync(~0u, right[3], 9 * c + 4)};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int head = 8 * block + r;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int entry = at + 2 * c + (i & 1) + 4 * (i & 2);
        if (entry < listed && head < kHeads) sum_[block] = fmaf(draws(head, entry), norm[i], sum_[block]);
      }
    }
  }

  // The sum of head 8 * block + 2 * (lane % 4) + h, in one lane of those with that head; 0 in the others. All call it.
  __device__ __forceinline__ float Sum(int block, int h, int lane) const {
    float of_row = sum_[block];  // of head 8 * block + lane / 4
    of_row += __shfl_xor_sync(~0u, of_row, 1);
    of_row += __shfl_xor_sync(~0u, of_row, 2);
    const float sum = __shfl_sync(~0u, of_row, 4 * (2 * (lane % 4) + h));
    return lane / 4 == 0 ? sum : 0.0f;
  }

 private:
  float sum_[kBlocks] = {};
};

// A warp's share of the heads' StepSums, over any number of tiles.
template <int kHeads>
struct WarpErrors {
  static constexpr int kBlocks = kHeads > 8 ? 2 : 1, kLanes = TileMemory<kHeads>::kLanes;

  sampling::StepSums of_rows;    // the lane's t and pairs, of head lane / kLanes
  float steps[kBlocks][2] = {};  // the lane's, of head 8 * block + 2 * (lane % 4) + h

  template <typename Kv, int D>
  __device__ __forceinline__ void AddSteps(const PairSums<Kv, D, kHeads>& pairs,
                                           const OutputFragment<D> (&out)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) steps[block][h] += pairs.Square(out, block, h);
    }
  }

  // The warp's sums of a block of 8 heads to three floats of each, `pitch` apart: t, pairs, steps.
  __device__ __forceinline__ void Write(float* to, int pitch, int block, int lane) const {
    float t = of_rows.t, pairs = of_rows.pairs;
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      t += __shfl_xor_sync(~0u, t, step);
      pairs += __shfl_xor_sync(~0u, pairs, step);
    }
    const int head = lane / kLanes;
    if (lane % kLanes == 0 && head / 8 == block) {
      to[head % 8 * pitch] = t;
      to[head % 8 * pitch + 1] = pairs;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = steps[block][h];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
      const int in_block = 2 * (lane % 4) + h;
      if (lane / 4 == 0) to[in_block * pitch + 2] = sum;
    }
  }
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_TILE_ERRORS_CUH_
