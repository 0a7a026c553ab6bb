// Each group's kappa from a pilot of its tokens (kernels/sampling/pilot.h), and its heads' log-sum-exps by that pilot.
//
// Grid: (key/value head, item with a pilot). A warp takes two blocks of four slices, all of whose sketches are on their
// way at once, and keeps their scores.
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/sketch_squares.cuh"
#include "kernels/cuda/solve_threshold.cuh"
#include "kernels/sampling/pilot.h"

namespace santa::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlocksOfWarp = sampling::kPilotSlices / kBlockSlabs / kWarps;
static_assert(sampling::kSliceTokens == kSlabRows);

// Of a slice, as of pages that short.
template <int D>
__host__ __device__ SketchGeometry<D, kKeyBits> SliceGeometry() {
  return SketchGeometry<D, kKeyBits>(4);
}

template <int kHeads>
struct Shared {
  unsigned histogram[sampling::kInclusionBins];
  sampling::PilotSlice slices[sampling::kPilotSlices];
  float2 sums[kHeads][kWarps];  // largest score, sum of 2^(score - largest)
  float lse[kHeads];
  SolveShared<kThreads> solve;
};

// Adds a block's scores, each of which counts as often as its slice stands for, to a lane's share of its head's sum.
__device__ __forceinline__ void AddScores(LaneSum& sums, const QuadScores& s, float scale,
                                          const sampling::PilotSlice* slices) {
  const float largest = LargestOf(s);
  const float max = fmaxf(largest * scale, -sampling::kMaxScore);
  float sum = 0;
#pragma unroll
  for (int slab = 0; slab < kBlockSlabs; ++slab) {
    const auto times = static_cast<float>(slices[slab].stands_for);
    sum += times * (Exp2((s[slab][0] - largest) * scale) + Exp2((s[slab][1] - largest) * scale));
  }
  const float raised = fmaxf(sums.max, max);
  sums.sum = Exp2(sums.max - raised) * sums.sum + Exp2(max - raised) * sum;
  sums.max = raised;
}

// log2 of a head's sum of 2^score, by a warp.
__device__ __forceinline__ float LseOf(const float2 (&sums)[kWarps], int lane) {
  const float2 mine = lane < kWarps ? sums[lane] : make_float2(kNegativeInfinity, 0);
  float max = mine.x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
  return max + log2f(WarpSum(Rescale(mine.x, max) * mine.y));
}

template <int D, int kQuads>
__global__ void __launch_bounds__(kThreads) PilotThresholdKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  const DecodeLaunch& launch = group.decode;
  __shared__ SketchQueries<D, kQuads> queries;
  __shared__ Shared<kQuad * kQuads> shared;
  const int item_index = group.pilots[blockIdx.y], kv_head = blockIdx.x;
  const DeviceItem& item = launch.items[item_index];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const SketchView<D, kKeyBits> sketches(launch, item, kv_head, 0);
  const GroupArrays arrays = group.arrays[item_index];
  constexpr int kOfWarp = kBlocksOfWarp * kBlockSlabs;
  const auto geometry = SliceGeometry<D>();
  const unsigned char* parts = bytes + warp * kOfWarp * geometry.part_bytes();
  const sampling::PilotSlice* slices = shared.slices + warp * kOfWarp;
  if (threadIdx.x < sampling::kPilotSlices) {
    const int first = item.begin / kSlabRows, count = (item.end - 1) / kSlabRows - first + 1;
    shared.slices[threadIdx.x] = sampling::MakePilotSlice(first, count, threadIdx.x);
  }
  for (int i = threadIdx.x; i < sampling::kInclusionBins; i += kThreads) shared.histogram[i] = 0;
  __syncthreads();
  WaitForEarlierKernel();
  // Not sooner: the kernel that follows reads the cache before it waits for this one, and relies on what came before.
  LetLaterKernelStart();
#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    const int token = slices[i].slice * kSlabRows;
    if (token < sketches.end) {
      sketches.CopyPart(SharedAddress(parts) + i * geometry.part_bytes(), geometry, token, 0, lane);
    }
  }
  CommitCopies();
  const float factor = LoadSketchQueries<kKeyBits>(queries, launch, item, kv_head, 0, Scorer(item, kv_head).scale);
  const SketchScorer scorer(item, kv_head, factor);
  __syncthreads();
  WaitCopies<0>();
  __syncwarp();

  QuadScores s[kBlocksOfWarp][kQuads];
  float scale = 1;  // the same for all
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    LaneSum sums;
#pragma unroll
    for (int i = 0; i < kBlocksOfWarp; ++i) {
      QuadScores& of_block = s[i][quad];
      const sampling::PilotSlice* of_slabs = slices + i * kBlockSlabs;
#pragma unroll
      for (int slab = 0; slab < kBlockSlabs; ++slab) {
        const int token = of_slabs[slab].slice * kSlabRows;
        if (token < sketches.end) {
          const unsigned char* codes = parts + (i * kBlockSlabs + slab) * geometry.part_bytes();
          const PageQueries<D> page(queries, quad, codes + geometry.kSlabBytes, lane);
          ScoreSlab<D, kKeyBits>(of_block[slab], codes, page, lane);
        } else {
          const float2 exact = ScoreExactly<D>(launch, item, item.begin, item.end, kv_head, quad, token, lane);
          of_block[slab][0] = Hold(exact.x * factor);
          of_block[slab][1] = Hold(exact.y * factor);
        }
      }
      scale = scorer.Cap(of_block);
#pragma unroll
      for (int j = 0; j < 2 * kBlockSlabs; ++j) {
        const int token = of_slabs[j / 2].slice * kSlabRows + j % 2 * 8 + lane / 4;
        if (token < item.begin || token >= item.end) of_block[j / 2][j % 2] = kNegativeInfinity;
      }
      AddScores(sums, of_block, scale, of_slabs);
    }
#pragma unroll
    for (int step = 4; step < 32; step *= 2) sums.sum += __shfl_xor_sync(~0u, sums.sum, step);
    if (lane < kQuad) shared.sums[kQuad * quad + lane][warp] = make_float2(sums.max, sums.sum);
  }
  __syncthreads();
  for (int head = warp; head < kQuad * kQuads; head += kWarps) {
    const float lse = LseOf(shared.sums[head], lane);
    if (lane != 0) continue;
    shared.lse[head] = head < launch.group_size ? lse : INFINITY;
    if (head < launch.group_size) arrays.lse(kv_head)[head] = lse;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kBlocksOfWarp; ++i) {
    TokenSquares squares = {};
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      AddSquares(squares, s[i][quad], scale, 2 * shared.lse[kQuad * quad + lane % 4]);
    }
    const LaneSquares sums = SumOverHeads(squares, lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int place = TokenOfSquare(j, lane);
      const sampling::PilotSlice slice = slices[i * kBlockSlabs + place / kSlabRows];
      const int token = slice.slice * kSlabRows + place % kSlabRows;
      if (token < item.begin || token >= sketches.end) continue;
      atomicAdd(&shared.histogram[sampling::InclusionBin(sums.of[j])], static_cast<unsigned>(slice.stands_for));
    }
  }
  __syncthreads();
  const unsigned* histogram = shared.histogram;
  const double budget = sampling::InclusionBudget(item.sample_count, sketches.end - item.begin);
  const sampling::InclusionThreshold threshold = SolveThreshold(
      shared.solve, [histogram](int bin) { return histogram[bin]; }, budget, sampling::kEvenShare * item.sample_count);
  if (threadIdx.x == 0) *arrays.threshold(kv_head) = threshold;
}

template <int D>
cudaError_t Launch(const GroupLaunch& launch, cudaStream_t stream) {
  const int shared_bytes = sampling::kPilotSlices * SliceGeometry<D>().part_bytes();
  const dim3 grid(launch.decode.num_kv_heads, launch.num_pilots);
  const auto kernel =
      launch.decode.group_size <= kQuad ? PilotThresholdKernel<D, 1> : PilotThresholdKernel<D, kPilotQuads>;
  return LaunchOverlapping(kernel, launch, grid, kThreads, shared_bytes, stream);
}

}  // namespace

cudaError_t LaunchPilotThreshold(const GroupLaunch& launch, cudaStream_t stream) {
  switch (launch.decode.head_dim) {
    case 64:
      return Launch<64>(launch, stream);
    case 128:
      return Launch<128>(launch, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace santa::cuda
