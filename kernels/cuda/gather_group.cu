// The rows that a group reads (kernels/sampling/inclusion.h), their weighted sum, and the answer.
//
// Grid: (key/value head, work). A block takes some splits, lists the rows that are read of them, and sums those up
// split by split. The block that is its group's last adds the splits up.
#include <algorithm>

#include "kernels/cuda/group_answer.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_sums.cuh"

namespace santa::cuda {
namespace {

constexpr int kKeys = 1;  // which of the two stages has them

template <typename Kv, int D, int kBlocks>
__global__ void __launch_bounds__(kGatherThreads, kBlocks == 1 && D <= 128 ? 4 : 1)
    GatherGroupKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ GatherShared<kBlocks> shared;
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
  ClearShared(task, shared);
  FindInclusions(task, shared, inclusion);
  // What a split begins with, and COORDINATED stays with.
  const float first_reference[kReferences] = {
      task.sketched() ? kNegativeInfinity : 0.0f,
      task.sketched() ? kNegativeInfinity : -log2f(task.arrays.threshold(kv_head)->kappa)};
  if (threadIdx.x < kGatherWarps * 8 * kBlocks) {
#pragma unroll
    for (int reference = 0; reference < kReferences; ++reference) {
      (&shared.warp_max[reference][0][0])[threadIdx.x] = first_reference[reference];
    }
  }
  __syncthreads();
  ListRows(task, shared, inclusion, list);

  QueryFragment<D> q[kBlocks];
  if (task.sketched()) LoadQueries<Kv, D, kBlocks>(q, group.decode, item, kv_head, lane);
  const Scorer scorer(item, kv_head);
  const int warp_at = warp * kSlabRows;
  // Starts copying rows of entries [at, end) of the list, as many as a stage has, to one of the two.
  const auto copy_stage = [&](int at, int end, size_t offset, int stage) {
    unsigned char* slab = stages + (stage * kGatherWarps + warp) * S::kBytes;
    if (at + warp_at < end) {
      if (!task.sketched()) {
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
  if (task.sketched()) copy_stage(0, first_end, 0, kKeys);
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
      if (task.sketched()) {
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
      const unsigned char* values = stages + (task.sketched() ? 0 : stage) * kGatherWarps * S::kBytes;
      PackWeights<Kv, D, kBlocks>(task, shared, numbers, values, list, end, at, stage, wants_error);
      __syncthreads();
      sums.Add(shared, SharedAddress(values), stage, wants_error);
      __syncthreads();
      if (task.sketched()) copy_stage(next, next_end, value_offset, 0);
    }
    float* partial = task.arrays.partial(kv_head, task.first_split + split);
    sums.Write(partial, group_size, wants_error);
    WriteNumbers(shared, numbers, partial + task.arrays.partial_numbers(), stage ^ 1, group_size, wants_error);
    __syncthreads();
  }
  if (threadIdx.x == 0 && item.rows_read != nullptr) {
    atomicAdd(item.rows_read, static_cast<unsigned long long>(shared.list_at[num_splits]));
  }
  const int blocks = BlockSplits::BlocksOf(group, item);
  if (!IsLastOfGroup(group.decode, task.item_index, kv_head, blocks, shared.last)) return;
  auto* vectors = reinterpret_cast<float*>(stages);
  AddSplits<D, kBlocks>(task.arrays, kv_head, group_size, shared, vectors, wants_error ? kPartialVectors : 1);
  bool misses = Answer<Kv, D, kBlocks>(task, shared, vectors, ~0u, 0);
  if (!task.pilot()) return;
  misses = __syncthreads_or(misses);
  if (threadIdx.x == 0) task.arrays.pilot(kv_head)->done = !misses;
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    const int listed = std::min(launch.longest_split * launch.splits_of_block, launch.most_rows);
    const int shared_bytes = StageBytes<Kv, D>(launch) + listed * static_cast<int>(sizeof(uint32_t));
    return LaunchGroup(GatherGroupKernel<Kv, D, kBlocks>, launch, kGatherThreads, shared_bytes, stream);
  }
};

}  // namespace

cudaError_t LaunchGatherGroup(const GroupLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
