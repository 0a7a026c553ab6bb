// Counter-based random numbers: every number is a pure function of who asks for it, so that a decode step draws the
// same rows in another batch, in other pages, on any number of threads and after a retry.
//
//     key     = mix(seed, sampling key)                          64 bits
//     counter = (index / 2, position, layer | head, purpose)     4 x 32 bits
//
// through Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Every function here is thread safe and has no state.
#ifndef SANTA_KERNELS_SAMPLING_UNIFORM_H_
#define SANTA_KERNELS_SAMPLING_UNIFORM_H_

#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::sampling {

struct PhiloxBlock {
  uint32_t word[4];
};

// Ten rounds of Philox4x32 on `counter` under the 64-bit key (key0, key1).
SANTA_HOST_DEVICE PhiloxBlock Philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The finaliser of SplitMix64: a bijection of 64 bits in which every input bit reaches every output bit.
SANTA_HOST_DEVICE uint64_t SplitMix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// What a random number is for. Numbers for different purposes are independent, whatever their index. The values are
// part of the answer: changing one changes every draw.
enum class Purpose : uint32_t {
  kDraw = 1,    // index: the draw, [0, S) (independent and stratified), or 0 (systematic)
  kBudget = 2,  // index 0: the systematic draw that turns tile masses into budgets
  kTile = 3,    // index: the tile's absolute number, its first token / tile size (not counted from the window)
  // Index 0 (of a pilot: 1): where the one draw of a whole group begins (COORDINATED, SKETCHED); the stream's head is
  // the group's.
  kInclusion = 4,
  // Of score draws (kernels/sampling/ternary_query.h), 32 bits a draw and feature; the stream's head is the group's.
  kScore = 5,
  kInclusionRun = 6,  // index: the run's absolute number (kernels/sampling/pilot.h); the stream's head is the group's
};

// The place a random number is drawn for: one query head of one decode step.
struct RandomStream {
  uint32_t key0;
  uint32_t key1;
  uint32_t position;    // of the query, [0, 2^32)
  uint32_t layer_head;  // layer << 16 | head
};

// `head` is the query head's index in [0, H) for every method that draws per query head, the key/value head's for those
// that draw once for a group (Purpose::kInclusion, kScore, kInclusionRun).
// layer and head must be below 2^16 (Validate(KvLayout) sees to it), position in [0, 2^32).
SANTA_HOST_DEVICE RandomStream MakeRandomStream(uint64_t seed, uint64_t sampling_key, int32_t layer, int64_t position,
                                                int32_t head) {
  // A bijection in either argument, and not symmetric in them.
  const uint64_t key = SplitMix64(SplitMix64(seed) + sampling_key);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(position),
          static_cast<uint32_t>(layer) << 16 | static_cast<uint32_t>(head)};
}

// Two random numbers a Philox block: indices 2b and 2b + 1 share block b. A loop over draws computes each block once.
struct Random64Pair {
  uint64_t value[2];
};

SANTA_HOST_DEVICE Random64Pair RandomPair(const RandomStream& stream, Purpose purpose, uint32_t pair) {
  const PhiloxBlock block = Philox4x32({{pair, stream.position, stream.layer_head, static_cast<uint32_t>(purpose)}},
                                       stream.key0, stream.key1);
  return {{uint64_t{block.word[1]} << 32 | block.word[0], uint64_t{block.word[3]} << 32 | block.word[2]}};
}

// 64 uniform bits; index in [0, 2^32).
SANTA_HOST_DEVICE uint64_t Random64(const RandomStream& stream, Purpose purpose, uint32_t index) {
  const Random64Pair pair = RandomPair(stream, purpose, index >> 1);
  return pair.value[index & 1];
}

// A uniform float in [0, 1): the top 24 bits, so that no rounding can reach 1.0f.
SANTA_HOST_DEVICE float UniformFloat(uint64_t random) { return static_cast<float>(random >> 40) * 0x1p-24f; }

// floor(random * bound / 2^64): a uniform integer in [0, bound) for uniform `random`, each value's probability within
// 2^-64 of 1 / bound. bound >= 1.
SANTA_HOST_DEVICE uint64_t UniformBelow(uint64_t random, uint64_t bound) {
#ifdef __CUDA_ARCH__
  return __umul64hi(random, bound);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(random) * bound) >> 64);
#endif
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_UNIFORM_H_
