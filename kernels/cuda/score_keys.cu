// COORDINATED's scores: K of every visible token once, codes of 16 bits to scratch.
//
// Grid: (key/value head, work). A block takes some splits; each warp takes every kWarps-th block of 64 tokens of one
// after the other, whose slabs of 16 rows asynchronous copies bring into a ring of its own.
#include <algorithm>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_scores.cuh"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;

// Slabs of a warp's ring: 20 KiB in flight, which two blocks a multiprocessor have room for.
template <typename Kv, int D>
constexpr int kSlabs = std::max(3, std::min(12, 20480 / Slab<Kv, D>::kBytes));
template <typename Kv, int D>
constexpr int kRingBytes = kSlabs<Kv, D>* Slab<Kv, D>::kBytes;

// A warp's loads, ahead of its products: the slabs of one code block after the other.
template <typename Kv, int D>
struct Loader {
  const CacheView<Kv, D>& view;
  const BlockSplits& splits;
  BlockCursor<kWarps> cursor;
  uint32_t ring;
  int warp, lane;
  int slab = 0, slot = 0;

  __device__ __forceinline__ void Next() {
    if (!cursor.done()) {
      const int token = cursor.block * sampling::kCodeBlock + slab * kSlabRows;
      CopySlab(ring + slot, view, view.Row(view.PageOf(token), token), token, lane);
      slab = (slab + 1) % kBlockSlabs;
      if (slab == 0) cursor.Advance(splits, warp);
    }
    CommitCopies();
    slot += Slab<Kv, D>::kBytes;
    if (slot == kRingBytes<Kv, D>) slot = 0;
  }
};

template <typename Kv, int D, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, 2) ScoreKeysKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ SplitSums<kWarps, 8 * kBlocks> shared;
  const DecodeLaunch& launch = group.decode;
  if (!BlockSplits::IsFirst(group)) return WaitForEarlierKernel();
  const int item_index = launch.work[blockIdx.y].item;
  const DeviceItem& item = launch.items[item_index];
  const BlockSplits splits(group, item);
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const CacheView<Kv, D> view(launch, item, {.begin = splits.begin, .end = splits.end}, kv_head);
  const GroupArrays arrays = group.arrays[item_index];

  BlockCursor<kWarps> cursor(splits, warp);
  const uint32_t ring = SharedAddress(bytes) + warp * kRingBytes<Kv, D>;
  Loader<Kv, D> loader{view, splits, cursor, ring, warp, lane};
  WaitForEarlierKernel();  // what was read up to here came from the host
#pragma unroll
  for (int i = 0; i < kSlabs<Kv, D>; ++i) loader.Next();
  QueryFragment<D> q[kBlocks];
  LoadQueries<Kv, D, kBlocks>(q, launch, item, kv_head, lane);
  const float soft_cap = item.soft_cap * kLog2E, scale = Scorer(item, kv_head).scale;
  WarpSums<kBlocks> sums;
  int split = 0;  // that the sums are of
  int slot = 0;
#pragma unroll 1
  for (; !cursor.done(); cursor.Advance(splits, warp)) {
    for (; split < cursor.split; ++split) KeepSums(shared, sums, split, warp, lane);
    BlockScores<kBlocks> s;
#pragma unroll
    for (int slab = 0; slab < kBlockSlabs; ++slab) {
      WaitCopies<kSlabs<Kv, D> - 1>();
      Scores<Kv, D, kBlocks>(s[slab], ring + slot, q, lane);
      slot += Slab<Kv, D>::kBytes;
      if (slot == kRingBytes<Kv, D>) slot = 0;
      __syncwarp();
      loader.Next();
    }
    ScaleBlock<kBlocks>(s, scale, soft_cap, cursor.block * sampling::kCodeBlock, splits.begin, splits.end, lane);
    WriteBlock<uint16_t, kBlocks>(s, reinterpret_cast<uint16_t*>(arrays.codes(kv_head, cursor.block)),
                                  arrays.block_max(kv_head, cursor.block), sums, launch.group_size, lane);
  }
  for (; split < splits.count; ++split) KeepSums(shared, sums, split, warp, lane);
  WaitCopies<0>();
  LetLaterKernelStart();
  FinishSplits(shared, arrays, kv_head, splits.work->split, splits.count, launch.group_size);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    return LaunchGroup(ScoreKeysKernel<Kv, D, kBlocks>, launch, 32 * kWarps, kWarps * kRingBytes<Kv, D>, stream);
  }
};

}  // namespace

cudaError_t LaunchScoreKeys(const GroupLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
