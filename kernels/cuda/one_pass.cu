// COORDINATED and SKETCHED in one pass over K or its sketch, by a threshold of kernels/cuda/pilot_threshold.cu: what a
// block scores it draws, gathers and sums up before it ends. Where shared memory has room for a split's dot products
// they are kept, so that only the draw waits for the pilot, and COORDINATED has its rows' weights from them; else keys
// are read again, as SKETCHED reads them. Where that has many splits, kernels/cuda/warp_pass.cu takes them.
//
// Grid: (key/value head, work, of which some may be empty). A block takes one split, with a draw of its own. Each warp
// scores every fourth block of 64 tokens, which asynchronous copies bring into a ring of its own, and leaves
// inclusions; then the rows are listed, and summed up where the ring was. The block that is its group's last adds the
// splits up.
#include "kernels/cuda/four_sums.cuh"
#include "kernels/cuda/group_gather.cuh"
#include "kernels/cuda/row_sums.cuh"
#include "kernels/cuda/token_squares.cuh"
#include "kernels/sampling/pilot.h"

namespace santa::cuda {
namespace {

// What is in shared memory: first the rings, then the list, then stages of rows, and for the answer a group's sums;
// after that the inclusions, then the list; after that the dot products that are kept.
template <int D>
__host__ __device__ int VectorBytes(const GroupLaunch& group) {
  return kPartialVectors * group.decode.group_size * D * static_cast<int>(sizeof(float));
}
template <typename Blocks, typename Kv, int D>
__host__ __device__ int RingBytes(const GroupLaunch& group) {
  int most = kGatherWarps * Blocks::RingBytes(group);
  const int others[] = {RowBytes<Kv, D>(Blocks::RowStages(group), !Blocks::kOfAllTokens || !group.keeps_dots),
                        group.longest_split * static_cast<int>(sizeof(uint32_t)),
                        VectorBytes<D>(group) + static_cast<int>(sizeof(FourShared))};
  for (const int other : others) most = other > most ? other : most;
  return most;
}

// Lists the rows that are read of a run of run_tokens, and returns how many: what its line says, which begins at
// `offset`, and all tokens without a sketch. inclusion: of the tokens from the split's origin on, 0 of invisible ones,
// to be seen by all threads. list: to be seen by all after a barrier. All threads call it.
__device__ __forceinline__ int ListRun(const BlockTask& task, int run_tokens, uint32_t offset,
                                       const uint32_t* inclusion, uint32_t* list,
                                       unsigned long long (&warp_sum)[kGatherWarps]) {
  const int of_thread = run_tokens / kGatherThreads, from = of_thread * threadIdx.x;
  const int sketched_end = task.full_end - task.splits.origin, end = task.splits.end - task.splits.origin;
  const auto each = [&](const auto& visit) {
#pragma unroll 1
    for (int place = from; place < min(from + of_thread, sketched_end); place += kRunTokens) {
      const uint4 four = *reinterpret_cast<const uint4*>(inclusion + place);
      visit(place, four.x);
      visit(place + 1, place + 1 < sketched_end ? four.y : 0);
      visit(place + 2, place + 2 < sketched_end ? four.z : 0);
      visit(place + 3, place + 3 < sketched_end ? four.w : 0);
    }
  };
  unsigned mine = 0;  // of 32 tokens at most
  each([&](int, uint32_t of_token) { mine += of_token; });
  unsigned long long total;
  const unsigned long long before = SumBefore(mine, warp_sum, &total) + offset;
  constexpr uint32_t kPart = sampling::kCertain - 1;
  uint32_t part = static_cast<uint32_t>(before) & kPart;
  uint32_t* to = list + (before >> sampling::kInclusionBits);
  each([&](int place, uint32_t of_token) {
    part += of_token;
    if (part <= kPart) return;
    *to++ = Entry(place, of_token);
    part &= kPart;
  });
  const int drawn = static_cast<int>((total + offset) >> sampling::kInclusionBits);
  const int unsketched = max(task.splits.begin - task.splits.origin, sketched_end);
  for (int place = unsketched + threadIdx.x; place < end; place += kGatherThreads) {
    list[drawn + place - unsketched] = Entry(place, sampling::kCertain);
  }
  return drawn + max(0, end - unsketched);
}

// Goes through a warp's share of a split's tokens, every fourth block of 64, and leaves their inclusions, and of
// COORDINATED sums. Where dot products are kept, none waits for the pilot before all are there.
template <typename Blocks>
class SplitScores {
 public:
  static constexpr int kQuads = Blocks::kQuads;

  __device__ SplitScores(const BlockTask& task, AnswerShared<1>& shared, const SketchScorer& scorer, int first,
                         uint32_t* inclusion, float* kept)
      : task_(task),
        shared_(shared),
        scorer_(scorer),
        first_(first),
        begin_(task.splits.begin),
        end_(task.full_end),
        quads_(task.quads()),
        inclusion_(inclusion),
        kept_(kept) {}

  // kCommon: as Blocks::Next has it. All threads call it, each with its warp's blocks.
  template <bool kCommon>
  __device__ __forceinline__ void Run(Blocks& blocks, int lane) {
    if (kept_ == nullptr) {
      WaitForPilot(lane);
#pragma unroll 1
      for (int at = first_; at < end_; at += kStep) {
        QuadScores s[kQuads] = {};
        TokenSquares squares = {};
        blocks.template Next<kCommon>(s, at, lane);
        EachQuad<kCommon>([&](int quad) {
          const float scale = ScaleQuad(s[quad], scorer_, begin_, end_, at, lane);
          Sum(quad, s[quad], scale);
          AddSquares(squares, s[quad], scale, twice_lse_[quad]);
        });
        LeaveInclusions(squares, at, lane);
      }
      return;
    }
#pragma unroll 1
    for (int at = first_; at < end_; at += kStep) {
      QuadScores s[kQuads] = {};
      blocks.template Next<kCommon>(s, at, lane);
      EachQuad<kCommon>([&](int quad) {
#pragma unroll
        for (int i = 0; i < 2 * kBlockSlabs; ++i) Kept(at, quad, i, lane) = s[quad][i / 2][i % 2];
        if constexpr (Blocks::kOfAllTokens) Sum(quad, s[quad], ScaleQuad(s[quad], scorer_, begin_, end_, at, lane));
      });
    }
    WaitForPilot(lane);
#pragma unroll 1
    for (int at = first_; at < end_; at += kStep) {
      TokenSquares squares = {};
      EachQuad<kCommon>([&](int quad) {
        QuadScores s;
#pragma unroll
        for (int i = 0; i < 2 * kBlockSlabs; ++i) s[i / 2][i % 2] = Kept(at, quad, i, lane);
        const float scale = ScaleQuad(s, scorer_, begin_, end_, at, lane);
        AddSquares(squares, s, scale, twice_lse_[quad]);
      });
      LeaveInclusions(squares, at, lane);
    }
  }

  __device__ __forceinline__ const LaneSum& sum(int quad) const { return sums_[quad]; }

 private:
  static constexpr int kStep = kGatherWarps * sampling::kCodeBlock;

  template <bool kCommon, typename Body>
  __device__ __forceinline__ void EachQuad(const Body& body) const {
#pragma unroll
    for (int quad = 0; quad < (kCommon ? 1 : kQuads); ++quad) {
      if (quad < quads_) body(quad);
    }
  }

  __device__ __forceinline__ void WaitForPilot(int lane) {
    WaitForEarlierKernel();
    LetLaterKernelStart();
    const int group_size = task_.group_size();
    if (threadIdx.x < shared_.kHeads) {
      shared_.lse[threadIdx.x] = threadIdx.x < group_size ? task_.arrays.lse(task_.kv_head)[threadIdx.x] : 0.0f;
    }
    __syncthreads();
    threshold_ = *task_.arrays.threshold(task_.kv_head);
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const int head = kQuad * quad + lane % 4;
      twice_lse_[quad] = head < group_size ? 2 * shared_.lse[head] : INFINITY;
    }
  }

  // A lane's own i-th of a block.
  __device__ __forceinline__ float& Kept(int at, int quad, int i, int lane) const {
    const int place = at - task_.splits.origin + 8 * i + lane / 4;
    return kept_[(place * quads_ + quad) * kQuad + lane % 4];
  }

  __device__ __forceinline__ void Sum(int quad, const QuadScores& s, float scale) {
    if constexpr (Blocks::kOfAllTokens) AddScores(sums_[quad], s, scale, [](int) { return 1.0f; });
  }

  __device__ __forceinline__ void LeaveInclusions(const TokenSquares& squares, int at, int lane) const {
    const LaneSquares mine = SumOverHeads(squares, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = at + TokenOfSquare(i, lane);
      const uint32_t has_chance = token >= begin_ && token < end_ ? ~0u : 0;  // a mask, not a branch
      inclusion_[token - task_.splits.origin] = sampling::Inclusion(threshold_, mine.of[i]) & has_chance;
    }
  }

  const BlockTask& task_;
  AnswerShared<1>& shared_;
  const SketchScorer scorer_;
  const int first_, begin_, end_, quads_;
  uint32_t* const inclusion_;  // [place]
  float* const kept_;          // [place][quad][head], or null
  sampling::InclusionThreshold threshold_;
  float twice_lse_[kQuads];
  LaneSum sums_[kQuads];  // of COORDINATED, which divides by that of all tokens
};

template <typename Blocks, typename Kv, int D>
__global__ void __launch_bounds__(kGatherThreads, Blocks::kAtOnce)
    OnePassKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ AnswerShared<1> shared;
  __shared__ typename Blocks::Queries queries;
  __shared__ float2 warp_sums[kQuad * Blocks::kQuads][kGatherWarps];
  auto* inclusion = reinterpret_cast<uint32_t*>(bytes + RingBytes<Blocks, Kv, D>(group));
  const DecodeLaunch& launch = group.decode;
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, group_size = launch.group_size;
  if (launch.work[blockIdx.y].begin == launch.work[blockIdx.y].end) return WaitForEarlierKernel();
  const GatherTask<Kv, D> task(group, kv_head);
  const DeviceItem& item = task.item;
  const int begin = task.splits.begin, first = task.splits.origin + warp * sampling::kCodeBlock;
  auto* const kept = group.keeps_dots ? reinterpret_cast<float*>(inclusion + group.longest_split) : nullptr;
  const Scorer scorer_of_keys(item, kv_head);  // before the copies, behind which loads would wait
  // Copies before the pilot's end: that began when what wrote the cache had ended.
  Blocks blocks(group, item, kv_head, begin, first, task.full_end, kGatherWarps * sampling::kCodeBlock,
                bytes + warp * Blocks::RingBytes(group), queries, lane);
  blocks.Begin(lane);
  LoadPages(task, shared);
  const SketchScorer scorer(scorer_of_keys, blocks.LoadQueries(scorer_of_keys.scale, lane));
  __syncthreads();
  SplitScores<Blocks> scores(task, shared, scorer, first, inclusion, kept);
  if (Blocks::kHasCommon && launch.page_shift >= 6 && group_size <= kQuad) {
    scores.template Run<Blocks::kHasCommon>(blocks, lane);
  } else {
    scores.template Run<false>(blocks, lane);
  }
  WaitCopies<0>();
  if constexpr (Blocks::kOfAllTokens) {
#pragma unroll
    for (int quad = 0; quad < Blocks::kQuads; ++quad) {
      LeaveSums(warp_sums + kQuad * quad, scores.sum(quad), warp, lane);
    }
  }
  __syncthreads();
  if constexpr (Blocks::kOfAllTokens) {
    for (int head = warp; head < group_size; head += kGatherWarps) {
      const float2 sum = MergeSums(lane < kGatherWarps ? warp_sums[head][lane] : make_float2(kNegativeInfinity, 0));
      if (lane == 0) task.arrays.split_sums(kv_head)[task.first_split * group_size + head] = sum;
    }
  }
  auto* list = reinterpret_cast<uint32_t*>(bytes);  // for a while
  const int run_tokens = sampling::PilotRunTokens(item.end - item.begin);
  const uint32_t offset = sampling::RunOffset(task.stream(), begin / run_tokens);
  const int count = ListRun(task, run_tokens, offset, inclusion, list, shared.warp_sum);
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kGatherThreads) inclusion[i] = list[i];
  __syncthreads();
  SumRowsOfSplit<Blocks::kOfAllTokens>(task, shared, inclusion, count, Blocks::kOfAllTokens ? kept : nullptr, bytes,
                                       Blocks::RowStages(group));
  if (!CountIn(task, shared, count)) return;
  if constexpr (Blocks::kOfAllTokens) {  // the pilot's lse was about right
    for (int head = warp; head < group_size; head += kGatherWarps) {
      const float lse = HeadLse(task.arrays, kv_head, head, group_size, lane);
      if (lane == 0) shared.lse[head] = lse;
    }
  }
  auto* const vectors = reinterpret_cast<float*>(bytes);
  auto& fours = *reinterpret_cast<FourShared*>(bytes + VectorBytes<D>(group));
  AddFours<D, false>(task.arrays, kv_head, group_size, shared, fours, vectors, task.wants_error());
  const FourErrors<D> errors{shared, vectors, group_size, task.sketched()};
  Answer<D, 1>(task, shared, vectors, errors, ~0u, 0);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D>
  cudaError_t Run() const {
    if (launch.method == Method::kCoordinated) {
      return launch.decode.group_size <= kQuad ? Start<KeyBlocks<Kv, D, 1>, Kv, D>()
                                               : Start<KeyBlocks<Kv, D, kPilotQuads>, Kv, D>();
    }
    return Start<SketchBlocks<D>, Kv, D>();
  }

 private:
  template <typename Blocks, typename Kv, int D>
  cudaError_t Start() const {
    static const DeviceLimits limits = DeviceLimits::Read();
    constexpr int kStatic = static_cast<int>(sizeof(AnswerShared<1>) + sizeof(typename Blocks::Queries));
    const int dot_bytes = CodesOfToken(launch.decode.group_size) * static_cast<int>(sizeof(float));
    const auto shared_bytes = [dot_bytes](const GroupLaunch& with) {
      const int of_token = static_cast<int>(sizeof(uint32_t)) + (with.keeps_dots ? dot_bytes : 0);
      return RingBytes<Blocks, Kv, D>(with) + with.longest_split * of_token;
    };
    // Whether so many blocks of it fit a multiprocessor.
    const auto fits = [&](const GroupLaunch& with, int blocks) {
      return shared_bytes(with) <= limits.shared_bytes / blocks - limits.reserved_bytes - kStatic - 1024;
    };
    GroupLaunch mine = launch;
    mine.few_blocks = true;
    mine.few_blocks =
        launch.decode.num_kv_heads * launch.decode.num_work <= 2 * limits.multiprocessors && fits(mine, 2);
    // COORDINATED spares its rows' keys with that, and the room for them.
    GroupLaunch keeping = mine;
    keeping.keeps_dots = true;
    mine.keeps_dots = Blocks::kOfAllTokens
                          ? fits(keeping, Blocks::kAtOnce) || shared_bytes(keeping) <= shared_bytes(mine)
                          : mine.few_blocks && fits(keeping, 2);
    return LaunchGroup(OnePassKernel<Blocks, Kv, D>, mine, kGatherThreads, shared_bytes(mine), stream);
  }
};

}  // namespace

cudaError_t LaunchOnePass(const GroupLaunch& launch, cudaStream_t stream) {
  return DispatchPilot(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
