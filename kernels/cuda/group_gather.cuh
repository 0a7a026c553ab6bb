// What the kernels share that read a group's rows (kernels/cuda/gather_group.cu, one_pass.cu): from the list of a
// block's rows to its splits' partial results, and from all of these to the answer.
#ifndef SANTA_KERNELS_CUDA_GROUP_GATHER_CUH_
#define SANTA_KERNELS_CUDA_GROUP_GATHER_CUH_

#include "kernels/cuda/group_answer.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_sums.cuh"

namespace santa::cuda {

// Fills shared.page, of what came from the host. All threads call it, and __syncthreads() afterwards.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void LoadPages(const GatherTask<Kv, D>& task, AnswerShared<kBlocks>& shared) {
  const int first_page = task.splits.begin >> task.view.page_shift;
  const int num_pages = ((task.splits.end - 1) >> task.view.page_shift) - first_page + 1;
  for (int i = threadIdx.x; i < num_pages; i += kGatherThreads) shared.page[i] = task.item.page_table[first_page + i];
}

// Sums up the rows of the list split by split, and writes the splits' partial results. stages: of StageBytes. All
// threads call it, with no copy of theirs under way.
template <typename Kv, int D, int kBlocks>
__device__ __forceinline__ void SumRows(const GatherTask<Kv, D>& task, CodedShared<kBlocks>& shared,
                                        const uint32_t* list, unsigned char* stages) {
  constexpr int kKeys = 1;  // which of the two stages has them
  using S = Slab<Kv, D>;
  const DeviceItem& item = task.item;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group_size = task.group_size(), num_splits = task.splits.count;
  const bool wants_error = task.wants_error(), sketched = task.sketched();
  // What a split begins with, and COORDINATED stays with.
  float first_reference[kReferences] = {kNegativeInfinity, kNegativeInfinity};
  if (!sketched) {
    first_reference[kOfAll] = 0;
    first_reference[kOfChance] = -log2f(task.arrays.threshold(task.kv_head)->kappa);
    if (threadIdx.x < kGatherWarps * 8 * kBlocks) {
#pragma unroll
      for (int reference = 0; reference < kReferences; ++reference) {
        (&shared.warp_max[reference][0][0])[threadIdx.x] = first_reference[reference];
      }
    }
  }
  QueryFragment<D> q[kBlocks];
  if (sketched) LoadQueries<Kv, D, kBlocks>(q, task.group.decode, item, task.kv_head, lane);
  const Scorer scorer(item, task.kv_head);
  const int warp_at = warp * kSlabRows;
  // Starts copying rows of entries [at, end) of the list, as many as a stage has, to one of the two.
  const auto copy_stage = [&](int at, int end, size_t offset, int stage) {
    unsigned char* slab = stages + (stage * kGatherWarps + warp) * S::kBytes;
    if (at + warp_at < end) {
      if (!sketched) {
        CopyCodes<Kv, D, kBlocks>(shared.codes[stage] + warp_at, task, list, end, at + warp_at, lane);
      }
      CopyEntries<Kv, D>(SharedAddress(slab), offset, task, shared.page, list, end, at + warp_at, lane);
    } else if (at < end) {  // the other warps multiply by what is there
#pragma unroll 1
      for (int i = lane; i < S::kBytes / 16; i += 32) reinterpret_cast<uint4*>(slab)[i] = uint4{};
    }
    CommitCopies();
  };
  // The next stage's keys are on their way from when these have been multiplied with, and where there are keys its
  // values from when these have been added; else from before they are weighed.
  const size_t value_offset = task.view.value_offset;
  const int first_end = shared.list_at[FirstWithRows(shared.list_at, 0, num_splits) + 1];
  if (sketched) copy_stage(0, first_end, 0, kKeys);
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
        shared.reference[stage ^ 1][reference][threadIdx.x] = first_reference[reference];
      }
    }
#pragma unroll 1
    for (int at = begin; at < end; at += kStageRows, stage ^= 1) {
      // The first split after this one that has rows begins where it ends, or that is the list's end.
      const int next = min(at + kStageRows, end);
      const int next_end = next < end ? end : shared.list_at[FirstWithRows(shared.list_at, split + 1, num_splits) + 1];
      if (sketched) {
        WaitCopies<1>();
        const uint32_t keys = SharedAddress(stages + (kKeys * kGatherWarps + warp) * S::kBytes);
        WeighByKeys<Kv, D, kBlocks>(task, shared, keys, q, scorer, list, end, at, lane);
        __syncwarp();
        copy_stage(next, next_end, 0, kKeys);
        WaitCopies<1>();
      } else {
        copy_stage(next, next_end, value_offset, stage ^ 1);
        WaitCopies<1>();
        WeighByCodes<Kv, D, kBlocks>(task, shared, stage, list, end, at, lane);
      }
      __syncthreads();
      const unsigned char* values = stages + (sketched ? 0 : stage) * kGatherWarps * S::kBytes;
      PackWeights<Kv, D, kBlocks>(task, shared, numbers, values, list, end, at, stage, wants_error);
      __syncthreads();
      sums.Add(shared, SharedAddress(values), stage, wants_error);
      __syncthreads();
      if (sketched) copy_stage(next, next_end, value_offset, 0);
    }
    float* partial = task.arrays.partial(task.kv_head, task.first_split + split);
    sums.Write(partial, group_size, wants_error);
    WriteNumbers(shared, numbers, partial + task.arrays.partial_numbers(), stage ^ 1, group_size, wants_error);
    __syncthreads();
  }
}

// The group's answer from its splits' partial results. vectors: scratch, [kPartialVectors][G][D]. Returns as Answer.
// All threads call it.
template <int D, int kBlocks>
__device__ __forceinline__ bool AnswerGroup(const BlockTask& task, GatherShared<kBlocks>& shared, float* vectors) {
  AddSplits<D, kBlocks>(task.arrays, task.kv_head, task.group_size(), shared, vectors,
                        task.wants_error() ? kPartialVectors : 1);
  const SpreadErrors<D, kBlocks> errors{shared, vectors, task.group_size(), task.sketched()};
  return Answer<D, kBlocks>(task, shared, vectors, errors, ~0u, 0);
}

// Likewise, not inlined: one for all types of cache.
template <int D, int kBlocks>
__device__ __noinline__ bool CallAnswerGroup(const GroupLaunch& group, int kv_head, GatherShared<kBlocks>& shared,
                                             float* vectors) {
  const bool misses = AnswerGroup<D, kBlocks>(BlockTask(group, kv_head), shared, vectors);
  __syncwarp();  // what is called is left by all lanes together, for barriers count warps
  return misses;
}

// Counts the block's rows; whether it is its group's last, which answers from the splits' partial results. All threads
// call it, after a barrier behind the block's.
template <int kBlocks>
__device__ __forceinline__ bool CountIn(const BlockTask& task, AnswerShared<kBlocks>& shared, int rows_read) {
  if (threadIdx.x == 0 && task.item.rows_read != nullptr && !task.group.alone) {
    atomicAdd(task.item.rows_read, static_cast<unsigned long long>(rows_read));
  }
  const int blocks = BlockSplits::BlocksOf(task.item, task.splits_of_block);
  return IsLastOfGroup(task.group.decode, task.item_index, task.kv_head, blocks, shared.last);
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_GATHER_CUH_
