// Each group's kappa from a pilot of its tokens (kernels/sampling/pilot.h), and its heads' log-sum-exps by that pilot.
//
// Grid: (key/value head, item with a pilot). A warp takes eight slices, as two blocks of four slabs, and keeps their
// scores; what they come from is on its way for as many as there is room for.
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/solve_threshold.cuh"
#include "kernels/cuda/token_squares.cuh"
#include "kernels/sampling/pilot.h"

namespace santa::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kOfWarp = sampling::kPilotSlices / kWarps;
constexpr int kBlocksOfWarp = kOfWarp / kBlockSlabs;
static_assert(sampling::kSliceTokens == kSlabRows);

// Slices of a warp that are on their way at once, of so many bytes; only one where a block has not that much memory.
__host__ __device__ constexpr int SlicesAhead(int slab_bytes) {
  return slab_bytes * kOfWarp <= 12288 ? kOfWarp : 12288 / slab_bytes;
}

struct Shared {
  static constexpr int kHeads = kQuad * kPilotQuads;
  unsigned histogram[sampling::kInclusionBins];
  sampling::PilotSlice slices[sampling::kPilotSlices];
  float2 sums[kHeads][kWarps];
  float lse[kHeads];
  SolveShared<kThreads> solve;
};

// A lane's scores of its warp's slices.
using PilotScores = QuadScores[kBlocksOfWarp][kPilotQuads];

// Brings dot products to scores but for the factor that it returns, and what is invisible to -inf.
__device__ __forceinline__ float Finish(PilotScores& s, const SketchScorer& scorer, const DeviceItem& item,
                                        const sampling::PilotSlice* slices, int group_size, int lane) {
  float scale = 1;  // the same for all
#pragma unroll
  for (int i = 0; i < kBlocksOfWarp; ++i) {
#pragma unroll
    for (int quad = 0; quad < kPilotQuads; ++quad) {
      if (kQuad * quad >= group_size) break;
      scale = scorer.Cap(s[i][quad]);
#pragma unroll
      for (int j = 0; j < 2 * kBlockSlabs; ++j) {
        const int token = slices[i * kBlockSlabs + j / 2].slice * kSlabRows + j % 2 * 8 + lane / 4;
        if (token < item.begin || token >= item.end) s[i][quad][j / 2][j % 2] = kNegativeInfinity;
      }
    }
  }
  return scale;
}

// The heads' log-sum-exps by the pilot, to shared.lse; of heads that there are not infinity. All threads call it.
__device__ __forceinline__ void FindLse(Shared& shared, const PilotScores& s, float scale,
                                        const sampling::PilotSlice* slices, int group_size) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int quad = 0; quad < kPilotQuads; ++quad) {
    if (kQuad * quad >= group_size) break;
    LaneSum sums;
#pragma unroll
    for (int i = 0; i < kBlocksOfWarp; ++i) {
      const sampling::PilotSlice* of_slabs = slices + i * kBlockSlabs;
      AddScores(sums, s[i][quad], scale,
                [of_slabs](int slab) { return static_cast<float>(of_slabs[slab].stands_for); });
    }
    LeaveSums(shared.sums + kQuad * quad, sums, warp, lane);
  }
  __syncthreads();
  for (int head = warp; head < Shared::kHeads; head += kWarps) {
    const float2 sum = MergeSums(lane < kWarps ? shared.sums[head][lane] : make_float2(kNegativeInfinity, 0));
    if (lane == 0) shared.lse[head] = head < group_size ? sum.x + log2f(sum.y) : INFINITY;
  }
  __syncthreads();
}

// Of each of the warp's slices, how often it counts in the end: in stands_for.
__device__ __forceinline__ void LimitTimes(const PilotScores& s, float scale, sampling::PilotSlice* slices,
                                           const float* lse, int group_size) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    float largest = 0;
#pragma unroll
    for (int quad = 0; quad < kPilotQuads; ++quad) {
      if (kQuad * quad >= group_size) break;
      const float(&of_slab)[2] = s[i / kBlockSlabs][quad][i % kBlockSlabs];
      const float of_head = lse[kQuad * quad + lane % 4];
      float share = Exp2(fmaf(of_slab[0], scale, -of_head)) + Exp2(fmaf(of_slab[1], scale, -of_head));
#pragma unroll
      for (int step = 4; step < 32; step *= 2) share += __shfl_xor_sync(~0u, share, step);
      largest = fmaxf(largest, share);  // without what is not a number
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    if (lane == 0) slices[i].stands_for = sampling::PilotTimes(slices[i].stands_for, largest);
  }
  __syncwarp();
}

template <typename Slabs>
__global__ void __launch_bounds__(kThreads) PilotThresholdKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  const DecodeLaunch& launch = group.decode;
  __shared__ typename Slabs::Queries queries;
  __shared__ Shared shared;
  constexpr int kSlabBytes = Slabs::SlabBytes(), kAhead = SlicesAhead(kSlabBytes);
  const int item_index = group.pilots[blockIdx.y], kv_head = blockIdx.x, group_size = launch.group_size;
  const DeviceItem& item = launch.items[item_index];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const GroupArrays arrays = group.arrays[item_index];
  Slabs slabs(launch, item, kv_head, queries);
  const unsigned char* ring = bytes + warp * group.slices_ahead * kSlabBytes;
  sampling::PilotSlice* slices = shared.slices + warp * kOfWarp;
  if (threadIdx.x < sampling::kPilotSlices) {
    const int first = item.begin / kSlabRows, count = (item.end - 1) / kSlabRows - first + 1;
    shared.slices[threadIdx.x] = sampling::MakePilotSlice(first, count, threadIdx.x);
  }
  for (int i = threadIdx.x; i < sampling::kInclusionBins; i += kThreads) shared.histogram[i] = 0;
  __syncthreads();
  WaitForEarlierKernel();
  // Not sooner: the kernel that follows reads the cache before it waits for this one, and relies on what came before.
  LetLaterKernelStart();
  const bool one_ahead = group.slices_ahead == 1;
  const auto slab_at = [=](int i) { return one_ahead ? 0 : i % kAhead * kSlabBytes; };
  const auto copy = [&](int i) {
    if (i < kOfWarp) slabs.Copy(SharedAddress(ring) + slab_at(i), slices[i].slice * kSlabRows, lane);
    CommitCopies();
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i == 0 || !one_ahead) copy(i);
  }
  const SketchScorer scorer(item, kv_head, slabs.LoadQueries(lane));
  __syncthreads();

  PilotScores s = {};
#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    if (one_ahead) {
      WaitCopies<0>();
    } else {
      WaitCopies<kAhead - 1>();
    }
    __syncwarp();
#pragma unroll
    for (int quad = 0; quad < kPilotQuads; ++quad) {
      if (kQuad * quad >= group_size) break;
      slabs.Score(s[i / kBlockSlabs][quad][i % kBlockSlabs], ring + slab_at(i), quad, slices[i].slice * kSlabRows,
                  lane);
    }
    __syncwarp();  // the slab has been read
    copy(i + (one_ahead ? 1 : kAhead));
  }
  WaitCopies<0>();
  const float scale = Finish(s, scorer, item, slices, group_size, lane);
  FindLse(shared, s, scale, slices, group_size);
  LimitTimes(s, scale, slices, shared.lse, group_size);
  __syncthreads();  // lse has been read
  FindLse(shared, s, scale, slices, group_size);
  if (threadIdx.x < group_size) arrays.lse(kv_head)[threadIdx.x] = shared.lse[threadIdx.x];
  // The end of what may be left to chance.
  const bool sketched = group.method == Method::kSketched;
  const int end = sketched ? FullPagesEnd(item, launch.page_shift) : item.end;
#pragma unroll
  for (int i = 0; i < kBlocksOfWarp; ++i) {
    TokenSquares squares = {};
#pragma unroll
    for (int quad = 0; quad < kPilotQuads; ++quad) {
      if (kQuad * quad >= group_size) break;
      AddSquares(squares, s[i][quad], scale, 2 * shared.lse[kQuad * quad + lane % 4]);
    }
    const LaneSquares sums = SumOverHeads(squares, lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int place = TokenOfSquare(j, lane);
      const sampling::PilotSlice slice = slices[i * kBlockSlabs + place / kSlabRows];
      const int token = slice.slice * kSlabRows + place % kSlabRows;
      if (token < item.begin || token >= end || (!sketched && sums.of[j] == 0)) continue;
      atomicAdd(&shared.histogram[sampling::InclusionBin(sums.of[j])], static_cast<unsigned>(slice.stands_for));
    }
  }
  __syncthreads();
  const unsigned* histogram = shared.histogram;
  const double even = sketched ? sampling::kEvenShare * item.sample_count : 0;
  const sampling::InclusionThreshold threshold = SolveThreshold(
      shared.solve, [histogram](int bin) { return histogram[bin]; },
      sampling::InclusionBudget(item.sample_count, end - item.begin), even);
  if (threadIdx.x == 0) *arrays.threshold(kv_head) = threshold;
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D>
  cudaError_t Run() const {
    if (launch.method == Method::kCoordinated) return Start<KeySlabs<Kv, D>>();
    return Start<SketchSlabs<D>>();  // one kernel for all types of cache
  }

 private:
  template <typename Slabs>
  cudaError_t Start() const {
    static const DeviceLimits limits = DeviceLimits::Read();
    constexpr int kSlabBytes = Slabs::SlabBytes(), kAhead = SlicesAhead(kSlabBytes);
    constexpr int kStatic = static_cast<int>(sizeof(Shared) + sizeof(typename Slabs::Queries));
    const dim3 grid(launch.decode.num_kv_heads, launch.num_pilots);
    GroupLaunch mine = launch;
    mine.slices_ahead =
        kStatic + kWarps * kAhead * kSlabBytes <= limits.shared_bytes - limits.reserved_bytes ? kAhead : 1;
    return LaunchOverlapping(PilotThresholdKernel<Slabs>, mine, grid, kThreads, kWarps * mine.slices_ahead * kSlabBytes,
                             stream);
  }
};

}  // namespace

cudaError_t LaunchPilotThreshold(const GroupLaunch& launch, cudaStream_t stream) {
  return DispatchPilot(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
