// COORDINATED and SKETCHED in one pass over K or its sketch, by a threshold that is there already
// (kernels/cuda/pilot_threshold.cu): what a block scores it draws, gathers and sums up before it ends. COORDINATED too
// takes the weights of its rows from their keys, which are read again: no score is kept.
//
// Grid: (key/value head, work). A block takes one split, with a draw of its own. Each warp scores every fourth block of
// 64 tokens, which asynchronous copies bring into a ring of its own, and leaves inclusions; the rows are listed where
// the ring was. The block that is its group's last adds the splits up.
#include <algorithm>

#include "kernels/cuda/group_gather.cuh"
#include "kernels/cuda/token_squares.cuh"
#include "kernels/sampling/pilot.h"

namespace santa::cuda {
namespace {

// What is in shared memory: first the rings, then the list, then the two stages of rows; after that the inclusions,
// then the list.
template <typename Blocks, typename Kv, int D>
__host__ __device__ int RingBytes(const GroupLaunch& group) {
  const int rings = kGatherWarps * Blocks::RingBytes(group), stages = StageBytes<Kv, D>(group);
  return rings > stages ? rings : stages;
}

template <typename Blocks, typename Kv, int D, int kBlocksAtOnce>
__global__ void __launch_bounds__(kGatherThreads, kBlocksAtOnce)
    OnePassKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ GatherShared<1> shared;
  __shared__ typename Blocks::Queries queries;
  __shared__ float2 warp_sums[kQuad * kPilotQuads][kGatherWarps];
  auto* inclusion = reinterpret_cast<uint32_t*>(bytes + RingBytes<Blocks, Kv, D>(group));
  const DecodeLaunch& launch = group.decode;
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, group_size = launch.group_size;
  const GatherTask<Kv, D> task(group, kv_head);
  const DeviceItem& item = task.item;
  const int begin = task.splits.begin, origin = task.splits.origin, end = task.full_end;
  constexpr int kStep = kGatherWarps * sampling::kCodeBlock;
  int first = origin + warp * sampling::kCodeBlock;
  // Copies before the pilot's end: that began when what wrote the cache had ended.
  Blocks blocks(group, item, kv_head, begin, first, end, kStep, bytes + warp * Blocks::RingBytes(group), queries, lane);
  LoadPages(task, shared);
  const SketchScorer scorer(item, kv_head, blocks.LoadQueries(lane));
  WaitForEarlierKernel();
  LetLaterKernelStart();
  ClearShared(task, shared);
  const sampling::InclusionThreshold threshold = *task.arrays.threshold(kv_head);
  float twice_lse[kPilotQuads];
#pragma unroll
  for (int quad = 0; quad < kPilotQuads; ++quad) {
    const int head = kQuad * quad + lane % 4;
    twice_lse[quad] = head < group_size ? 2 * shared.lse[head] : INFINITY;
  }
  LaneSum sums[kPilotQuads];  // of COORDINATED, which divides by that of all tokens
#pragma unroll 1
  for (; first < end; first += kStep) {
    QuadScores s[kPilotQuads] = {};
    blocks.Next(s, first, lane);
    TokenSquares squares = {};
#pragma unroll
    for (int quad = 0; quad < kPilotQuads; ++quad) {
      if (kQuad * quad >= group_size) break;
      const float scale = ScaleQuad(s[quad], scorer, begin, end, first, lane);
      if constexpr (Blocks::kOfAllTokens) {
        AddScores(sums[quad], s[quad], scale, [](int) { return 1.0f; });
      }
      AddSquares(squares, s[quad], scale, twice_lse[quad]);
    }
    const LaneSquares mine = SumOverHeads(squares, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = first + TokenOfSquare(i, lane);
      inclusion[token - origin] = token >= begin && token < end ? sampling::Inclusion(threshold, mine.of[i]) : 0;
    }
  }
  WaitCopies<0>();
  if constexpr (Blocks::kOfAllTokens) {
#pragma unroll
    for (int quad = 0; quad < kPilotQuads; ++quad) LeaveSums(warp_sums + kQuad * quad, sums[quad], warp, lane);
  }
  __syncthreads();
  if constexpr (Blocks::kOfAllTokens) {
    for (int head = warp; head < group_size; head += kGatherWarps) {
      const float2 sum = MergeSums(lane < kGatherWarps ? warp_sums[head][lane] : make_float2(kNegativeInfinity, 0));
      if (lane == 0) task.arrays.split_sums(kv_head)[task.first_split * group_size + head] = sum;
    }
  }
  auto* list = reinterpret_cast<uint32_t*>(bytes);
  const uint32_t run = begin / sampling::PilotRunTokens(item.end - item.begin);
  ListRows(task.splits, task.full_end, shared, inclusion, list, PlaceByItself{sampling::RunOffset(task.stream(), run)});
  for (int i = threadIdx.x; i < shared.list_at[1]; i += kGatherThreads) inclusion[i] = list[i];
  __syncthreads();
  SumRows<Kv, D, 1>(task, shared, inclusion, bytes);
  bool misses = false;
  AnswerIfLast<D, 1, false>(task, shared, bytes, misses);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D>
  cudaError_t Run() const {
    if (launch.method == Method::kCoordinated) return Start<KeyBlocks<Kv, D>, Kv, D, 3>();
    return Start<SketchBlocks<D>, Kv, D, 4>();
  }

 private:
  template <typename Blocks, typename Kv, int D, int kBlocksAtOnce>
  cudaError_t Start() const {
    static const DeviceLimits limits = DeviceLimits::Read();
    constexpr int kStatic = static_cast<int>(sizeof(GatherShared<1>) + sizeof(typename Blocks::Queries));
    const auto shared_bytes = [](const GroupLaunch& with) {
      return RingBytes<Blocks, Kv, D>(with) + with.longest_split * static_cast<int>(sizeof(uint32_t));
    };
    GroupLaunch mine = launch;
    mine.few_blocks = true;
    const int most_bytes = limits.shared_bytes / 2 - limits.reserved_bytes - kStatic - 1024;  // of one of two
    mine.few_blocks = launch.decode.num_kv_heads * launch.decode.num_work <= 2 * limits.multiprocessors &&
                      shared_bytes(mine) <= most_bytes;
    return LaunchGroup(OnePassKernel<Blocks, Kv, D, kBlocksAtOnce>, mine, kGatherThreads, shared_bytes(mine), stream);
  }
};

}  // namespace

cudaError_t LaunchOnePass(const GroupLaunch& launch, cudaStream_t stream) {
  return DispatchPilot(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
