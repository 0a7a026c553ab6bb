// Which splits a block of the kernels of kernels/cuda/group_draw.h takes, and in which order a warp of it goes through
// their blocks of 64 tokens.
#ifndef SANTA_KERNELS_CUDA_GROUP_SPLITS_CUH_
#define SANTA_KERNELS_CUDA_GROUP_SPLITS_CUH_

#include "kernels/cuda/group_draw.h"
#include "kernels/cuda/slab.cuh"

namespace santa::cuda {

// Slabs of 16 tokens in a code block.
inline constexpr int kBlockSlabs = sampling::kCodeBlock / kSlabRows;

// The tokens [begin, end) of the splits that a block takes.
struct BlockSplits {
  const WorkUnit* work;  // of the first
  int count;
  int begin, end;
  int origin;  // the first token of the first code block

  // Whether the block takes any: else another one takes its split.
  __device__ static bool IsFirst(const GroupLaunch& launch, int splits_of_block) {
    return launch.decode.work[blockIdx.y].split % splits_of_block == 0;
  }
  __device__ static bool IsFirst(const GroupLaunch& launch) { return IsFirst(launch, launch.splits_of_block); }

  __device__ BlockSplits(const GroupLaunch& launch, const DeviceItem& item)
      : BlockSplits(launch, item, launch.splits_of_block) {}
  __device__ BlockSplits(const GroupLaunch& launch, const DeviceItem& item, int splits_of_block)
      : BlockSplits(launch.decode.work + blockIdx.y, item, splits_of_block) {}
  __device__ BlockSplits(const WorkUnit* first, const DeviceItem& item, int splits_of_block)
      : work(first),
        count(min(splits_of_block, item.num_splits - work->split)),
        begin(work->begin),
        end(work[count - 1].end),
        origin(begin / sampling::kCodeBlock * sampling::kCodeBlock) {}

  // Blocks that take splits of the item.
  __device__ static int BlocksOf(const DeviceItem& item, int splits_of_block) {
    return (item.num_splits + splits_of_block - 1) / splits_of_block;
  }
};

// A warp takes every kWarps-th code block of one split after the other: which warp adds up what depends on the split
// alone.
template <int kWarps>
struct BlockCursor {
  int split, block;  // counted from the first; absolute

  __device__ BlockCursor(const BlockSplits& splits, int warp) : split(-1) { NextSplit(splits, warp); }

  __device__ bool done() const { return block >= end_; }
  __device__ __forceinline__ void Advance(const BlockSplits& splits, int warp) {
    block += kWarps;
    if (done()) NextSplit(splits, warp);
  }

 private:
  // To the next split that has a block for the warp.
  __device__ __forceinline__ void NextSplit(const BlockSplits& splits, int warp) {
    do {
      if (++split >= splits.count) return;
      const WorkUnit& work = splits.work[split];
      block = work.begin / sampling::kCodeBlock + warp;
      end_ = (work.end - 1) / sampling::kCodeBlock + 1;
    } while (done());
  }

  int end_ = 0;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_SPLITS_CUH_
