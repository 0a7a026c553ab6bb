// The rows that a group reads (kernels/sampling/inclusion.h), their weighted sum, and the answer.
//
// Grid: (key/value head, work). A block takes some splits, lists the rows that are read of them, and sums those up
// split by split. The block that is its group's last adds the splits up.
#include <algorithm>

#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_list.cuh"
#include "kernels/cuda/group_sums.cuh"
#include "kernels/sampling/standard_error.h"
#include "kernels/sampling/target_error.h"

namespace santa::cuda {
namespace {

// Keeps what the pilot's answer of a head says: its squared error and norm. Whether it misses the target.
__device__ bool MissesTarget(PilotAnswer* pilot, int head, float target, float squared_error, float squared_norm) {
  // What a noisy estimate adds to its own norm is taken off, but never all.
  const float norm = fmaxf(squared_norm - squared_error, 0.05f * squared_norm);
  const float aim = static_cast<float>(sampling::kTargetMargin) * target, allowed = aim * aim * norm;
  pilot->allowed[head] = allowed / squared_error;
  return squared_error > allowed;
}

// The answer of one group of heads, from the sums over all splits. All threads call it.
template <typename Kv, int D, int kBlocks>
__device__ void Answer(const GatherTask<Kv, D>& task, const GatherShared<kBlocks>& shared, const float* vectors) {
  const int lane = threadIdx.x % 32, group_size = task.group_size();
  const bool sketched = task.sketched(), wants_error = task.wants_error();
  const DeviceItem& item = task.item;
  const AnswerWriter answer(task.group.decode, item, task.kv_head);
  bool misses = false;
  for (int head = threadIdx.x / 32; head < group_size; head += kGatherWarps) {
    const float* o = vectors + head * D;
    const float* t_wv = o + group_size * D;
    const float* t_w2v = t_wv + group_size * D;
    const float reference = shared.reference[0][kOfAll][head], sink = answer.Sink(head);
    const float z = sketched ? shared.number[kSumW][head] : 1.0f;
    const float lse = sketched && z > 0 ? reference : shared.lse[head];  // without any row: what chose none
    const float max = fmaxf(lse, sink), scale = Rescale(lse, max), sum = z * scale + Rescale(sink, max);
    const float inverse = !sketched ? 1.0f : z > 0 ? scale / sum : 0.0f;  // what a ratio's sums are multiplied by
    float o2 = 0, o_w2v = 0, sum2 = 0;                                    // |o|^2, o sum t w^2 v, |sum t z|^2
    for (int d = 4 * lane; d < D; d += 4 * 32) {
      const float4 mine = *reinterpret_cast<const float4*>(o + d);
      // Without any row there is nothing to divide by, and nothing to divide.
      answer.template WriteOutput<D>(head, d, scale * mine, z > 0 ? sum : 1.0f);
      const float values[4] = {mine.x, mine.y, mine.z, mine.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = values[i] * inverse;
        o2 = fmaf(x, x, o2);
        if (!wants_error) continue;
        o_w2v = fmaf(x, t_w2v[d + i], o_w2v);
        const float y = t_wv[d + i] - (sketched ? shared.number[kSumTW][head] * x : 0.0f);
        sum2 = fmaf(y, y, sum2);
      }
    }
    o2 = WarpSum(o2);
    o_w2v = WarpSum(o_w2v);
    sum2 = WarpSum(sum2);
    if (lane != 0) continue;
    if (z > 0) {
      answer.WriteLse(head, max, sum);
    } else {
      answer.WriteLse(head, lse, 1.0f);
    }
    if (!wants_error) continue;
    // z = w (v - o) of a ratio, and w v of a sum; against the reference of what was left to chance.
    float squares = shared.number[kSumTW2V2][head];
    if (sketched) squares += shared.number[kSumTW2][head] * o2 - 2 * o_w2v;
    const float unit = inverse * Rescale(shared.reference[0][kOfChance][head], reference);
    const float error =
        unit * unit *
        sampling::SquaredError(
            {.t = shared.number[kSumT][head], .t_squared = shared.number[kSumTT][head], .z_squared = squares}, sum2);
    if (item.relative_standard_error != nullptr) {
      item.relative_standard_error[answer.first_head + head] = sampling::RelativeError(error, o2);
    }
    if (task.pilot()) {
      misses |= MissesTarget(task.arrays.pilot(task.kv_head), head, item.target_relative_error, error, o2);
    }
  }
  if (!task.pilot()) return;
  misses = __syncthreads_or(misses);
  if (threadIdx.x == 0) task.arrays.pilot(task.kv_head)->done = !misses;
}

// Adds up the splits' partial results into shared memory, against the largest of their references, which go to
// shared.reference[0]: vectors [num_vectors][G][D], numbers [G] each. A warp has 32 splits at a time.
template <int D, int kBlocks>
__device__ void AddSplits(const GroupArrays& arrays, int kv_head, int group_size, GatherShared<kBlocks>& shared,
                          float* vectors, int num_vectors) {
  const int num_splits = arrays.num_splits(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto number = [&](int split, int which, int head) {
    return __ldcg(arrays.partial(kv_head, split) + arrays.partial_numbers() + which * group_size + head);
  };
  const auto of_split = [&](int split, int i) {  // the i-th of the references
    return split < num_splits ? number(split, kPartialSums + i / group_size, i % group_size) : kNegativeInfinity;
  };
  for (int i = warp; i < kReferences * group_size; i += kGatherWarps) {
    const float first = of_split(lane, i);
    float max = first;
    for (int split = 32 + lane; split < num_splits; split += 32) max = fmaxf(max, of_split(split, i));
#pragma unroll
    for (int step = 1; step < 32; step *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
    if (lane == 0) shared.reference[0][i / group_size][i % group_size] = max;
    shared.factor[i / group_size][lane][i % group_size] = Rescale(first, max);
  }
  __syncthreads();
  const int quads = group_size * D / 4;  // of a vector
  const int num_sums = num_vectors == 1 ? 1 : kPartialSums;
  for (int from = 0; from < num_splits; from += 32) {
    if (from > 0) {
      __syncthreads();
      for (int i = warp; i < kReferences * group_size; i += kGatherWarps) {
        const float max = shared.reference[0][i / group_size][i % group_size];
        shared.factor[i / group_size][lane][i % group_size] = Rescale(of_split(from + lane, i), max);
      }
      __syncthreads();
    }
    for (int i = warp; i < num_sums * group_size; i += kGatherWarps) {
      const int which = i / group_size, head = i % group_size;
      float mine = from + lane < num_splits ? number(from + lane, which, head) : 0.0f;
      if (which != kSumT && which != kSumTT) mine *= shared.factor[which == kSumW ? kOfAll : kOfChance][lane][head];
      if (which == kSumTW2 || which == kSumTW2V2) mine *= shared.factor[kOfChance][lane][head];
      mine = WarpSum(mine);
      if (lane == 0) shared.number[which][head] = from == 0 ? mine : shared.number[which][head] + mine;
    }
    const int count = min(32, num_splits - from);
    for (int quad = threadIdx.x; quad < num_vectors * quads; quad += kGatherThreads) {
      const int vector = quad / quads, head = quad % quads / (D / 4);
      auto& sum_at = *reinterpret_cast<float4*>(vectors + 4 * quad);
      float4 sum = from == 0 ? float4{} : sum_at;
#pragma unroll 16
      for (int i = 0; i < count; ++i) {
        const float once = shared.factor[vector == 0 ? kOfAll : kOfChance][i][head];
        sum += (vector == 2 ? once * once : once) *
               __ldcg(reinterpret_cast<const float4*>(arrays.partial(kv_head, from + i)) + quad);
      }
      sum_at = sum;
    }
  }
  __syncthreads();
}

constexpr int kKeys = 1;  // which of the two stages has them

// The first split from `split` on that has rows, or the last one.
__device__ __forceinline__ int FirstWithRows(const int* list_at, int split, int num_splits) {
  while (split < num_splits - 1 && list_at[split] == list_at[split + 1]) ++split;
  return min(split, num_splits - 1);
}

// Two stages of rows, of values both or of keys and values, with room for what is there before and after them:
// inclusions, and the splits' sum.
template <typename Kv, int D>
__host__ __device__ int StageBytes(const GroupLaunch& group) {
  const int inclusions = group.longest_split * group.splits_of_block * static_cast<int>(sizeof(uint32_t));
  const int vectors = kPartialVectors * group.decode.group_size * D * static_cast<int>(sizeof(float));
  const int stages = 2 * kGatherWarps * Slab<Kv, D>::kBytes;
  return inclusions > stages ? (inclusions > vectors ? inclusions : vectors) : (stages > vectors ? stages : vectors);
}

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
  if (task.pilot() && task.first_split == 0) {
    for (int i = threadIdx.x; i < group_size * sampling::kInclusionBins; i += kGatherThreads) {
      task.arrays.spreads(kv_head)[i] = 0;
    }
  }
  if (threadIdx.x < 8 * kBlocks) {
    shared.lse[threadIdx.x] = threadIdx.x < group_size ? task.arrays.lse(kv_head)[threadIdx.x] : 0.0f;
  }
  for (int i = threadIdx.x; i < 8 * kBlocks * kPitch; i += kGatherThreads) {  // of heads that there are not
    shared.weight[i / kPitch][i % kPitch] = kNegativeInfinity;
    for (int vector = 0; vector < kPartialVectors; ++vector) shared.packed[vector][i / kPitch][i % kPitch] = 0;
  }
  __syncthreads();
  LoadOctaves(shared.octaves, task.arrays, task.splits, kv_head, group_size, shared.lse);
  __syncthreads();
  if (task.sketched()) {
    FindInclusions<uint8_t>(task, shared, inclusion);
  } else {
    FindInclusions<uint16_t>(task, shared, inclusion);
  }
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
  Answer<Kv, D, kBlocks>(task, shared, vectors);
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
