// A warp's draws on one tile of 256 tokens: from the scores of the group's query heads to how often each token was
// drawn, and the list of those that some head drew.
#ifndef SANTA_KERNELS_CUDA_TILE_DRAWS_CUH_
#define SANTA_KERNELS_CUDA_TILE_DRAWS_CUH_

#include <cstdint>

#include "kernels/cuda/split_merge.cuh"
#include "kernels/sampling/draws.h"
#include "kernels/sampling/mass.h"
#include "kernels/sampling/tiles.h"
#include "kernels/sampling/uniform.h"

namespace santa::cuda {

inline constexpr int kTileTokens = sampling::kMinTileSize;

// A warp's memory, for a group padded to kHeads = 4, 8 or 16 heads. Each head has kLanes lanes, each with a run of the
// tile's tokens. The pads keep lanes that read 16 bytes each (and those that write one score each) in different banks.
template <int kHeads>
struct alignas(16) TileMemory {
  static constexpr int kLanes = 32 / kHeads;
  static constexpr int kRun = kTileTokens / kLanes;  // 32, 64 or 128 tokens
  static constexpr int kPitch = kTileTokens + kTileTokens / 8 + 4;

  uint32_t value[kHeads][kPitch];  // scores (float bits, log2 units), then masses, then draw counts
  float max[kHeads];               // the tile's largest score
  float mass[kHeads];              // the sum of its weights 2^(s - max)
  uint8_t list[kTileTokens];       // tokens with a draw, ascending

  static __device__ __forceinline__ int Column(int token) { return token + token / 32 * 4; }
  // The lane's run, 32 tokens at a time.
  __device__ __forceinline__ uint4* Chunk(int lane, int chunk) {
    return reinterpret_cast<uint4*>(&value[lane / kLanes][Column(lane % kLanes * kRun + 32 * chunk)]);
  }
  __device__ __forceinline__ const uint4* Chunk(int lane, int chunk) const {
    return const_cast<TileMemory*>(this)->Chunk(lane, chunk);
  }
};

// What a lane's run of tokens drew: bit i of word w is token 32 w + i. Loops over words are not unrolled: kernels for
// large groups are long enough.
template <int kHeads>
struct DrawnMask {
  static constexpr int kWords = TileMemory<kHeads>::kRun / 32;
  uint32_t word[kWords];

  // word[at] = bits, where `at` is not known before.
  __device__ __forceinline__ void Set(int at, uint32_t bits) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) word[w] = w == at ? bits : word[w];
  }
};

// The larger of two; kKeepNan: NaN where one is.
template <bool kKeepNan>
__device__ __forceinline__ float Larger(float a, float b) {
  if constexpr (!kKeepNan) return fmaxf(a, b);
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// Turns a lane's scores into masses against the tile's largest score; the sum of those of the lane. kKeepNan: where a
// score is NaN, so is the largest, and all masses are 0.
template <int kHeads, bool kKeepNan = false>
__device__ __forceinline__ uint64_t WeighRun(TileMemory<kHeads>& memory, float& max, int lane) {
  using Memory = TileMemory<kHeads>;
  constexpr int kWords = DrawnMask<kHeads>::kWords;
  max = kNegativeInfinity;
#pragma unroll 1
  for (int word = 0; word < kWords; ++word) {
    const uint4* chunk = memory.Chunk(lane, word);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 s = *reinterpret_cast<const float4*>(chunk + i);
      max = Larger<kKeepNan>(max, Larger<kKeepNan>(Larger<kKeepNan>(s.x, s.y), Larger<kKeepNan>(s.z, s.w)));
    }
  }
#pragma unroll
  for (int step = 1; step < Memory::kLanes; step *= 2) {
    max = Larger<kKeepNan>(max, __shfl_xor_sync(~0u, max, step));
  }
  uint64_t sum = 0;
#pragma unroll 1
  for (int word = 0; word < kWords; ++word) {
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

// Turns the lane's masses into draw counts: the systematic draws that the cursor has before `through`, the cumulative
// mass up to and with each token. keep: bits of the mass of drawn tokens that stay above the count.
template <int kHeads>
__device__ __forceinline__ DrawnMask<kHeads> CountRun(TileMemory<kHeads>& memory, sampling::SystematicCursor cursor,
                                                      uint64_t through, uint32_t keep, int lane) {
  DrawnMask<kHeads> drawn = {};
#pragma unroll 1
  for (int word = 0; word < DrawnMask<kHeads>::kWords; ++word) {
    uint4* chunk = memory.Chunk(lane, word);
    uint32_t bits = 0;
#pragma unroll 2
    for (int i = 0; i < 8; ++i) {
      const uint4 mass = chunk[i];
      uint4 count = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        through += (&mass.x)[k];
        uint32_t here = 0;
#pragma unroll 1
        for (; cursor.position() < through; cursor.Advance()) ++here;
        (&count.x)[k] = here;
        bits |= static_cast<uint32_t>(here != 0) << (4 * i + k);
      }
      if (keep != 0) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if ((&count.x)[k] != 0) (&count.x)[k] |= (&mass.x)[k] & keep;
        }
      }
      chunk[i] = count;
    }
    drawn.Set(word, bits);
  }
  return drawn;
}

// Replaces each number of the lane's run by counts(that), in order; which are not 0. For one that takes long to
// compute: little code.
template <int kHeads, typename Counts>
__device__ __forceinline__ DrawnMask<kHeads> CountOneByOne(TileMemory<kHeads>& memory, const Counts& counts, int lane) {
  DrawnMask<kHeads> drawn = {};
#pragma unroll 1
  for (int word = 0; word < DrawnMask<kHeads>::kWords; ++word) {
    auto* value = reinterpret_cast<uint32_t*>(memory.Chunk(lane, word));
    uint32_t bits = 0;
#pragma unroll 1
    for (int i = 0; i < 32; ++i) {
      const uint32_t count = counts(value[i]);
      value[i] = count;
      bits |= static_cast<uint32_t>(count != 0) << i;
    }
    drawn.Set(word, bits);
  }
  return drawn;
}

// Systematic draws below a cumulative mass that grows.
class SystematicCounter {
 public:
  // drawn: below the first mass to come.
  __device__ SystematicCounter(const sampling::DrawGrid& grid, uint64_t offset, uint32_t drawn)
      : grid_(grid), offset_(offset), drawn_(drawn), cursor_(grid, offset, drawn) {}

  // Draws from where the last call ended to `through`.
  __device__ __forceinline__ uint32_t Take(uint64_t through) {
    uint32_t count = 0;
    while (cursor_.position() < through) {
      if (count == kSteps) {
        const uint32_t drawn = sampling::SystematicDrawsBelow(grid_, through, offset_);
        cursor_ = sampling::SystematicCursor(grid_, offset_, drawn);
        count = drawn - drawn_;
        break;
      }
      cursor_.Advance();
      ++count;
    }
    drawn_ += count;
    return count;
  }
  __device__ __forceinline__ uint32_t drawn() const { return drawn_; }

 private:
  // A row with more draws than so many is jumped over, not walked through: attention sinks have thousands.
  static constexpr uint32_t kSteps = 6;

  const sampling::DrawGrid grid_;
  const uint64_t offset_;
  uint32_t drawn_;
  sampling::SystematicCursor cursor_;
};

// As CountRun, from the draw `first` on; for heads with a great many draws.
template <int kHeads>
__device__ __forceinline__ DrawnMask<kHeads> CountManyInRun(TileMemory<kHeads>& memory, const sampling::DrawGrid& grid,
                                                            uint64_t offset, uint32_t first, uint64_t through,
                                                            uint32_t keep, int lane) {
  SystematicCounter counter(grid, offset, first);
  return CountOneByOne<kHeads>(
      memory,
      [&](uint32_t mass) {
        const uint32_t count = counter.Take(through += mass);
        return count == 0 ? 0 : count | (mass & keep);
      },
      lane);
}
inline constexpr uint32_t kManyDraws = 64;

// Masses to draw counts for every head; `sum`: of the lane's run; draws, random: of the lane's head, lane / kLanes.
// kMany: counting goes faster past a row that has a great many draws, at the price of more code. The head's total mass
// to `total`. keep: bits of the mass of drawn tokens that stay above the count; above that of all draws.
template <int kHeads, bool kMany>
__device__ __forceinline__ DrawnMask<kHeads> DrawMasses(TileMemory<kHeads>& memory, uint64_t sum, uint32_t draws,
                                                        uint64_t random, uint64_t& total, uint32_t keep, int lane) {
  constexpr int kLanes = TileMemory<kHeads>::kLanes;
  uint64_t through = sum;  // of this lane's run and those before it
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, through, step, kLanes);
    if (lane % kLanes >= step) through += other;
  }
  total = __shfl_sync(~0u, through, kLanes - 1, kLanes);
  const sampling::DrawGrid grid = sampling::MakeDrawGrid(total, max(draws, 1u));
  const uint64_t offset = sampling::UniformBelow(random, total);
  const uint64_t before = through - sum;
  // A head without draws counts from behind the last one.
  const uint32_t first = draws == 0 ? 1 : sampling::SystematicDrawsBelow(grid, before, offset);
  if constexpr (kMany) {
    if (__any_sync(~0u, draws > kManyDraws)) {
      return CountManyInRun<kHeads>(memory, grid, offset, first, before, keep, lane);
    }
  }
  return CountRun<kHeads>(memory, sampling::SystematicCursor(grid, offset, first), before, keep, lane);
}

// The systematic draws of one head on one tile, S_t of them.
struct TileDraws {
  sampling::RandomStream stream;  // the head's
  uint32_t budget;                // S_t, at least 1
  int64_t tile;                   // its absolute number
};

// Scores to draw counts for every head, memory.max and memory.mass beside them. draws: of the lane's head, lane /
// kLanes. Heads that are not `real` draw nothing. keep: as of DrawMasses.
template <int kHeads>
__device__ __forceinline__ DrawnMask<kHeads> DrawTile(TileMemory<kHeads>& memory, const TileDraws& draws, bool real,
                                                      uint32_t keep, int lane) {
  constexpr int kLanes = TileMemory<kHeads>::kLanes;
  float max;
  const uint64_t sum = WeighRun<kHeads>(memory, max, lane);
  const uint64_t random = sampling::Random64(draws.stream, sampling::Purpose::kTile, draws.tile);
  uint64_t total;
  const DrawnMask<kHeads> drawn =
      DrawMasses<kHeads, false>(memory, sum, real ? draws.budget : 0, random, total, keep, lane);
  if (lane % kLanes == 0) {
    memory.max[lane / kLanes] = max;
    memory.mass[lane / kLanes] = static_cast<float>(total) / sampling::kMassOne;
  }
  __syncwarp();
  return drawn;
}

// Lists the tokens that some head drew; how many.
template <int kHeads>
__device__ __forceinline__ int ListDrawn(TileMemory<kHeads>& memory, DrawnMask<kHeads> drawn, int lane) {
  using Memory = TileMemory<kHeads>;
  constexpr int kWords = DrawnMask<kHeads>::kWords;
  const int head = lane / Memory::kLanes, part = lane % Memory::kLanes;
  int count = 0;
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
#pragma unroll
    for (int step = Memory::kLanes; step < 32; step *= 2) {
      drawn.word[word] |= __shfl_xor_sync(~0u, drawn.word[word], step);
    }
    count += __popc(drawn.word[word]);
  }
  int through = count;
#pragma unroll
  for (int step = 1; step < Memory::kLanes; step *= 2) {
    const int other = __shfl_up_sync(~0u, through, step, Memory::kLanes);
    if (part >= step) through += other;
  }
  const int listed = __shfl_sync(~0u, through, Memory::kLanes - 1, Memory::kLanes);
  int at = through - count;
  // The heads' lanes of a run share its bits.
  constexpr int kBits = 32 / kHeads;
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    const uint32_t bits = drawn.word[word];
#pragma unroll
    for (int i = 0; i < kBits; ++i) {
      const int bit = head * kBits + i;
      if (bits >> bit & 1) {
        memory.list[at + __popc(bits & ((1u << bit) - 1))] =
            static_cast<uint8_t>(part * Memory::kRun + 32 * word + bit);
      }
    }
    at += __popc(bits);
  }
  __syncwarp();
  return listed;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_TILE_DRAWS_CUH_
