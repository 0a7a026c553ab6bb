// The rows that a group reads (kernels/sampling/inclusion.h), their weighted sum, and the answer.
//
// Grid: (key/value head, work). A block takes some splits, lists the rows that are read of them, and sums those up
// split by split. The block that is its group's last adds the splits up.
#include <algorithm>

#include "kernels/cuda/group_gather.cuh"

namespace santa::cuda {
namespace {

template <typename Kv, int D, int kBlocks>
__global__ void __launch_bounds__(kGatherThreads, kBlocks == 1 && D <= 128 ? 4 : 1)
    GatherGroupKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ CodedShared<kBlocks> shared;
  auto* inclusion = reinterpret_cast<uint32_t*>(bytes);  // until the rows are listed
  auto* list = reinterpret_cast<uint32_t*>(bytes + StageBytes<Kv, D>(group));
  const int kv_head = blockIdx.x;
  if (!BlockSplits::IsFirst(group)) return WaitForEarlierKernel();
  const GatherTask<Kv, D> task(group, kv_head);
  LoadPages(task, shared);

  WaitForEarlierKernel();
  LetLaterKernelStart();
  if (group.second_draw && (task.item.target_relative_error == 0 || task.arrays.pilot(kv_head)->done)) return;
  ClearShared(task, shared);
  FindInclusions(task, shared, inclusion);
  __syncthreads();
  ListRows(task.splits, task.full_end, shared, inclusion, list, PlaceOnLine(task));
  SumRows<Kv, D, kBlocks>(task, shared, list, bytes);
  if (!CountIn(task, shared, shared.list_at[task.splits.count])) return;
  auto* const vectors = reinterpret_cast<float*>(bytes);
  bool misses;
  // A microsecond counts in the shapes that most models have; in the others nvcc's time does.
  constexpr bool kCalled = kBlocks > 1 || (D != 64 && D != 128);
  if constexpr (kCalled) {
    misses = CallAnswerGroup<D, kBlocks>(group, kv_head, shared, vectors);
  } else {
    misses = AnswerGroup<D, kBlocks>(task, shared, vectors);
  }
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
