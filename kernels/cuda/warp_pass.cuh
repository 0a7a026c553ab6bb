// SKETCHED in one pass as kernels/cuda/one_pass.cu has it, for calls of many splits, and with a value sketch for all: a
// warp takes a whole split (kernels/cuda/warp_split.cuh).
//
// Grid: (key/value head, fours of units). A block merges its warps' sums into one partial result; the one that is its
// group's last adds these up.
#ifndef SANTA_KERNELS_CUDA_WARP_PASS_CUH_
#define SANTA_KERNELS_CUDA_WARP_PASS_CUH_

#include "kernels/cuda/four_sums.cuh"
#include "kernels/cuda/warp_split.cuh"

namespace santa::cuda {

// Of a multiprocessor.
template <int kBits>
inline constexpr int kBlocksAtOnce = kBits == 4 ? 3 : 2;

// Whether warps have splits of the launch's shape: pages hold whole blocks, and a group is one quad.
inline bool FitsWarps(const GroupLaunch& launch) {
  return launch.method == Method::kSketched && launch.decode.group_size <= kQuad && launch.decode.page_shift >= 6;
}

// The group's heads whose sketch is no help, bit by bit, which it also leaves for the launch that answers them. After
// AddFours; all threads call it.
__device__ __forceinline__ unsigned FindAlone(const BlockTask& task, const AnswerShared<1>& shared) {
  __shared__ unsigned alone;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group_size = task.group_size();
  if (threadIdx.x == 0) alone = 0;
  __syncthreads();
  for (int head = warp; head < group_size; head += kGatherWarps) {
    const float2* masses = task.arrays.sketch_masses(task.kv_head) + head;
    float mass = 0, log_unit = 0;  // the same of all splits
    for (int split = lane; split < task.arrays.num_splits(); split += 32) {
      const float2 of_split = __ldcg(masses + split * group_size);
      log_unit = of_split.x;
      mass += of_split.y;
    }
    mass = WarpSum(mass) * Exp2(__shfl_sync(~0u, log_unit, 0) - shared.reference[0][kOfAll][head]);
    const float corrected = shared.number[kSumW][head];
    if (lane == 0 && corrected < static_cast<float>(sampling::kLeastCorrectedMass) * mass)
      atomicAdd(&alone, 1u << head);
  }
  __syncthreads();
  if (threadIdx.x == 0) *task.arrays.alone(task.kv_head) = alone;
  return alone;
}

// Four units of one item.
template <typename Kv, int D, int kBits, bool kCorrects>
__device__ __forceinline__ void PassFour(const GroupLaunch& group, int four) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ AnswerShared<1> shared;
  __shared__ GroupQueries<D> queries;
  __shared__ WarpShared<kCorrects> of_warp[kGatherWarps];
  __shared__ int rows_read;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.x;
  const GatherTask<Kv, D> task(group, kv_head, kUnitsOfBlock, kUnitsOfBlock * four);
  const int count = task.splits.count;
  using Split = WarpSplit<Kv, D, kBits, kCorrects>;
  Split split(task, task.splits.work[min(warp, count - 1)], bytes + warp * Split::kRingBytes, of_warp[warp], lane);
  // Before the copies, behind which loads would wait; and before the pilot's end, as that began when what wrote queries
  // and cache had ended.
  EarlyQueries<D, 1> early;
  early.Ask(group.decode, task.item, kv_head);
  QueryFragment<D> of_rows[1];
  if (warp == 0) LoadRowQueries<Kv, D>(of_rows, task, 0, lane);
  const Scorer scorer(task.item, kv_head);
  const bool wants_error = task.wants_error();
  // Copies too, where blocks begin before the pilot's end; else the threshold does not wait behind them.
  if (group.few_blocks) split.Begin(lane);
  WaitForEarlierKernel();
  LetLaterKernelStart();
  const sampling::InclusionThreshold threshold = *task.arrays.threshold(kv_head);
  const float lse = lane < task.group_size() ? task.arrays.lse(kv_head)[lane] : 0.0f;
  if (!group.few_blocks) split.Begin(lane);
  const float factor = early.template Fill<kBits>(queries.of_sketch, group.decode, scorer.scale);
  if (threadIdx.x == 0) {
    queries.sketch_scorer = SketchScorer(scorer, factor);
    queries.row_scorer = scorer;
    queries.wants_error = wants_error;
    queries.threshold = threshold;
    rows_read = 0;
  }
  if (warp == 0) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) queries.of_rows[step][lane] = of_rows[0].step[step];
  }
  if (threadIdx.x < shared.kHeads) shared.lse[threadIdx.x] = lse;
  __syncthreads();
  if (warp < count) {
    const int rows = split.Run(queries, shared.lse, task.first_split + warp, lane);
    if (lane == 0) atomicAdd(&rows_read, rows);
  }
  WaitCopies<0>();
  __syncthreads();
  const int group_size = task.group_size();
  MergeFour<D>(task.arrays, kv_head, task.first_split, count, group_size, reinterpret_cast<const float*>(bytes),
               Split::kRingBytes / static_cast<int>(sizeof(float)));
  __syncthreads();
  if (!CountIn(task, shared, rows_read)) return;
  auto* const vectors = reinterpret_cast<float*>(bytes);
  static_assert(sizeof(FourShared) <= sizeof(of_warp));  // which nobody needs any more
  AddFours<D, true>(task.arrays, kv_head, group_size, shared, reinterpret_cast<FourShared&>(of_warp), vectors,
                    wants_error);
  unsigned heads = ~0u;
  if constexpr (kCorrects) {
    heads = ~FindAlone(task, shared);
  } else if (group.alone) {
    heads = *task.arrays.alone(kv_head);
  }
  const FourErrors<D> errors{shared, vectors, group_size, true};
  Answer<D, 1>(task, shared, vectors, errors, heads, 0);
}

template <typename Kv, int D, int kBits, bool kCorrects>
__global__ void __launch_bounds__(kGatherThreads, kBlocksAtOnce<kBits>)
    WarpPassKernel(const __grid_constant__ GroupLaunch group) {
  PassFour<Kv, D, kBits, kCorrects>(group, blockIdx.y);
}

// What they take of shared memory beside what is static.
template <typename Kv, int D, int kBits, bool kCorrects>
__host__ __device__ constexpr int RingsBytes() {
  constexpr int kBytes = kGatherWarps * WarpSplit<Kv, D, kBits, kCorrects>::kRingBytes;
  static_assert(kBytes >= kPartialVectors * kQuad * D * static_cast<int>(sizeof(float)));  // for the answer
  return kBytes;
}

template <int kBits, bool kCorrects>
struct WarpPassLauncher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D>
  cudaError_t Run() const {
    static const DeviceLimits limits = DeviceLimits::Read();
    static_assert(kUnitsOfBlock == kGatherWarps && kUnitsOfBlock == kSplitsOfFour);
    const dim3 grid(launch.decode.num_kv_heads, launch.decode.num_work / kUnitsOfBlock);
    GroupLaunch mine = launch;
    mine.splits_of_block = kUnitsOfBlock;
    mine.few_blocks = static_cast<int>(grid.x * grid.y) <= kBlocksAtOnce<kBits> * limits.multiprocessors;
    return LaunchOverlapping(WarpPassKernel<Kv, D, kBits, kCorrects>, mine, grid, kGatherThreads,
                             RingsBytes<Kv, D, kBits, kCorrects>(), stream);
  }
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_WARP_PASS_CUH_
