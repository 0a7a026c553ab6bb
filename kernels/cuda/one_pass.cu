// SKETCHED in one pass over the sketch, by a threshold that is there already (kernels/cuda/pilot_threshold.cu): what a
// block scores it draws, gathers and sums up before it ends.
//
// Grid: (key/value head, work). A block takes one split, with a draw of its own. Each warp scores every fourth block of
// 64 tokens, whose sketch asynchronous copies bring into a ring of its own, and leaves inclusions; the rows are listed
// where the ring was. The block that is its group's last adds the splits up.
#include <algorithm>

#include "kernels/cuda/group_gather.cuh"
#include "kernels/cuda/sketch_squares.cuh"
#include "kernels/sampling/pilot.h"

namespace santa::cuda {
namespace {

constexpr int kRing = 2;  // stages of a warp's ring

// What is in shared memory: first the ring, then the list, then the two stages of rows; after that the inclusions, then
// the list.
template <typename Kv, int D>
__host__ __device__ int RingBytes(const GroupLaunch& group) {
  const int ring = kGatherWarps * kRing * SketchGeometry<D, kKeyBits>(group.decode.page_shift).stage_bytes();
  const int stages = StageBytes<Kv, D>(group);
  return ring > stages ? ring : stages;
}

template <typename Kv, int D>
__global__ void __launch_bounds__(kGatherThreads, 4) OnePassKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ GatherShared<1> shared;
  __shared__ SketchQueries<D, kPilotQuads> queries;
  auto* inclusion = reinterpret_cast<uint32_t*>(bytes + RingBytes<Kv, D>(group));
  const DecodeLaunch& launch = group.decode;
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, group_size = launch.group_size;
  const GatherTask<Kv, D> task(group, kv_head);
  const DeviceItem& item = task.item;
  const int begin = task.splits.begin, origin = task.splits.origin, end = task.full_end;
  const SketchView<D, kKeyBits> sketches(launch, item, kv_head, 0);
  const SketchGeometry<D, kKeyBits> geometry(launch.page_shift);
  const int stage_bytes = geometry.stage_bytes();
  const unsigned char* ring = bytes + warp * kRing * stage_bytes;
  int ahead = origin + warp * sampling::kCodeBlock, ahead_at = 0, at = 0;  // the first token to be copied; stages
  const auto copy_ahead = [&] {
    if (ahead < end) {
      sketches.CopyBlock(SharedAddress(ring) + ahead_at * stage_bytes, geometry, ahead / sampling::kCodeBlock, 0, lane);
      ahead += kGatherWarps * sampling::kCodeBlock;
    }
    ahead_at = (ahead_at + 1) % kRing;
    CommitCopies();
  };
  // Before the pilot's end: that began when what wrote the cache had ended.
#pragma unroll
  for (int i = 0; i < kRing - 1; ++i) copy_ahead();
  LoadPages(task, shared);
  const float factor = LoadSketchQueries<kKeyBits>(queries, launch, item, kv_head, 0, Scorer(item, kv_head).scale);
  const SketchScorer scorer(item, kv_head, factor);
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
#pragma unroll 1
  for (int first = origin + warp * sampling::kCodeBlock; first < end; first += kGatherWarps * sampling::kCodeBlock) {
    copy_ahead();
    WaitCopies<kRing - 1>();
    __syncwarp();
    TokenSquares squares = {};
#pragma unroll
    for (int quad = 0; quad < kPilotQuads; ++quad) {
      if (kQuad * quad >= group_size) break;
      QuadScores s = {};
      ScoreSketched<D, kKeyBits>(s, queries, geometry, ring + at * stage_bytes, quad, first, end, lane);
      const float scale = ScaleQuad(s, scorer, begin, end, first, lane);
      AddSquares(squares, s, scale, twice_lse[quad]);
    }
    const LaneSquares sums = SumOverHeads(squares, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = first + TokenOfSquare(i, lane);
      inclusion[token - origin] = token >= begin && token < end ? sampling::Inclusion(threshold, sums.of[i]) : 0;
    }
    at = (at + 1) % kRing;
    __syncwarp();  // the stage has been read
  }
  WaitCopies<0>();
  __syncthreads();
  auto* list = reinterpret_cast<uint32_t*>(bytes);
  const uint32_t run = begin / sampling::PilotRunTokens(item.end - item.begin);
  ListRows(task, shared, inclusion, list,
           [&task, run](unsigned long long) -> unsigned long long { return sampling::RunOffset(task.stream(), run); });
  for (int i = threadIdx.x; i < shared.list_at[1]; i += kGatherThreads) inclusion[i] = list[i];
  __syncthreads();
  SumRows<Kv, D, 1>(task, shared, inclusion, bytes);
  bool misses = false;
  AnswerIfLast<Kv, D, 1>(task, shared, bytes, misses);
}

template <typename Kv, int D>
cudaError_t Launch(const GroupLaunch& launch, cudaStream_t stream) {
  const int shared_bytes = RingBytes<Kv, D>(launch) + launch.longest_split * static_cast<int>(sizeof(uint32_t));
  return LaunchGroup(OnePassKernel<Kv, D>, launch, kGatherThreads, shared_bytes, stream);
}

template <typename Kv>
cudaError_t LaunchDim(const GroupLaunch& launch, cudaStream_t stream) {
  switch (launch.decode.head_dim) {
    case 64:
      return Launch<Kv, 64>(launch, stream);
    case 128:
      return Launch<Kv, 128>(launch, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

cudaError_t LaunchOnePass(const GroupLaunch& launch, cudaStream_t stream) {
  switch (launch.decode.dtype) {
    case DType::kBFloat16:
      return LaunchDim<__nv_bfloat16>(launch, stream);
    case DType::kFloat16:
      return LaunchDim<__half>(launch, stream);
    case DType::kFloat8E4M3:
      return LaunchDim<__nv_fp8_e4m3>(launch, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace santa::cuda
