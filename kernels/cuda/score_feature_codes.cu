// COORDINATED's scores from keys that lie feature by feature: in the place of ScoreKeys.
//
// Grid: (key/value head, work). A block takes some splits; each warp takes every kWarps-th tile of 256 tokens of one
// after the other.
#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/feature_scores.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_scores.cuh"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;

// A warp's products of a tile; the pad keeps heads in different banks.
template <int kHeads>
struct alignas(16) TileProducts {
  float of[kHeads][kTileTokens + 4];

  // Those of a code block, in the order in which WriteBlock takes them; the tile's token `first` is its first.
  template <int kBlocks>
  __device__ __forceinline__ void Read(BlockScores<kBlocks>& s, int first, int lane) const {
#pragma unroll
    for (int slab = 0; slab < kBlockSlabs; ++slab) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int head = 8 * block + HeadOf(lane) + i % 2;
          s[slab][block][i] = head < kHeads ? of[head][first + slab * kSlabRows + RowOf(i / 2, lane)] : 0.0f;
        }
      }
    }
  }
};

template <typename Kv, int kHeads>
__global__ void __launch_bounds__(32 * kWarps, kHeads > 4 ? 2 : 4)
    ScoreFeatureCodesKernel(const __grid_constant__ GroupLaunch group) {
  constexpr int kBlocks = kHeads > 8 ? 2 : 1;
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ SplitSums<kWarps, 8 * kBlocks> shared;
  const DecodeLaunch& launch = group.decode;
  if (!BlockSplits::IsFirst(group)) return WaitForEarlierKernel();
  const int item_index = launch.work[blockIdx.y].item;
  const DeviceItem& item = launch.items[item_index];
  const BlockSplits splits(group, item);
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const FeatureView view = MakeFeatureView<Kv>(launch, item, splits.begin, splits.end, kv_head);
  const GroupArrays arrays = group.arrays[item_index];
  TileProducts<kHeads>& memory = reinterpret_cast<TileProducts<kHeads>*>(bytes)[warp];
  const float soft_cap = item.soft_cap * kLog2E, scale = Scorer(item, kv_head).scale;
  WaitForEarlierKernel();  // what was read up to here came from the host
  const FeatureProducts<Kv, kHeads> products(bytes + kWarps * sizeof(TileProducts<kHeads>), launch, item_index,
                                             kv_head);
  WarpSums<kBlocks> sums;
#pragma unroll 1
  for (int split = 0; split < splits.count; ++split) {
    const WorkUnit& work = splits.work[split];
#pragma unroll 1
    for (int tile = work.begin / kTileTokens + warp; tile * kTileTokens < work.end; tile += kWarps) {
      products.OfTile(view, tile * kTileTokens, lane, [&memory](int head, int token, float4 four) {
        *reinterpret_cast<float4*>(&memory.of[head][token]) = four;
      });
      __syncwarp();
#pragma unroll 1
      for (int first = 0; first < kTileTokens; first += sampling::kCodeBlock) {
        const int token = tile * kTileTokens + first;
        if (token >= work.end || token + sampling::kCodeBlock <= work.begin) continue;
        BlockScores<kBlocks> s;
        memory.template Read<kBlocks>(s, first, lane);
        ScaleBlock<kBlocks>(s, scale, soft_cap, token, splits.begin, splits.end, lane);
        const int block = token / sampling::kCodeBlock;
        WriteBlock<uint16_t, kBlocks>(s, reinterpret_cast<uint16_t*>(arrays.codes(kv_head, block)),
                                      arrays.block_max(kv_head, block), sums, launch.group_size, lane);
      }
      __syncwarp();
    }
    KeepSums(shared, sums, split, warp, lane);
  }
  LetLaterKernelStart();
  FinishSplits(shared, arrays, kv_head, splits.work->split, splits.count, launch.group_size);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int kHeads>
  cudaError_t RunFeatures() const {
    const int bytes =
        kWarps * sizeof(TileProducts<kHeads>) + FeatureProducts<Kv, kHeads>::SharedBytes(launch.decode.head_dim);
    return LaunchGroup(ScoreFeatureCodesKernel<Kv, kHeads>, launch, 32 * kWarps, bytes, stream);
  }
};

}  // namespace

cudaError_t LaunchScoreFeatureCodes(const GroupLaunch& launch, cudaStream_t stream) {
  return DispatchFeatures(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
