// As kernels/cuda/gather_group.cu, for SKETCHED with a value sketch: what the rows that a group reads correct of what
// its sketches say, and the answer. A head whose sketch is no help is left to a second launch (GroupLaunch::alone), in
// which its rows stand for all, as they do without a value sketch.
//
// Grid: (key/value head, work). A block takes some splits, lists the rows that are read of them, and sums up split by
// split. The block that is its group's last adds the splits up.
#include <algorithm>

#include "kernels/cuda/group_answer.cuh"
#include "kernels/cuda/group_corrections.cuh"
#include "kernels/cuda/group_launch.cuh"

namespace santa::cuda {
namespace {

constexpr int kKeys = 1;  // which of the two stages has them; the other one has values

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
  bool misses = Answer<D, kBlocks>(task, shared, vectors, alone ? alone_heads : ~alone_heads, shared.unread);
  if (!task.pilot()) return;
  misses = __syncthreads_or(misses);
  PilotAnswer* pilot = arrays.pilot(kv_head);
  if (threadIdx.x == 0) pilot->done = !misses && (!alone || pilot->done);
}

template <typename Kv, int D, int kBlocks>
__global__ void __launch_bounds__(kGatherThreads, kBlocks == 1 && D <= 128 ? 3 : 1)
    GatherCorrectionsKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ CorrectionShared<kBlocks> shared;
  using S = Slab<Kv, D>;
  unsigned char* stages = bytes;
  auto* inclusion = reinterpret_cast<uint32_t*>(bytes);  // until the rows are listed
  auto* list = reinterpret_cast<uint32_t*>(bytes + StageBytes<Kv, D>(group));
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (!BlockSplits::IsFirst(group)) return WaitForEarlierKernel();
  const GatherTask<Kv, D> task(group, kv_head);
  const DeviceItem& item = task.item;
  const int group_size = task.group_size(), num_splits = task.splits.count;
  const bool wants_error = task.wants_error();
  const int first_page = task.splits.begin >> task.view.page_shift;
  const int num_pages = ((task.splits.end - 1) >> task.view.page_shift) - first_page + 1;
  for (int i = threadIdx.x; i < num_pages; i += kGatherThreads) shared.page[i] = item.page_table[first_page + i];

  WaitForEarlierKernel();
  LetLaterKernelStart();
  if (group.second_draw && (item.target_relative_error == 0 || task.arrays.pilot(kv_head)->done)) return;
  if (group.alone && *task.arrays.alone(kv_head) == 0) return;
  ClearShared(task, shared);
  FindInclusions(task, shared, inclusion);
  __syncthreads();
  LoadOctaves(shared.octaves, task.arrays, task.splits, kv_head, group_size, nullptr);
  CallListRows(task.splits, task.full_end, shared, inclusion, list, PlaceOnLine(task));

  const ValueSketchView<D> sketches(group, item, kv_head);
  QueryFragment<D> q[kBlocks];
  LoadQueries<Kv, D, kBlocks>(q, group.decode, item, kv_head, lane);
  const Scorer scorer(item, kv_head);
  const int warp_at = warp * kSlabRows;
  // Starts copying rows of entries [at, end) of the list, as many as a stage has, to one of the two.
  const auto copy_stage = [&](int at, int end, size_t offset, int stage) {
    unsigned char* slab = stages + (stage * kGatherWarps + warp) * S::kBytes;
    if (at + warp_at < end) {
      if (stage == kKeys) CopySketchCodes(shared, task, list, end, at, lane);
      CopyEntries<Kv, D>(SharedAddress(slab), offset, task, shared.page, list, end, at + warp_at, lane);
    } else if (at < end) {  // the other warps multiply by what is there
#pragma unroll 1
      for (int i = lane; i < S::kBytes / 16; i += 32) reinterpret_cast<uint4*>(slab)[i] = uint4{};
    }
    CommitCopies();
  };
  // The next stage's keys are on their way from when these have been multiplied with, its values from when these have
  // been added.
  const size_t value_offset = task.view.value_offset;
  const int first_end = shared.list_at[FirstWithRows(shared.list_at, 0, num_splits) + 1];
  copy_stage(0, first_end, 0, kKeys);
  copy_stage(0, first_end, value_offset, 0);
  int stage = 0;
#pragma unroll 1
  for (int split = 0; split < num_splits; ++split) {
    const int begin = shared.list_at[split], end = shared.list_at[split + 1];
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
      // The first split after this one that has rows begins where it ends, or that is the list's end.
      const int next = min(at + kStageRows, end);
      const int next_end = next < end ? end : shared.list_at[FirstWithRows(shared.list_at, split + 1, num_splits) + 1];
      WaitCopies<1>();
      const uint32_t keys = SharedAddress(stages + (kKeys * kGatherWarps + warp) * S::kBytes);
      WeighByKeys<Kv, D, kBlocks>(task, shared, keys, q, scorer, list, end, at, lane);
      __syncwarp();
      WeighSketches<Kv, D, kBlocks>(task, shared, list, end, at, lane);
      __syncwarp();
      copy_stage(next, next_end, 0, kKeys);
      WaitCopies<1>();
      __syncthreads();
      PackMassCorrections<Kv, D, kBlocks>(task, shared, numbers, list, end, at, stage, wants_error);
      __syncthreads();
      sums.Add(shared, SharedAddress(stages), stage, wants_error);
      __syncthreads();
      PackDifferences<Kv, D, kBlocks>(task, shared, numbers, stages, sketches, list, end, at, stage, wants_error);
      __syncthreads();
      sums.Multiply(shared, SharedAddress(stages), wants_error);
      __syncthreads();
      copy_stage(next, next_end, value_offset, 0);
    }
    float* partial = task.arrays.partial(kv_head, task.first_split + split);
    sums.Write(partial, group_size, wants_error);
    WriteNumbers(shared, numbers, partial + task.arrays.partial_numbers(), stage ^ 1, group_size, wants_error);
    __syncthreads();
  }
  if (threadIdx.x == 0 && item.rows_read != nullptr && !group.alone) {
    atomicAdd(item.rows_read, static_cast<unsigned long long>(shared.list_at[num_splits]));
  }
  const int blocks = BlockSplits::BlocksOf(group, item);
  if (!IsLastOfGroup(group.decode, task.item_index, kv_head, blocks, shared.last)) return;
  AnswerCorrected(task, shared, reinterpret_cast<float*>(stages));
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    if constexpr (sizeof(Kv) == 2) {
      const int listed = std::min(launch.longest_split * launch.splits_of_block, launch.most_rows);
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
