// SKETCHED in one pass as kernels/cuda/one_pass.cu has it, for calls of many splits: a warp takes a whole split, from
// its sketch to its partial result, and waits for no other. Answers are the same bit for bit.
//
// Everything that a warp reads goes through one ring of asynchronous copies: the sketch of block after block, and among
// them, as soon as a slab of 16 rows is drawn, its keys and its values. When they come to be weighed and added they are
// there, and the stream has not stopped.
//
// Grid: (key/value head, fours of units). The block that is its group's last adds the splits up.
#include "kernels/cuda/group_gather.cuh"
#include "kernels/cuda/row_sums.cuh"
#include "kernels/cuda/token_squares.cuh"
#include "kernels/sampling/pilot.h"

namespace santa::cuda {
namespace {

inline constexpr int kBlocksAtOnce = 3;                                     // of a multiprocessor
inline constexpr int kStages = 3;                                           // of a warp's ring
inline constexpr int kListed = 256;                                         // rows listed and not added yet, at most:
static_assert((kStages + 1) * sampling::kCodeBlock <= kListed);             // of blocks on their way, and a slab
inline constexpr int kSplitPages = kMaxBlockTokens / sampling::kCodeBlock;  // which are no shorter than a block

// A warp's own shared memory beside its ring.
struct WarpShared {
  uint32_t list[kListed];                               // row i of the split at i % kListed
  alignas(8) uint32_t inclusion[sampling::kCodeBlock];  // of the block that was scored last
  int32_t page[kSplitPages];                            // of the split's tokens
};

// What the warps of a block have in common: one group's queries.
template <int D>
struct GroupQueries {
  SketchQueries<D, 1> of_sketch;
  uint2 of_rows[D / 16][32];  // [step][lane], of LoadRowQueries
  SketchScorer sketch_scorer;
  Scorer row_scorer;
  bool wants_error;
  sampling::InclusionThreshold threshold;
};

// A split of an item whose pages hold whole blocks, of a group that is one quad.
template <typename Kv, int D>
class WarpSplit {
 public:
  static constexpr int kStageBytes =
      WholeBlock<D>::kBytes > Slab<Kv, D>::kBytes ? WholeBlock<D>::kBytes : Slab<Kv, D>::kBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;

  __device__ WarpSplit(const GatherTask<Kv, D>& task, const WorkUnit& unit, unsigned char* ring, WarpShared& shared,
                       int lane)
      : task_(task),
        sketches_(task.group.decode, task.item, task.kv_head, 0),
        ring_(ring),
        shared_(shared),
        begin_(unit.begin),
        end_(unit.end),
        sketched_end_(min(unit.end, task.full_end)),
        origin_(unit.begin / sampling::kCodeBlock * sampling::kCodeBlock),
        copied_(origin_),
        scored_(origin_),
        certain_(max(unit.begin, sketched_end_)),
        line_(sampling::RunOffset(task.stream(),
                                  unit.begin / sampling::PilotRunTokens(task.item.end - task.item.begin))) {
    const int shift = task.view.page_shift, first = begin_ >> shift, last = end_ - 1 >> shift;
#pragma unroll
    for (int i = 0; i < kSplitPages / 32; ++i) {
      const int page = first + 32 * i + lane;
      pages_[i] = page <= last ? task.item.page_table[page] : 0;
    }
  }

  // Starts the first copies. Whatever else is needed of the device's memory is best asked for before: it would wait
  // behind them.
  __device__ __forceinline__ void Begin(int lane) {
#pragma unroll
    for (int i = 0; i < kSplitPages / 32; ++i) shared_.page[32 * i + lane] = pages_[i];
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) CopyNext(lane);
  }

  // Leaves the split's partial result, and returns how many rows were read. lse: of the group's heads, by the pilot.
  __device__ __forceinline__ int Run(const GroupQueries<D>& queries, const float* lse, float* partial, int lane) {
    const float twice_lse = lane % 4 < task_.group_size() ? 2 * lse[lane % 4] : INFINITY;
    constexpr Share<false> kAll;
    RowSums<Kv, D> sums;
    int added = 0;
#pragma unroll 1
    while (!all_listed() || added < listed_) {
      const uint32_t kind = kinds_ & 3;
      WaitCopies<kStages - 1>();
      if (kind == kBlock) {
        QuadScores s = {};
        WholeBlock<D>::Score(s, queries.of_sketch, ring_ + at_ * kStageBytes, lane);
        const float scale = ScaleQuad(s, queries.sketch_scorer, begin_, sketched_end_, scored_, lane);
        TokenSquares squares = {};
        AddSquares(squares, s, scale, twice_lse);
        List(SumOverHeads(squares, lane), queries.threshold, lane);
        scored_ += sampling::kCodeBlock;
      } else if (kind == kKeys) {  // their values are in the next stage
        QueryFragment<D> q[1];
#pragma unroll
        for (int step = 0; step < D / 16; ++step) q[0].step[step] = queries.of_rows[step][lane];
        const LaneRows rows([&](int row) { return shared_.list[(added + row) % kListed]; }, listed_ - added, lane);
        const auto weights = sums.Weigh(SharedAddress(ring_) + at_ * kStageBytes, q, queries.row_scorer, rows,
                                        queries.wants_error, lane);
        __syncwarp();
        CopyNext(lane);
        WaitCopies<kStages - 1>();
        sums.Add(SharedAddress(ring_) + at_ * kStageBytes, weights, kAll, queries.wants_error, lane);
        added += kSlabRows;
      }
      __syncwarp();  // the stage has been read
      CopyNext(lane);
    }
    WaitCopies<0>();
    sums.Write(partial, 0, kAll, task_.group_size(), queries.wants_error, lane);
    sums.RowTotals::Write(partial + task_.arrays.partial_numbers(), 0, task_.group_size(), lane);
    return listed_;
  }

 private:
  enum Kind : uint32_t { kNothing, kBlock, kKeys, kValues };  // what a stage has: two bits

  __device__ __forceinline__ bool all_listed() const { return scored_ >= sketched_end_ && certain_ >= end_; }
  __device__ __forceinline__ int32_t PageOf(int token) const {
    return shared_.page[(token >> task_.view.page_shift) - (begin_ >> task_.view.page_shift)];
  }

  // Starts the next copy, in the stage that is in front, which then is the last: the values of rows whose keys were the
  // one before, else the keys of a slab that is full, or the split's last, else a block.
  __device__ __forceinline__ void CopyNext(int lane) {
    if (scored_ >= sketched_end_ && certain_ < end_ && listed_ - fetched_ < kSlabRows) ListCertain(lane);
    const uint32_t to = SharedAddress(ring_) + at_ * kStageBytes;
    Kind kind = kNothing;
    if (values_next_) {
      CopyListed(to, task_.view.value_offset, lane);
      fetched_ += kSlabRows;
      values_next_ = false;
      kind = kValues;
    } else if (listed_ - fetched_ >= (all_listed() ? 1 : kSlabRows)) {
      CopyListed(to, 0, lane);
      values_next_ = true;
      kind = kKeys;
    } else if (copied_ < sketched_end_) {
      // A block is part of one page, and so is what of it is visible.
      WholeBlock<D>::Copy(to, sketches_, PageOf(max(copied_, begin_)), copied_, lane);
      copied_ += sampling::kCodeBlock;
      kind = kBlock;
    }
    CommitCopies();
    kinds_ = kinds_ >> 2 | kind << 2 * (kStages - 1);
    at_ = at_ + 1 == kStages ? 0 : at_ + 1;
  }

  // Starts copying the next slab of rows that are listed, `offset` bytes after those of K.
  __device__ __forceinline__ void CopyListed(uint32_t to, size_t offset, int lane) const {
    const int at = min(fetched_ + lane % kSlabRows, listed_ - 1);
    const int token = origin_ + PlaceOf(shared_.list[at % kListed]);
    const auto row = reinterpret_cast<uint64_t>(task_.view.Row(PageOf(token), token));
    CopyRowsOf<Kv, D>(to, row, offset, listed_ - fetched_, lane);
  }

  // Lists tokens without a sketch, which are read always, as many as four slabs have.
  __device__ __forceinline__ void ListCertain(int lane) {
    const int count = min(end_ - certain_, kStageRows);
    for (int i = lane; i < count; i += 32) {
      shared_.list[(listed_ + i) % kListed] = Entry(certain_ + i - origin_, sampling::kCertain);
    }
    listed_ += count;
    certain_ += count;
    __syncwarp();
  }

  // Lists the tokens of the block that are drawn: where the sum of inclusions passes a multiple of kCertain.
  __device__ __forceinline__ void List(const LaneSquares& mine, sampling::InclusionThreshold threshold, int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = TokenOfSquare(i, lane), token = scored_ + at;
      const uint32_t has_chance = token >= begin_ && token < sketched_end_ ? ~0u : 0;  // a mask, not a branch
      shared_.inclusion[at] = sampling::Inclusion(threshold, mine.of[i]) & has_chance;
    }
    __syncwarp();
    const uint2 two = reinterpret_cast<const uint2*>(shared_.inclusion)[lane];
    uint32_t sum = two.x + two.y;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    const uint32_t after = line_ + sum, between = after - two.y, before = between - two.x;
    const auto list = [&](uint32_t from, uint32_t to, int place, uint32_t inclusion) {
      const uint32_t index = from >> sampling::kInclusionBits;
      if (index == to >> sampling::kInclusionBits) return;
      shared_.list[(listed_ + index) % kListed] = Entry(place, inclusion);
    };
    const int place = scored_ - origin_ + 2 * lane;
    list(before, between, place, two.x);
    list(between, after, place + 1, two.y);
    line_ = __shfl_sync(~0u, after, 31);
    listed_ += static_cast<int>(line_ >> sampling::kInclusionBits);
    line_ &= sampling::kCertain - 1;
  }

  const GatherTask<Kv, D>& task_;
  const SketchView<D, kKeyBits> sketches_;
  unsigned char* const ring_;
  WarpShared& shared_;
  const int begin_, end_, sketched_end_, origin_;
  int copied_, scored_, certain_;    // tokens: the next to be copied, to be scored, to be listed without a score
  int listed_ = 0, fetched_ = 0;     // rows
  int32_t pages_[kSplitPages / 32];  // for shared_.page: 32 i + lane
  uint32_t line_;                    // of the split's line since the last multiple of kCertain
  bool values_next_ = false;
  uint32_t kinds_ = 0;  // of the stages, from the front on
  int at_ = 0;          // the stage in front
};

template <typename Kv, int D>
__global__ void __launch_bounds__(kGatherThreads, kBlocksAtOnce)
    WarpPassKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  __shared__ AnswerShared<1> shared;
  __shared__ GroupQueries<D> queries;
  __shared__ WarpShared of_warp[kGatherWarps];
  __shared__ int rows_read;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.x;
  const GatherTask<Kv, D> task(group, kv_head, kUnitsOfBlock, kUnitsOfBlock * blockIdx.y);
  const int count = task.splits.count;
  WarpSplit<Kv, D> split(task, task.splits.work[min(warp, count - 1)], bytes + warp * WarpSplit<Kv, D>::kRingBytes,
                         of_warp[warp], lane);
  // Before the copies, behind which loads would wait; and before the pilot's end, as that began when what wrote queries
  // and cache had ended.
  EarlyQueries<D, 1> early;
  early.Ask(group.decode, task.item, kv_head);
  QueryFragment<D> of_rows[1];
  if (warp == 0) LoadRowQueries<Kv, D>(of_rows, task, 0, lane);
  const Scorer scorer(task.item, kv_head);
  const bool wants_error = task.wants_error();
  // Copies too, where blocks begin before the pilot's end; else the threshold does not wait behind them.
  if (group.few_blocks) split.Begin(lane);
  WaitForEarlierKernel();
  LetLaterKernelStart();
  const sampling::InclusionThreshold threshold = *task.arrays.threshold(kv_head);
  const float lse = lane < task.group_size() ? task.arrays.lse(kv_head)[lane] : 0.0f;
  if (!group.few_blocks) split.Begin(lane);
  const float factor = early.template Fill<kKeyBits>(queries.of_sketch, group.decode, scorer.scale);
  if (threadIdx.x == 0) {
    queries.sketch_scorer = SketchScorer(scorer, factor);
    queries.row_scorer = scorer;
    queries.wants_error = wants_error;
    queries.threshold = threshold;
    rows_read = 0;
  }
  if (warp == 0) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) queries.of_rows[step][lane] = of_rows[0].step[step];
  }
  if (threadIdx.x < shared.kHeads) shared.lse[threadIdx.x] = lse;
  __syncthreads();
  if (warp < count) {
    const int rows = split.Run(queries, shared.lse, task.arrays.partial(kv_head, task.first_split + warp), lane);
    if (lane == 0) atomicAdd(&rows_read, rows);
  }
  WaitCopies<0>();
  __syncthreads();
  bool misses = false;
  AnswerIfLast<D, 1, false>(task, shared, rows_read, bytes, misses);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D>
  cudaError_t Run() const {
    static const DeviceLimits limits = DeviceLimits::Read();
    static_assert(kUnitsOfBlock == kGatherWarps);
    constexpr int kRings = kGatherWarps * WarpSplit<Kv, D>::kRingBytes;
    static_assert(kRings >= kPartialVectors * kQuad * D * static_cast<int>(sizeof(float)));  // for the answer
    const dim3 grid(launch.decode.num_kv_heads, launch.decode.num_work / kUnitsOfBlock);
    GroupLaunch mine = launch;
    mine.splits_of_block = kUnitsOfBlock;
    mine.few_blocks = static_cast<int>(grid.x * grid.y) <= kBlocksAtOnce * limits.multiprocessors;
    return LaunchOverlapping(WarpPassKernel<Kv, D>, mine, grid, kGatherThreads, kRings, stream);
  }
};

}  // namespace

bool SupportsWarpPass(const GroupLaunch& launch) {
  return launch.method == Method::kSketched && launch.decode.group_size <= kQuad && launch.decode.page_shift >= 6;
}

cudaError_t LaunchWarpPass(const GroupLaunch& launch, cudaStream_t stream) {
  return DispatchPilot(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
