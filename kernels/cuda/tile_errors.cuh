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

// u of a tile, or of a warp's part of it: for all heads of the group, and some of the dimensions, lest the kernel run
// out of registers.
template <typename Kv, int D, int kHeads>
class PairSums {
 public:
  static constexpr int kBlocks = kHeads > 8 ? 2 : 1;

  // Which dimensions: any number, in turns or at random.
  __device__ __forceinline__ void Start(uint32_t part) {
    first_ = part % kParts * kPairs;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) sum_[block] = {};
  }

  // Adds the slab with the value rows of the list's entries from `at` on.
  __device__ __forceinline__ void Add(uint32_t slab, const TileMemory<kHeads>& memory, int listed, int at, int lane) {
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
        factor[i] = entry < listed && head < kHeads
                        ? PairFactorOf(memory.value[head][TileMemory<kHeads>::Column(memory.list[entry])])
                        : 0.0f;
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

  // The lane's share of |u|^2, of head 8 * block + 2 * (lane % 4) + h, in the units of StepSums::pairs.
  __device__ __forceinline__ float Square(int block, int h) const {
    float square = 0;
#pragma unroll
    for (int j = 0; j < kTiles * kPairs; ++j) {
      square = fmaf(sum_[block].o[j][h], sum_[block].o[j][h], square);
      square = fmaf(sum_[block].o[j][h + 2], sum_[block].o[j][h + 2], square);
    }
    return kParts * square;
  }

 private:
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

// A warp's share of the heads' StepSums, over any number of tiles.
template <int kHeads>
struct WarpErrors {
  static constexpr int kBlocks = kHeads > 8 ? 2 : 1, kLanes = TileMemory<kHeads>::kLanes;

  sampling::StepSums of_rows;    // the lane's t and pairs, of head lane / kLanes
  float steps[kBlocks][2] = {};  // the lane's, of head 8 * block + 2 * (lane % 4) + h

  template <typename Kv, int D>
  __device__ __forceinline__ void AddSteps(const PairSums<Kv, D, kHeads>& pairs) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) steps[block][h] += pairs.Square(block, h);
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
