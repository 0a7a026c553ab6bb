// A warp's draws in one block of 256 tokens that is part of a line (kernels/cuda/stored_scores.h): from stored scores
// to how often each token was drawn.
#ifndef SANTA_KERNELS_CUDA_LINE_DRAWS_CUH_
#define SANTA_KERNELS_CUDA_LINE_DRAWS_CUH_

#include <cstdint>

#include "kernels/cuda/stored_layout.h"
#include "kernels/cuda/tile_draws.cuh"
#include "kernels/sampling/draws.h"
#include "kernels/sampling/uniform.h"

namespace santa::cuda {

// Stratified draws likewise. All that lie in a stratum which ends below the cumulative mass are below it; of the
// stratum that it cuts, the draw decides.
class StratifiedCounter {
 public:
  __device__ StratifiedCounter(const sampling::RandomStream& stream, const sampling::DrawGrid& grid, uint64_t before)
      : stream_(stream), grid_(grid), strata_(grid, 0, sampling::SystematicDrawsBelow(grid, before, 0)) {
    drawn_ = Below(before);
  }

  __device__ __forceinline__ uint32_t Take(uint64_t through) {
    strata_.Take(through);
    const uint32_t before = drawn_;
    drawn_ = Below(through);
    return drawn_ - before;
  }
  __device__ __forceinline__ uint32_t drawn() const { return drawn_; }

 private:
  __device__ __forceinline__ uint32_t Below(uint64_t cumulative) {
    const uint32_t begun = strata_.drawn();
    if (begun == 0) return 0;
    if (begun != placed_) {
      const uint64_t random = sampling::Random64(stream_, sampling::Purpose::kDraw, begun - 1);
      position_ = sampling::DrawPosition(grid_, begun - 1, sampling::UniformBelow(random, grid_.total));
      placed_ = begun;
    }
    return begun - 1 + (position_ < cumulative ? 1 : 0);
  }

  const sampling::RandomStream stream_;
  const sampling::DrawGrid grid_;
  SystematicCounter strata_;  // those that begin below: systematic draws without an offset
  uint32_t placed_ = 0;       // the stratum whose draw is at position_, counted from 1
  uint64_t position_ = 0;
  uint32_t drawn_;
};

// Turns a lane's scores into masses against `max`; their sum.
template <int kHeads>
__device__ __forceinline__ uint64_t WeighRunAgainst(TileMemory<kHeads>& memory, float max, int lane) {
  uint64_t sum = 0;
#pragma unroll 1
  for (int word = 0; word < DrawnMask<kHeads>::kWords; ++word) {
    uint4* chunk = memory.Chunk(lane, word);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 s = *reinterpret_cast<const float4*>(chunk + i);
      const uint4 m = {sampling::RowMass(Exp2(s.x - max)), sampling::RowMass(Exp2(s.y - max)),
                       sampling::RowMass(Exp2(s.z - max)), sampling::RowMass(Exp2(s.w - max))};
      chunk[i] = m;
      sum += static_cast<uint64_t>(m.x) + m.y;  // no two masses overflow 32 bits, but four may
      sum += static_cast<uint64_t>(m.z) + m.w;
    }
  }
  return sum;
}

// Replaces each number of the lane's run by counts(that), in order; which are not 0.
template <int kHeads, typename Counts>
__device__ __forceinline__ DrawnMask<kHeads> CountEach(TileMemory<kHeads>& memory, const Counts& counts, int lane) {
  DrawnMask<kHeads> drawn = {};
#pragma unroll 1
  for (int word = 0; word < DrawnMask<kHeads>::kWords; ++word) {
    uint4* chunk = memory.Chunk(lane, word);
    uint32_t drawn_bits = 0;
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {
      const uint4 mass = chunk[i];
      uint4 count;
      count.x = counts(mass.x);
      count.y = counts(mass.y);
      count.z = counts(mass.z);
      count.w = counts(mass.w);
      chunk[i] = count;
      const uint32_t bits = (count.x != 0) | (count.y != 0) << 1 | (count.z != 0) << 2 | (count.w != 0) << 3;
      drawn_bits |= bits << (4 * i);
    }
    drawn.Set(word, drawn_bits);
  }
  return drawn;
}

// Masses to counts of SANTA's draws, which lie at positions[0 .. num_draws) of the block's masses, in any order.
// through: the lane's masses and those of the lanes before, of its head. counts: [256] of scratch for the lane's head.
// All lanes call it.
template <int kHeads>
__device__ __forceinline__ DrawnMask<kHeads> CountIndependent(TileMemory<kHeads>& memory, const uint64_t* positions,
                                                              uint32_t num_draws, uint64_t through, uint32_t* counts,
                                                              int lane) {
  using Memory = TileMemory<kHeads>;
  constexpr int kLanes = Memory::kLanes, kRun = Memory::kRun;
  const int first_lane = lane / kLanes * kLanes, part = lane % kLanes;
  if (num_draws != 0) {
    for (int i = 0; i < kRun; i += 4) *reinterpret_cast<uint4*>(counts + part * kRun + i) = uint4{};
  }
  __threadfence();
  __syncwarp();
  for (uint32_t at = part; __any_sync(~0u, at < num_draws); at += kLanes) {
    const bool any = at < num_draws;
    const uint64_t position = any ? __ldcg(positions + at) : 0;
    int run = 0;
    uint64_t cumulative = 0;
#pragma unroll
    for (int other = 0; other + 1 < kLanes; ++other) {
      const uint64_t of_lane = __shfl_sync(~0u, through, first_lane + other);
      if (position >= of_lane) {
        run = other + 1;
        cumulative = of_lane;
      }
    }
    if (!any) continue;
    const uint32_t* row = memory.value[lane / kLanes];
    int token = run * kRun;
    for (; token < run * kRun + kRun - 1; ++token) {
      cumulative += row[Memory::Column(token)];
      if (cumulative > position) break;
    }
    atomicAdd(counts + token, 1u);
  }
  __threadfence();
  __syncwarp();
  DrawnMask<kHeads> drawn = {};
#pragma unroll 1
  for (int word = 0; word < DrawnMask<kHeads>::kWords; ++word) {
    uint4* chunk = memory.Chunk(lane, word);
    uint32_t drawn_bits = 0;
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {
      const auto* from = reinterpret_cast<const uint4*>(counts + part * kRun + 32 * word) + i;
      const uint4 count = num_draws != 0 ? __ldcg(from) : uint4{};
      chunk[i] = count;
      const uint32_t bits = (count.x != 0) | (count.y != 0) << 1 | (count.z != 0) << 2 | (count.w != 0) << 3;
      drawn_bits |= bits << (4 * i);
    }
    drawn.Set(word, drawn_bits);
  }
  return drawn;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_LINE_DRAWS_CUH_
