// A split of SKETCHED in one pass, from its sketch to its partial result, by a warp that waits for no other: for the
// kernels of kernels/cuda/warp_pass.cuh.
//
// Everything that a warp reads goes through one ring of asynchronous copies: the sketch of block after block, and among
// them, as soon as a slab of 16 rows is drawn, its keys and its values. When they come to be weighed and added they are
// there, and the stream has not stopped.
//
// With a value sketch, a block's keys are followed by its values. A token's e~ is what its sketched score stands for, a
// whole number of units: 2^15 of them for a probability that is read for certain, and hardly more of any, as of a token
// that is read for certain e~ may be anything. So is w~ = e~ / pi, which is taken off e~ of the rows that are drawn:
// one sum over the block's sketched values, with weights e~ or e~ - w~, is what the sketches add.
#ifndef SANTA_KERNELS_CUDA_WARP_SPLIT_CUH_
#define SANTA_KERNELS_CUDA_WARP_SPLIT_CUH_

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/group_gather.cuh"
#include "kernels/cuda/row_corrections.cuh"
#include "kernels/cuda/sketch_values.cuh"
#include "kernels/cuda/token_squares.cuh"
#include "kernels/sampling/pilot.h"

namespace santa::cuda {

inline constexpr int kSplitPages = kMaxBlockTokens / sampling::kCodeBlock;  // which are no shorter than a block
inline constexpr int kUnitOctaves = 15;                                     // of a certain token's e~

// Stages of a warp's ring: what there is room for.
template <int kBits>
inline constexpr int kRingStages = kBits == 4 ? 3 : 2;

// Rows listed and not added yet, at most: of blocks on their way, and a slab.
template <bool kCorrects>
inline constexpr int kListed = kCorrects ? 128 : 256;
static_assert((kRingStages<4> + 1) * sampling::kCodeBlock <= kListed<false>);

// What is needed with a value sketch alone.
template <bool kCorrects>
struct WarpSketches {};
template <>
struct WarpSketches<true> {
  using Weights = uint16_t[kQuad];                                           // e~ of a token's heads
  alignas(8) Weights of_row[kListed<true>], of_token[sampling::kCodeBlock];  // as `list` and `inclusion`
  float squared_rounding[kSplitPages];  // |d|^2 of each block's tokens (kernels/cuda/row_corrections.cuh)
};

// A warp's own shared memory beside its ring.
template <bool kCorrects>
struct WarpShared : WarpSketches<kCorrects> {
  uint32_t list[kListed<kCorrects>];  // row i of the split at i % kListed
  union {                             // of the block that was scored last
    alignas(8) uint32_t inclusion[sampling::kCodeBlock];
    alignas(8) float share[sampling::kCodeBlock];  // once the block is listed, with a value sketch
  };
  int32_t page[kSplitPages];  // of the split's tokens
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

// A split of an item whose pages hold whole blocks, of a group that is one quad. kBits: of a key's code, and of a
// value's if values have a sketch. kCorrects: that is summed up.
template <typename Kv, int D, int kBits, bool kCorrects>
class WarpSplit {
  using Block = WholeBlock<D, kBits>;

 public:
  static constexpr int kStages = kRingStages<kBits>, kStageBytes = std::max(Block::kBytes, Slab<Kv, D>::kBytes);
  static constexpr int kRingBytes = kStages * kStageBytes;
  static_assert(kQuad * (D + kPassNumbers) * sizeof(float) <= kRingBytes);  // what Run leaves
  using Shared = WarpShared<kCorrects>;

  __device__ WarpSplit(const GatherTask<Kv, D>& task, const WorkUnit& unit, unsigned char* ring, Shared& shared,
                       int lane)
      : task_(task),
        sketches_(task.group.decode, task.item, task.kv_head, task.group.corrects() ? kBits : 0),
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

  // Leaves sum w v, [G][D], and the split's numbers where the ring was, writes its signed sums, and returns how many
  // rows were read. lse: of the group's heads, by the pilot.
  __device__ __forceinline__ int Run(const GroupQueries<D>& queries, const float* lse, int split, int lane) {
    const float mine = lse[lane % 4], of_head = lane % 4 < task_.group_size() ? mine : INFINITY;
    const float units = queries.threshold.kappa * (1 << kUnitOctaves);  // of e~ that a probability of 1 is
    const float log_unit = mine - log2f(units);
    constexpr Share<false> kAll;
    std::conditional_t<kCorrects, RowCorrections<Kv, D>, RowSums<Kv, D>> sums;
    ValueTotals<D, 1> totals;
    float sketched_mass = 0;  // sum of e~, a lane's share
#pragma unroll 1
    while (!all_listed() || added_ < listed_) {
      const uint32_t kind = kinds_ & 3;
      WaitCopies<kStages - 1>();
      int copies = 1;
      if (kind == kBlock) {
        QuadScores s = {};
        Block::template Score<kSlabsAtOnce>(s, queries.of_sketch, ring_ + at_ * kStageBytes, lane);
        const float scale = ScaleQuad(s, queries.sketch_scorer, begin_, sketched_end_, scored_, lane);
        TokenSquares squares = {};
        if constexpr (kCorrects) {
          sketched_mass += TakeSketched(squares, s, scale, of_head, units, lane);
        } else {
          AddSquares(squares, s, scale, 2 * of_head);
        }
        List(SumOverHeads(squares, lane), queries.threshold, lane);
        const int block = scored_;
        scored_ += sampling::kCodeBlock;
        if constexpr (kCorrects) {  // its values are in the next stage
          BlockWeights weights[1];
          LeaveToRows(weights[0], s, lane);
          AddBlockValues(totals, ring_ + ToValues(copies, lane) * kStageBytes, weights, block, queries.wants_error,
                         lane);
        }
      } else if (kind == kKeys) {  // likewise
        QueryFragment<D> q[1];
#pragma unroll
        for (int step = 0; step < D / 16; ++step) q[0].step[step] = queries.of_rows[step][lane];
        const LaneRows rows([&](int row) { return shared_.list[(added_ + row) % kMostListed]; }, listed_ - added_,
                            lane);
        float dots[1][4];
        Scores<Kv, D, 1>(dots, SharedAddress(ring_) + at_ * kStageBytes, q, lane);
        if constexpr (kCorrects) {
          const auto weights =
              sums.Weigh(dots[0], queries.row_scorer, rows, SketchesOf(rows, log_unit, lane), split, lane);
          sums.Add(SharedAddress(ring_) + ToValues(copies, lane) * kStageBytes, weights, lane);
        } else {
          const auto weights = sums.Weigh(dots[0], queries.row_scorer, rows, split, lane);
          sums.Add(SharedAddress(ring_) + ToValues(copies, lane) * kStageBytes, weights, kAll, lane);
        }
        added_ += kSlabRows;
      }
      __syncwarp();  // the stages have been read
#pragma unroll 1
      for (int i = 0; i < copies; ++i) CopyNext(lane);
    }
    WaitCopies<0>();
    const int group_size = task_.group_size();
    if constexpr (kCorrects) {
      sums.AddSketches(totals.sums[0], totals.mass[0], log_unit, lane);
#pragma unroll
      for (int step = 4; step < 32; step *= 2) sketched_mass += __shfl_xor_sync(~0u, sketched_mass, step);
      if (lane < group_size) {
        task_.arrays.sketch_masses(task_.kv_head)[split * group_size + lane] = make_float2(log_unit, sketched_mass);
      }
    }
    __syncwarp();  // the stages have been read
    auto* const output = reinterpret_cast<float*>(ring_);
    sums.Write(output, task_.arrays.pass_signed(task_.kv_head, split), 0, kAll, group_size, lane);
    sums.RowTotals::Write(output + group_size * D, 0, group_size, lane);
    return listed_;
  }

 private:
  static constexpr int kMostListed = kListed<kCorrects>;
  static constexpr int kSlabsAtOnce = kCorrects && kBits == 4 ? 2 : kBlockSlabs;  // for which there are registers
  enum Kind : uint32_t { kNothing, kBlock, kKeys, kValues };                      // what a stage has: two bits

  __device__ __forceinline__ bool all_listed() const { return scored_ >= sketched_end_ && certain_ >= end_; }
  __device__ __forceinline__ int32_t PageOf(int token) const {
    return shared_.page[(token >> task_.view.page_shift) - (begin_ >> task_.view.page_shift)];
  }
  // Whether there is room for all of another block in the list.
  __device__ __forceinline__ bool has_room() const {
    return !kCorrects || listed_ - added_ + copied_ - scored_ + sampling::kCodeBlock <= kMostListed;
  }

  // Starts the next copy, in the stage that is in front, which then is the last: the values that belong to the keys
  // which were the one before, else the keys of a slab of rows that is full, or the split's last, else a block.
  __device__ __forceinline__ void CopyNext(int lane) {
    if (scored_ >= sketched_end_ && certain_ < end_ && listed_ - fetched_ < kSlabRows) ListCertain(lane);
    const uint32_t to = SharedAddress(ring_) + at_ * kStageBytes;
    Kind kind = kNothing;
    const bool of_block = kCorrects && block_values_next_;
    if (!of_block && (values_next_ || listed_ - fetched_ >= (all_listed() ? 1 : kSlabRows))) {
      CopyListed(to, values_next_ ? task_.view.value_offset : 0, lane);
      if (values_next_) fetched_ += kSlabRows;
      kind = values_next_ ? kValues : kKeys;
      values_next_ = !values_next_;
    } else if (of_block || (copied_ < sketched_end_ && has_room())) {
      // A block is part of one page, and so is what of it is visible.
      const size_t offset = of_block ? SketchPartBytes(D, 1 << task_.view.page_shift, kBits) : 0;
      Block::Copy(to, sketches_, PageOf(max(copied_, begin_)), copied_, offset, lane);
      kind = of_block ? kValues : kBlock;
      block_values_next_ = kCorrects && !of_block;
      if (!block_values_next_) copied_ += sampling::kCodeBlock;
    }
    CommitCopies();
    kinds_ = kinds_ >> 2 | kind << 2 * (kStages - 1);
    at_ = Next(at_);
  }
  // The stage of the values whose keys are in front and have been read: there now. copies: how many are to be started
  // when these have been read too. In a ring of two stages one must not wait.
  __device__ __forceinline__ int ToValues(int& copies, int lane) {
    if constexpr (kStages == 2) {
      __syncwarp();
      CopyNext(lane);
      WaitCopies<kStages - 1>();
      return at_;
    } else {
      WaitCopies<kStages - 2>();
      copies = 2;
      return Next(at_);
    }
  }
  static __device__ __forceinline__ int Next(int stage) { return stage + 1 == kStages ? 0 : stage + 1; }

  // Starts copying the next slab of rows that are listed, `offset` bytes after those of K.
  __device__ __forceinline__ void CopyListed(uint32_t to, size_t offset, int lane) const {
    const int at = min(fetched_ + lane % kSlabRows, listed_ - 1);
    const int token = origin_ + PlaceOf(shared_.list[at % kMostListed]);
    const auto row = reinterpret_cast<uint64_t>(task_.view.Row(PageOf(token), token));
    CopyRowsOf<Kv, D>(to, row, offset, listed_ - fetched_, lane);
  }

  // Lists tokens without a sketch, which are read always, as many as four slabs have.
  __device__ __forceinline__ void ListCertain(int lane) {
    const int count = min(end_ - certain_, kStageRows);
    for (int i = lane; i < count; i += 32) {
      const int at = (listed_ + i) % kMostListed;
      shared_.list[at] = Entry(certain_ + i - origin_, sampling::kCertain);
      if constexpr (kCorrects) reinterpret_cast<uint2&>(shared_.of_row[at]) = {};
    }
    listed_ += count;
    certain_ += count;
    __syncwarp();
  }

  // Lists the tokens of the block that are drawn: where the sum of inclusions passes a multiple of kCertain. With a
  // value sketch every token's share of its e~ that is left to the sum over the sketches takes its inclusion's place:
  // 1, or of those that are drawn 1 - 1 / pi.
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
      if (index == to >> sampling::kInclusionBits) return 1.0f;
      const int at = (listed_ + index) % kMostListed;
      shared_.list[at] = Entry(place, inclusion);
      if constexpr (kCorrects) {
        reinterpret_cast<uint2&>(shared_.of_row[at]) =
            reinterpret_cast<const uint2&>(shared_.of_token[place % sampling::kCodeBlock]);
      }
      return 1 - InverseOf(inclusion);
    };
    const int place = scored_ - origin_ + 2 * lane;
    const float first = list(before, between, place, two.x), second = list(between, after, place + 1, two.y);
    if constexpr (kCorrects) reinterpret_cast<float2*>(shared_.share)[lane] = {first, second};
    line_ = __shfl_sync(~0u, after, 31);
    listed_ += static_cast<int>(line_ >> sampling::kInclusionBits);
    line_ &= sampling::kCertain - 1;
  }

  // Turns the block's scores into e~, whole numbers, which it leaves for List, and returns their sum; adds p~^2 as
  // AddSquares does. units: that a p~ of 1 is.
  __device__ __forceinline__ float TakeSketched(TokenSquares& squares, QuadScores& s, float scale, float lse,
                                                float units, int lane) const {
    constexpr float kLeast = -100;                                   // 2^-100 is 0
    constexpr float kMost = (1 << kUnitOctaves) - kSignedBytes - 1;  // for which there are 16 bits with a sign
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 2 * kBlockSlabs; ++i) {
      float& x = s[i / 2][i % 2];
      const float p = Exp2(fmaxf(fmaf(x, scale, -lse), kLeast));  // what is not a number has no say
      squares[i] = fmaf(p, p, squares[i]);
      // Never more than it is, so that w~ is no more than 2^15 either; in the last bits of 2^23 + x.
      const float bits = fmaxf(0x1p23f, fminf(0x1p23f + kMost, fmaf(p, units, 0x1p23f - 0.5f)));
      shared_.of_token[8 * i + lane / 4][lane % 4] = static_cast<uint16_t>(__float_as_uint(bits));
      x = bits - 0x1p23f;
      sum += x;
    }
    return sum;
  }

  // From e~ and the tokens' shares of it, which List has left: the weights of the block's sketched values.
  __device__ __forceinline__ void LeaveToRows(BlockWeights& turned, const QuadScores& e, int lane) const {
    constexpr float kLeast = -(1 << kUnitOctaves);
    uint32_t weights[2 * kBlockSlabs];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2 * kBlockSlabs; ++i) {
      const float share = shared_.share[8 * i + lane / 4];
      // What is held at kLeast has a pi that was rounded down: to 2^-20, or little more.
      weights[i] = __float_as_uint(fmaxf(e[i / 2][i % 2] * share, kLeast) + (0x1.8p23f + kSignedBytes));
    }
    TurnWeights<int8_t>(turned, weights);
  }

  // Adds the values of a block, which are in that stage.
  __device__ __forceinline__ void AddBlockValues(ValueTotals<D, 1>& totals, const unsigned char* stage,
                                                 const BlockWeights (&weights)[1], int block, bool wants_error,
                                                 int lane) {
    constexpr float kFactor[1] = {1};
    AddParts<kBits, kBlockSlabs, int8_t>(totals, stage, weights, kFactor, block, begin_, sketched_end_, lane);
    if (!wants_error) return;
    float sum = 0;  // of step^2
#pragma unroll
    for (int tile = lane % 4; tile < D / 16; tile += 4) {
      const uint2 column = reinterpret_cast<const uint2*>(stage + Block::kCodeBytes)[8 * tile + lane / 4];
      const float2 steps = Unpack<__half>(column.x);
      sum = fmaf(steps.x, steps.x, fmaf(steps.y, steps.y, sum));
    }
    sum = WarpSum(sum);
    if (lane == 0) shared_.squared_rounding[(block - origin_) / sampling::kCodeBlock] = sum / 12;
  }

  // What the sketches say of the rows of the slab in front.
  __device__ __forceinline__ RowSketches SketchesOf(const LaneRows& rows, float log_unit, int lane) const {
    RowSketches of;
#pragma unroll
    for (int h = 0; h < 2; ++h) of.log_unit[h] = __shfl_sync(~0u, log_unit, 2 * (lane % 2) + h);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = min(added_ + lane / 4 + 8 * half, listed_ - 1) % kMostListed;
      const uint32_t two = reinterpret_cast<const uint32_t*>(shared_.of_row[at])[lane % 2];
      const float inverse = rows.listed[half] ? InverseOf(rows.inclusion[half]) : 0.0f;
      of.weight[half][0] = inverse * static_cast<float>(two & 0xffff);
      of.weight[half][1] = inverse * static_cast<float>(two >> 16);
      const int place = PlaceOf(shared_.list[at]);
      of.squared_rounding[half] =
          origin_ + place < sketched_end_ ? shared_.squared_rounding[place / sampling::kCodeBlock] : 0.0f;
    }
    return of;
  }

  const GatherTask<Kv, D>& task_;
  const SketchView<D, kBits> sketches_;
  unsigned char* const ring_;
  Shared& shared_;
  const int begin_, end_, sketched_end_, origin_;
  int copied_, scored_, certain_;  // tokens: the next to be copied, to be scored, to be listed without a score
  int listed_ = 0, fetched_ = 0, added_ = 0;  // rows
  int32_t pages_[kSplitPages / 32];           // for shared_.page: 32 i + lane
  uint32_t line_;                             // of the split's line since the last multiple of kCertain
  bool values_next_ = false, block_values_next_ = false;
  uint32_t kinds_ = 0;  // of the stages, from the front on
  int at_ = 0;          // the stage in front
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_WARP_SPLIT_CUH_
