// As kernels/cuda/gather_group.cu, for SKETCHED with a value sketch: what the rows that a group reads correct of what
// its sketches say, and the answer. A head whose sketch is no help is left to a second launch (GroupLaunch::alone), in
// which its rows stand for all, as they do without a value sketch.
//
// Grid: (key/value head, work). A block takes some splits, lists the rows that are read of them, and sums up run by run
// (GroupArrays::splits_of_run). The block that is its group's last adds the runs up.
#include <algorithm>

#include "kernels/cuda/group_corrections.cuh"
#include "kernels/cuda/group_gather.cuh"

namespace santa::cuda {
namespace {

// Answers the group's heads that go by their sketch, or in a launch for the others these.
template <typename Kv, int D, int kBlocks>
__device__ void AnswerCorrected(const GatherTask<Kv, D>& task, CorrectionShared<kBlocks>& shared, float* vectors) {
  const GroupArrays& arrays = task.arrays;
  const int kv_head = task.kv_head, group_size = task.group_size();
  const bool alone = task.group.alone;
  // Who stood alone in a pilot does so after it.
  unsigned alone_heads = alone || task.group.second_draw ? *arrays.alone(kv_head) : 0;
  if (threadIdx.x == 0) shared.alone = shared.unread = 0;
  AddSplits<D, kBlocks>(arrays, kv_head, group_size, shared, vectors, task.wants_error() ? kPartialVectors : 1);
  if (!alone) {
    AddSketches<D, kBlocks>(arrays, kv_head, group_size, shared, vectors);
    alone_heads |= shared.alone;
    if (threadIdx.x == 0) *arrays.alone(kv_head) = alone_heads;
  }
  const SpreadErrors<D, kBlocks> errors{shared, vectors, group_size, true};
  bool misses = Answer<D, kBlocks>(task, shared, vectors, errors, alone ? alone_heads : ~alone_heads, shared.unread);
  if (!task.pilot()) return;
  misses = __syncthreads_or(misses);
  PilotAnswer* pilot = arrays.pilot(kv_head);
  if (threadIdx.x == 0) pilot->done = !misses && (!alone || pilot->done);
}

template <typename Kv, int D, int kBlocks>
__global__ void __launch_bounds__(kGatherThreads, kBlocks == 1 && D <= 128 ? 4 : 1)
    GatherCorrectionsKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ CorrectionShared<kBlocks> shared;
  using S = Slab<Kv, D>;
  unsigned char *const keys = bytes, *const values = bytes + kGatherWarps * S::kBytes;
  auto* inclusion = reinterpret_cast<uint32_t*>(bytes);  // until the rows are listed
  auto* list = reinterpret_cast<uint32_t*>(bytes + StageBytes<Kv, D>(group));
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Whole runs.
  const int splits_of_run = group.arrays[group.decode.work[blockIdx.y].item].splits_of_run();
  const int splits_of_block = (group.splits_of_block + splits_of_run - 1) / splits_of_run * splits_of_run;
  if (!BlockSplits::IsFirst(group, splits_of_block)) return WaitForEarlierKernel();
  const GatherTask<Kv, D> task(group, kv_head, splits_of_block);
  const DeviceItem& item = task.item;
  const int group_size = task.group_size(), num_splits = task.splits.count;
  const bool wants_error = task.wants_error();
  LoadPages(task, shared);

  WaitForEarlierKernel();
  LetLaterKernelStart();
  if (group.second_draw && (item.target_relative_error == 0 || task.arrays.pilot(kv_head)->done)) return;
  if (group.alone && *task.arrays.alone(kv_head) == 0) return;
  ClearShared(task, shared);
  FindInclusions(task, shared, inclusion);
  __syncthreads();
  LoadOctaves(shared.octaves, task.arrays, task.splits, kv_head, group_size, nullptr);
  ListRows(task.splits, task.full_end, shared, inclusion, list, PlaceOnLine(task));

  const ValueSketchView<D> sketches(group, item, kv_head);
  QueryFragment<D> q[kBlocks];
  LoadQueries<Kv, D, kBlocks>(q, group.decode, item, kv_head, lane);
  const Scorer scorer(item, kv_head);
  const int warp_at = warp * kSlabRows, warp_bytes = warp * S::kBytes;
  // Starts copying the warp's rows of the stage from `at` on.
  const auto copy_rows = [&](unsigned char* stage, size_t offset, int at, int end) {
    if (at + warp_at < end) {
      CopyEntries<Kv, D>(SharedAddress(stage + warp_bytes), offset, task, shared.page, list, end, at + warp_at, lane);
    }
    CommitCopies();
  };
  const auto copy_keys = [&](int at, int end) {
    if (at + warp_at < end) {
      FetchColumns<Kv, D>(sketches, task, shared.page, list, end, at + warp_at, lane);
      CopySketchCodes(shared, task, list, end, at, lane);
    }
    copy_rows(keys, 0, at, end);
  };
  // The end of the run that begins with this split, or of the first one after it with rows from `at` on.
  const auto run_end = [&](int split, int at) {
    do {
      split += splits_of_run;
    } while (split < num_splits && shared.list_at[split] <= at);
    return shared.list_at[min(split, num_splits)];
  };
  // Differences take the place of the stage's keys, so that the next stage's rows are on their way from when both have
  // been added: another block works meanwhile.
  const int first_end = run_end(0, 0);
  copy_keys(0, first_end);
  copy_rows(values, task.view.value_offset, 0, first_end);
  int stage = 0;
#pragma unroll 1
  for (int split = 0; split < num_splits; split += splits_of_run) {
    const int begin = shared.list_at[split], end = shared.list_at[min(split + splits_of_run, num_splits)];
    ValueSums<Kv, D, kBlocks> sums;
    Numbers<kBlocks> numbers;
    if (threadIdx.x < 8 * kBlocks) {
#pragma unroll
      for (int reference = 0; reference < kReferences; ++reference) {
        shared.reference[stage ^ 1][reference][threadIdx.x] = kNegativeInfinity;
      }
    }
#pragma unroll 1
    for (int at = begin; at < end; at += kStageRows, stage ^= 1) {
      const int slabs = min(kGatherWarps, (end - at + kSlabRows - 1) / kSlabRows);
      const int next = min(at + kStageRows, end), next_end = run_end(split, next);
      WaitCopies<1>();
      if (warp < slabs) {
        WeighByKeys<Kv, D, kBlocks>(task, shared, SharedAddress(keys + warp_bytes), q, scorer, list, end, at, lane);
        __syncwarp();
        WeighSketches<Kv, D, kBlocks>(task, shared, list, end, at, lane);
        __syncwarp();
      } else {
        LeaveNoWeight(shared, warp, lane);
      }
      WaitCopies<0>();
      if (warp < slabs) {
        TakeDifferences<Kv, D, kBlocks>(task, shared, keys + warp_bytes, values + warp_bytes, sketches, list, end, at,
                                        wants_error, lane);
      }
      __syncthreads();
      PackCorrections<Kv, D, kBlocks>(task, shared, numbers, list, end, at, stage, wants_error);
      __syncthreads();
      sums.Raise(shared, stage, wants_error);
      sums.Multiply(shared.packed, SharedAddress(values), slabs, wants_error);
      sums.Multiply(shared.of_sketch, SharedAddress(keys), slabs, wants_error);
      __syncthreads();
      copy_keys(next, next_end);
      copy_rows(values, task.view.value_offset, next, next_end);
    }
    float* partial = task.arrays.partial(kv_head, (task.first_split + split) / splits_of_run);
    sums.Write(partial, group_size, wants_error);
    WriteNumbers(shared, numbers, partial + task.arrays.partial_numbers(), stage ^ 1, group_size, wants_error);
    __syncthreads();
  }
  WaitCopies<0>();
  if (!CountIn(task, shared, shared.list_at[num_splits])) return;
  AnswerCorrected(task, shared, reinterpret_cast<float*>(bytes));
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    if constexpr (sizeof(Kv) == 2) {
      static_assert(2 * kGatherWarps * Slab<Kv, D>::kBytes >= kMaxBlockTokens * sizeof(uint32_t),
                    "whatever a block takes, its inclusions need no more room");
      const int most_splits = launch.splits_of_block + launch.splits_of_block % 2;  // whole runs
      const int listed = std::min({launch.longest_split * most_splits, kMaxBlockTokens, launch.most_rows});
      const int shared_bytes = StageBytes<Kv, D>(launch) + listed * static_cast<int>(sizeof(uint32_t));
      return LaunchGroup(GatherCorrectionsKernel<Kv, D, kBlocks>, launch, kGatherThreads, shared_bytes, stream);
    } else {
      return cudaErrorNotSupported;  // a difference takes more than the eight bits that a row has
    }
  }
};

}  // namespace

cudaError_t LaunchGatherCorrections(const GroupLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
