// Each group's kappa from a pilot of its tokens (kernels/sampling/pilot.h), and its heads' log-sum-exps by that pilot.
// Where there is a sketch it gives COORDINATED's pilot its scores too, for a third of the bytes: with sketched scores a
// sum of e^s is a few per cent too large, and so many rows fewer are read.
//
// Grid: (key/value head x blocks of a cluster, item with a pilot). All of it is waiting, for memory and for one step
// after another: where that leaves multiprocessors idle, a cluster of blocks shares a group's pilot. Each warp tells
// all blocks its slices' sums, and from these every block finds by itself what the slices count for and the heads'
// log-sum-exps. The first one counts the squares, which the others leave in its memory, and solves for kappa. How many
// blocks there are changes no bit of it.
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_list.cuh"
#include "kernels/cuda/solve_threshold.cuh"
#include "kernels/cuda/token_squares.cuh"
#include "kernels/sampling/pilot.h"

namespace santa::cuda {
namespace {

constexpr int kPilotHeads = kQuad * kPilotQuads;
constexpr int kPilotBlocks = sampling::kPilotSlices / kBlockSlabs;  // of four slices
static_assert(sampling::kSliceTokens == kSlabRows && kPilotBlocks == 32);

// Who has a group's pilot: a cluster of blocks, or one, on devices that have as much shared memory as it takes for all
// scores (Hopper) or less.
enum class PilotKind { kCluster, kBlock, kSmallBlock };

// How a group's pilot is shared out.
struct PilotShape {
  int blocks, warps;          // of a cluster; of each of its blocks
  int stages;                 // of a warp's ring
  int most_stage_bytes;       // of a stage, which has two slices or one
  bool has_scores_in_shared;  // memory

  SANTA_HOST_DEVICE constexpr int threads() const { return 32 * warps; }
  // Whole blocks of four slices.
  SANTA_HOST_DEVICE constexpr int of_warp() const { return kPilotBlocks / (blocks * warps); }
  SANTA_HOST_DEVICE constexpr int SlicesOfStage(int slab_bytes) const {
    return 2 * slab_bytes <= most_stage_bytes ? 2 : 1;
  }
  SANTA_HOST_DEVICE constexpr int StageBytes(int slab_bytes) const { return SlicesOfStage(slab_bytes) * slab_bytes; }
  SANTA_HOST_DEVICE constexpr int RingBytes(int slab_bytes) const { return warps * stages * StageBytes(slab_bytes); }
  SANTA_HOST_DEVICE constexpr int ScoreBytes(int quads) const {
    return has_scores_in_shared ? warps * of_warp() * quads * 32 * static_cast<int>(sizeof(QuadScores)) : 0;
  }
};
SANTA_HOST_DEVICE constexpr PilotShape ShapeOf(PilotKind kind) {
  return kind == PilotKind::kCluster ? PilotShape{4, 8, 2, 8192, true}
         : kind == PilotKind::kBlock ? PilotShape{1, 16, 2, 5120, true}
                                     : PilotShape{1, 16, 1, 4096, false};
}

// A lane's own scores of its warp's slices, [slice][quad], `step` apart: in shared memory, or else in the lane's own.
// In registers they would have to be found by loops unrolled, whose code takes longer to come than to run.
struct LaneScores {
  float2* const mine;
  const int quads, step;

  __device__ __forceinline__ float2& Of(int slice, int quad) const { return mine[(slice * quads + quad) * step]; }
  // Of a block of slices.
  __device__ __forceinline__ void Load(QuadScores& s, int block, int quad) const {
#pragma unroll
    for (int i = 0; i < kBlockSlabs; ++i) {
      const float2 two = Of(block * kBlockSlabs + i, quad);
      s[i][0] = two.x;
      s[i][1] = two.y;
    }
  }
  __device__ __forceinline__ void Store(const QuadScores& s, int block, int quad) const {
#pragma unroll
    for (int i = 0; i < kBlockSlabs; ++i) Of(block * kBlockSlabs + i, quad) = make_float2(s[i][0], s[i][1]);
  }
};

using PilotCounts = uint32_t[sampling::kCodeBlock];  // of a block
constexpr int kBinBits = 10;                         // of a count, the lowest
static_assert(1 << kBinBits == sampling::kInclusionBins);

// What slices come to: those of block b are b, b + 32, ..., so that the last ones, which may have no sketch, are
// different warps'.
struct PilotShared {
  unsigned histogram[sampling::kInclusionBins];
  sampling::PilotSlice slices[kPilotBlocks][kBlockSlabs];
  float max[kPilotHeads][kPilotBlocks];    // the largest score of a block
  float4 sums[kPilotHeads][kPilotBlocks];  // of its slices, of 2^(score - largest)
  float once[kPilotHeads];                 // log-sum-exps as if no slice were held to kMostOfPilot
  float lse[kPilotHeads];
};

__device__ __forceinline__ float4 Times(const sampling::PilotSlice (&slices)[kBlockSlabs]) {
  return {static_cast<float>(slices[0].stands_for), static_cast<float>(slices[1].stands_for),
          static_cast<float>(slices[2].stands_for), static_cast<float>(slices[3].stands_for)};
}

// Tells every block of the cluster what the warp's slices come to in a quad. s: dot products, as they come; what is
// invisible becomes -inf. Returns the factor from s to scores.
template <bool kClusters>
__device__ __forceinline__ float TellSums(PilotShared& shared, QuadScores& s, const SketchScorer& scorer,
                                          const DeviceItem& item, const int (&tokens)[kBlockSlabs], int block, int quad,
                                          int num_blocks, int lane) {
  const float scale = scorer.Cap(s);
#pragma unroll
  for (int i = 0; i < 2 * kBlockSlabs; ++i) {
    const int token = tokens[i / 2] + i % 2 * 8 + lane / 4;
    if (token < item.begin || token >= item.end) s[i / 2][i % 2] = kNegativeInfinity;
  }
  const float largest = LargestOf(s);
  float sums[kBlockSlabs];
#pragma unroll
  for (int i = 0; i < kBlockSlabs; ++i) sums[i] = Exp2((s[i][0] - largest) * scale) + Exp2((s[i][1] - largest) * scale);
#pragma unroll
  for (int step = 4; step < 32; step *= 2) {
#pragma unroll
    for (int i = 0; i < kBlockSlabs; ++i) sums[i] += __shfl_xor_sync(~0u, sums[i], step);
  }
  const int head = kQuad * quad + lane % 4;
  for (int rank = lane / 4; rank < num_blocks; rank += 8) {
    *Cluster<kClusters>::SharedOf(rank, &shared.sums[head][block]) = {sums[0], sums[1], sums[2], sums[3]};
    *Cluster<kClusters>::SharedOf(rank, &shared.max[head][block]) = fmaxf(largest * scale, -sampling::kMaxScore);
  }
  return scale;
}

// A head's log-sum-exp, of a warp whose lane has the block of the same number; times: how often its slices count.
__device__ __forceinline__ float PilotLse(const PilotShared& shared, int head, const float4& times, int lane) {
  const float4 sums = shared.sums[head][lane];
  const float sum = times.x * sums.x + times.y * sums.y + times.z * sums.z + times.w * sums.w;
  const float2 all = MergeSums(make_float2(shared.max[head][lane], sum));
  return all.x + log2f(all.y);
}

// Holds the slices' stands_for to what they may count for, and finds the heads' log-sum-exps with that. All threads
// call it, after a barrier behind all sums.
template <int kWarps>
__device__ __forceinline__ void FindLse(PilotShared& shared, int group_size) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  sampling::PilotSlice slices[kBlockSlabs];
  if (warp < group_size) {
#pragma unroll
    for (int i = 0; i < kBlockSlabs; ++i) slices[i] = shared.slices[lane][i];
    const float4 stand_for = Times(slices);
    for (int head = warp; head < group_size; head += kWarps) {
      const float lse = PilotLse(shared, head, stand_for, lane);
      if (lane == 0) shared.once[head] = lse;
    }
  }
  __syncthreads();
  if (warp < group_size) {
    float largest[kBlockSlabs] = {};
#pragma unroll 4
    for (int head = 0; head < group_size; ++head) {
      const float4 sums = shared.sums[head][lane];
      const float unit = Exp2(shared.max[head][lane] - shared.once[head]);
      largest[0] = fmaxf(largest[0], sums.x * unit);  // without what is not a number
      largest[1] = fmaxf(largest[1], sums.y * unit);
      largest[2] = fmaxf(largest[2], sums.z * unit);
      largest[3] = fmaxf(largest[3], sums.w * unit);
    }
#pragma unroll
    for (int i = 0; i < kBlockSlabs; ++i) {
      slices[i].stands_for = sampling::PilotTimes(slices[i].stands_for, largest[i]);
      if (warp == 0) shared.slices[lane][i].stands_for = slices[i].stands_for;
    }
    const float4 times = Times(slices);
    for (int head = warp; head < group_size; head += kWarps) {
      const float lse = PilotLse(shared, head, times, lane);
      if (lane == 0) shared.lse[head] = lse;
    }
  }
  __syncthreads();
}

template <typename Slabs, PilotKind kKind>
__device__ __forceinline__ void FindThreshold(const GroupLaunch& group) {
  constexpr bool kClusters = kKind == PilotKind::kCluster;
  constexpr PilotShape kShape = ShapeOf(kKind);
  constexpr int kThreads = kShape.threads(), kSlabBytes = Slabs::SlabBytes();
  constexpr int kAtOnce = kShape.SlicesOfStage(kSlabBytes), kStageBytes = kShape.StageBytes(kSlabBytes);
  constexpr int kSlices = kShape.of_warp() * kBlockSlabs;  // of a warp
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ typename Slabs::Queries queries;
  __shared__ PilotShared shared;
  __shared__ SolveShared<kThreads> solve;
  Cluster<kClusters>::Begin();
  const DecodeLaunch& launch = group.decode;
  const int kv_head = blockIdx.x / kShape.blocks, rank = blockIdx.x % kShape.blocks;
  const int item_index = group.pilots[blockIdx.y], group_size = launch.group_size;
  const DeviceItem& item_there = launch.items[item_index];
  const DeviceItem item = item_there;  // now: behind copies every load would take microseconds
  const Scorer scorer_of_keys(item, kv_head);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const GroupArrays arrays = group.arrays[item_index];
  Slabs slabs(group, item_there, kv_head, queries);
  unsigned char* const ring = bytes + warp * kShape.stages * kStageBytes;
  const int quads = CodesOfToken(group_size) / kQuad;
  float2 own[kShape.has_scores_in_shared ? 1 : kSlices * kPilotQuads];
  auto* const in_shared =
      reinterpret_cast<float2*>(bytes + kShape.RingBytes(kSlabBytes)) + warp * kSlices * quads * 32 + lane;
  const LaneScores scores = kShape.has_scores_in_shared ? LaneScores{in_shared, quads, 32} : LaneScores{own, quads, 1};
  const int first_slice = item.begin / kSlabRows, num_slices = (item.end - 1) / kSlabRows - first_slice + 1;
  for (int i = threadIdx.x; i < sampling::kPilotSlices; i += kThreads) {
    shared.slices[i / kBlockSlabs][i % kBlockSlabs] =
        sampling::MakePilotSlice(first_slice, num_slices, i % kBlockSlabs * kPilotBlocks + i / kBlockSlabs);
  }
  for (int i = threadIdx.x; i < sampling::kInclusionBins; i += kThreads) shared.histogram[i] = 0;
  // Of heads that there are not.
  if (threadIdx.x >= group_size && threadIdx.x < kPilotHeads) shared.lse[threadIdx.x] = INFINITY;
  __syncthreads();
  // A lane knows one of its warp's slices and the page of that, so that no copy waits for the one before it.
  const int first_block = (rank * kShape.warps + warp) * kShape.of_warp();
  static_assert(kSlices <= 32);
  const int my_token =
      shared.slices[first_block + lane / kBlockSlabs % kShape.of_warp()][lane % kBlockSlabs].slice * kSlabRows;
  const int32_t my_page = slabs.PageOf(my_token);
  WaitForEarlierKernel();
  // Not sooner: the kernel that follows reads the cache before it waits for this one, and relies on what came before.
  LetLaterKernelStart();
  const auto copy = [&](int first) {
    if (first < kSlices) {
      const uint32_t to = SharedAddress(ring) + first / kAtOnce % kShape.stages * kStageBytes;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int token = __shfl_sync(~0u, my_token, first + i), page = __shfl_sync(~0u, my_page, first + i);
        slabs.Copy(to + i * kSlabBytes, page, token, lane);
      }
    }
    CommitCopies();
  };
  slabs.AskForQueries(lane);
#pragma unroll 1
  for (int i = 0; i < kShape.stages; ++i) copy(i * kAtOnce);
  const SketchScorer scorer(scorer_of_keys, slabs.TakeQueries(scorer_of_keys.scale));
  __syncthreads();

#pragma unroll 1
  for (int first = 0; first < kSlices; first += kAtOnce) {
    int tokens[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) tokens[i] = __shfl_sync(~0u, my_token, first + i);
    WaitCopies<kShape.stages - 1>();
    const unsigned char* stage = ring + first / kAtOnce % kShape.stages * kStageBytes;
    const auto score = [&](int quad) {
      float s[kAtOnce][2] = {};
      slabs.template Score<kAtOnce>(s, stage, quad, tokens, lane);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) scores.Of(first + i, quad) = make_float2(s[i][0], s[i][1]);
    };
    if constexpr (Slabs::kQueriesInRegisters) {
#pragma unroll
      for (int quad = 0; quad < kPilotQuads; ++quad) {
        if (quad < quads) score(quad);
      }
    } else {
#pragma unroll 1
      for (int quad = 0; quad < quads; ++quad) score(quad);
    }
    __syncwarp();  // the slabs have been read
    copy(first + kShape.stages * kAtOnce);
  }
  WaitCopies<0>();
  float scale = 1;             // the same for all
  Cluster<kClusters>::Wait();  // all blocks have begun
#pragma unroll 1
  for (int i = 0; i < kShape.of_warp(); ++i) {
    int tokens[kBlockSlabs];
#pragma unroll
    for (int j = 0; j < kBlockSlabs; ++j) tokens[j] = __shfl_sync(~0u, my_token, i * kBlockSlabs + j);
#pragma unroll 1
    for (int quad = 0; quad < quads; ++quad) {
      QuadScores s;
      scores.Load(s, i, quad);
      scale = TellSums<kClusters>(shared, s, scorer, item, tokens, first_block + i, quad, kShape.blocks, lane);
      scores.Store(s, i, quad);
    }
  }
  Cluster<kClusters>::Arrive();
  Cluster<kClusters>::Wait();
  FindLse<kShape.warps>(shared, group_size);
  // The end of what may be left to chance.
  const bool sketched = group.method == Method::kSketched;
  const int end = sketched ? FullPagesEnd(item, launch.page_shift) : item.end;
  // Of every token of the pilot: its bin, and how often it counts; in the first block.
  auto* counts = Cluster<kClusters>::SharedOf(
      0, reinterpret_cast<PilotCounts*>(bytes + kShape.RingBytes(kSlabBytes) + kShape.ScoreBytes(quads)));
#pragma unroll 1
  for (int i = 0; i < kShape.of_warp(); ++i) {
    TokenSquares squares = {};
#pragma unroll 1
    for (int quad = 0; quad < quads; ++quad) {
      QuadScores s;
      scores.Load(s, i, quad);
      AddSquares(squares, s, scale, 2 * shared.lse[kQuad * quad + lane % 4]);
    }
    const LaneSquares sums = SumOverHeads(squares, lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int place = TokenOfSquare(j, lane);
      const sampling::PilotSlice slice = shared.slices[first_block + i][place / kSlabRows];
      const int token = slice.slice * kSlabRows + place % kSlabRows;
      const bool counted = token >= item.begin && token < end && (sketched || sums.of[j] > 0);
      counts[first_block + i][place] = counted ? sampling::InclusionBin(sums.of[j]) | slice.stands_for << kBinBits : 0;
    }
  }
  Cluster<kClusters>::Arrive();
  if (rank != 0) return;
  Cluster<kClusters>::Wait();
  for (int i = threadIdx.x; i < kPilotBlocks * sampling::kCodeBlock; i += kThreads) {
    const uint32_t count = (&counts[0][0])[i];
    if (count != 0) atomicAdd(&shared.histogram[count & ((1 << kBinBits) - 1)], count >> kBinBits);
  }
  if (threadIdx.x < group_size) arrays.lse(kv_head)[threadIdx.x] = shared.lse[threadIdx.x];
  __syncthreads();
  const unsigned* histogram = shared.histogram;
  const double even = sketched ? sampling::kEvenShare * item.sample_count : 0;
  const sampling::InclusionThreshold threshold = SolveThreshold(
      solve, [histogram](int bin) { return histogram[bin]; },
      sampling::InclusionBudget(item.sample_count, end - item.begin), even);
  if (threadIdx.x == 0) *arrays.threshold(kv_head) = threshold;
}

// No more registers than leave room for a block of kernels/cuda/one_pass.cu beside, which scores meanwhile.
template <typename Slabs, PilotKind kKind>
__global__ void __launch_bounds__(ShapeOf(kKind).threads() + kGatherThreads)
    PilotThresholdKernel(const __grid_constant__ GroupLaunch group) {
  if constexpr (kHasClusters || kKind != PilotKind::kCluster) FindThreshold<Slabs, kKind>(group);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D>
  cudaError_t Run() const {
    if (launch.sketch == Sketch::kNone) return Start<KeySlabs<Kv, D>>();
    // One kernel for all types of cache.
    return launch.sketch == Sketch::kK8V8 ? Start<SketchSlabs<D, 8>>() : Start<SketchSlabs<D, kKeyBits>>();
  }

 private:
  template <typename Slabs>
  cudaError_t Start() const {
    static const DeviceLimits limits = DeviceLimits::Read();
    const int blocks = ShapeOf(PilotKind::kCluster).blocks * launch.decode.num_kv_heads * launch.num_pilots;
    if (limits.has_clusters && blocks <= 2 * limits.multiprocessors) {  // which run at once
      return StartAs<Slabs, PilotKind::kCluster>();
    }
    constexpr int kThreads = ShapeOf(PilotKind::kBlock).threads();
    constexpr int kStatic = sizeof(typename Slabs::Queries) + sizeof(PilotShared) + sizeof(SolveShared<kThreads>);
    const int most_bytes = limits.shared_bytes - limits.reserved_bytes - kStatic - 1024;
    return SharedBytes<Slabs>(PilotKind::kBlock) <= most_bytes ? StartAs<Slabs, PilotKind::kBlock>()
                                                               : StartAs<Slabs, PilotKind::kSmallBlock>();
  }

  template <typename Slabs>
  int SharedBytes(PilotKind kind) const {
    const int quads = CodesOfToken(launch.decode.group_size) / kQuad;
    return ShapeOf(kind).RingBytes(Slabs::SlabBytes()) + ShapeOf(kind).ScoreBytes(quads) +
           kPilotBlocks * static_cast<int>(sizeof(PilotCounts));
  }
  template <typename Slabs, PilotKind kKind>
  cudaError_t StartAs() const {
    constexpr PilotShape shape = ShapeOf(kKind);
    const dim3 grid(shape.blocks * launch.decode.num_kv_heads, launch.num_pilots);
    return LaunchOverlapping(PilotThresholdKernel<Slabs, kKind>, launch, grid, shape.threads(),
                             SharedBytes<Slabs>(kKind), stream, shape.blocks);
  }
};

}  // namespace

cudaError_t LaunchPilotThreshold(const GroupLaunch& launch, cudaStream_t stream) {
  return DispatchPilot(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
