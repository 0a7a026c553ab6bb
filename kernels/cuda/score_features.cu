// The scores of every visible token, into scratch, from keys that lie feature by feature: in the place of StoreScores.
//
// Grid: (key/value head, work). A warp takes a tile of 256 tokens at a time.
#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/feature_scores.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/cuda/tile_draws.cuh"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;

// Brings products to scores, of invisible tokens to -inf, and writes those of the group's heads to scratch; to[head *
// pitch] is the first.
template <int kHeads>
__device__ __forceinline__ void ScoreTile(TileMemory<kHeads>& memory, float* to, size_t pitch, const Scorer& scorer,
                                          const FeatureView& view, int tile_begin, int group_size, int lane) {
#pragma unroll 1
  for (int i = lane; i < group_size * (kTileTokens / 4); i += 32) {
    const int head = i / (kTileTokens / 4), token = i % (kTileTokens / 4) * 4;
    float* scores = reinterpret_cast<float*>(&memory.value[head][TileMemory<kHeads>::Column(token)]);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int at = tile_begin + token + t;
      scores[t] = at >= view.begin && at < view.end ? scorer(scores[t]) : kNegativeInfinity;
    }
    *reinterpret_cast<float4*>(to + head * pitch + token) = *reinterpret_cast<const float4*>(scores);
  }
}

template <typename Kv, int kHeads>
__global__ void __launch_bounds__(32 * kWarps) ScoreFeaturesKernel(const __grid_constant__ StoredLaunch launch) {
  constexpr int kLanes = TileMemory<kHeads>::kLanes;
  extern __shared__ __align__(1024) unsigned char bytes[];
  LetLaterKernelStart();
  const WorkUnit work = launch.decode.work[blockIdx.y];
  const DeviceItem& item = launch.decode.items[work.item];
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  TileMemory<kHeads>& memory = reinterpret_cast<TileMemory<kHeads>*>(bytes)[warp];
  const FeatureView view = MakeFeatureView<Kv>(launch.decode, item, work.begin, work.end, kv_head);
  const StoredView stored(launch.decode, item, launch.stored[work.item]);
  const Scorer scorer(item, kv_head);
  const int group_size = launch.decode.group_size, first_head = kv_head * group_size, head = lane / kLanes;
  WaitForEarlierKernel();  // what was read up to here came from the host
  const FeatureProducts<Kv, kHeads> products(bytes + kWarps * sizeof(TileMemory<kHeads>), launch.decode, work.item,
                                             kv_head);
#pragma unroll 1
  for (int tile = view.begin / kTileTokens + warp; tile * kTileTokens < view.end; tile += kWarps) {
    const int block = tile - stored.lines.first_block;
    products.OfTile(view, tile * kTileTokens, lane, [&memory](int of_head, int token, float4 four) {
      *reinterpret_cast<float4*>(&memory.value[of_head][TileMemory<kHeads>::Column(token)]) = four;
    });
    __syncwarp();
    ScoreTile<kHeads>(memory, stored.arrays.scores(first_head, block), stored.lines.pitch(), scorer, view,
                      tile * kTileTokens, group_size, lane);
    __syncwarp();
    float max;
    uint64_t mass = WeighRun<kHeads, true>(memory, max, lane);
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) mass += __shfl_xor_sync(~0u, mass, step);
    if (lane % kLanes == 0 && head < group_size) {
      stored.arrays.own_max(first_head + head)[block] = max;
      stored.arrays.own_mass(first_head + head)[block] = mass;
    }
    __syncwarp();
  }
}

struct Launcher {
  const StoredLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int kHeads>
  cudaError_t RunFeatures() const {
    const int bytes =
        kWarps * sizeof(TileMemory<kHeads>) + FeatureProducts<Kv, kHeads>::SharedBytes(launch.decode.head_dim);
    return LaunchOverlapping(ScoreFeaturesKernel<Kv, kHeads>, launch,
                             dim3(launch.decode.num_kv_heads, launch.decode.num_work), 32 * kWarps, bytes, stream);
  }
};

}  // namespace

cudaError_t LaunchScoreFeatures(const StoredLaunch& launch, cudaStream_t stream) {
  return DispatchFeatures(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
