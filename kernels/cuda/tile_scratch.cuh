// A tile's numbers, on their way from a warp's memory to scratch and back.
#ifndef SANTA_KERNELS_CUDA_TILE_SCRATCH_CUH_
#define SANTA_KERNELS_CUDA_TILE_SCRATCH_CUH_

#include "kernels/cuda/stored_launch.cuh"
#include "kernels/cuda/tile_draws.cuh"

namespace santa::cuda {

// Calls body(head, token) for every fourth token of the first `heads` heads, each once in the warp.
template <int kHeads, typename Body>
__device__ __forceinline__ void ForEachQuad(int heads, int lane, const Body& body) {
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    if (head >= heads) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) body(head, kTileTokens / 2 * half + 4 * lane);
  }
}

// Writes what `heads` heads have to scratch; to[head * pitch] is the first.
template <int kHeads>
__device__ __forceinline__ void WriteTile(float* to, size_t pitch, const TileMemory<kHeads>& memory, int heads,
                                          int lane) {
  ForEachQuad<kHeads>(heads, lane, [&](int head, int token) {
    *reinterpret_cast<uint4*>(to + head * pitch + token) =
        *reinterpret_cast<const uint4*>(&memory.value[head][TileMemory<kHeads>::Column(token)]);
  });
}

// Starts the way back, as a group of copies.
template <int kHeads>
__device__ __forceinline__ void ReadTile(TileMemory<kHeads>& memory, const float* from, size_t pitch, int heads,
                                         int lane) {
  ForEachQuad<kHeads>(heads, lane, [&](int head, int token) {
    CopyScratch16(SharedAddress(&memory.value[head][TileMemory<kHeads>::Column(token)]), from + head * pitch + token,
                  true);
  });
  CommitCopies();
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_TILE_SCRATCH_CUH_
