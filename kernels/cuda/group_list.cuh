// Which rows a block reads that gathers them: the inclusion of every token of its splits from its codes, where the
// first split lies on the group's line (each block tells its sum, and adds up those of the blocks before it), and the
// list of tokens that are read.
#ifndef SANTA_KERNELS_CUDA_GROUP_LIST_CUH_
#define SANTA_KERNELS_CUDA_GROUP_LIST_CUH_

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/group_inclusion.cuh"
#include "kernels/sampling/uniform.h"

namespace santa::cuda {

inline constexpr int kGatherWarps = 4;
inline constexpr int kGatherThreads = 32 * kGatherWarps;
inline constexpr int kStageRows = kGatherWarps * kSlabRows;
// Of a head's weights, of 16 bits and of 32: lanes of a fragment lie in different banks.
inline constexpr int kPitch = kStageRows + 8, kWeightPitch = kStageRows + 4;

// A listed token: its place among the block's, counted from their origin, and its inclusion less 1.
inline constexpr int kPlaceBits = 12;
__device__ __forceinline__ uint32_t Entry(int place, uint32_t inclusion) { return inclusion - 1 << kPlaceBits | place; }
__device__ __forceinline__ int PlaceOf(uint32_t entry) { return entry & ((1 << kPlaceBits) - 1); }
__device__ __forceinline__ uint32_t InclusionOf(uint32_t entry) { return (entry >> kPlaceBits) + 1; }
static_assert(kPlaceBits + sampling::kInclusionBits == 32);

// The error's two vectors in a partial result (kernels/cuda/group_layout.h), of one head and dimension.
__device__ __forceinline__ void WriteErrorWord(float* partial, int at, float once, float squared) {
  reinterpret_cast<uint32_t*>(partial)[at] = Pack<__nv_bfloat16>(once, squared);
}
__device__ __forceinline__ float2 ErrorSums(uint32_t word) { return Unpack<__nv_bfloat16>(word); }

// Pages that a block's tokens lie in, the smallest being of 16 tokens.
inline constexpr int kMostPages = kMaxBlockTokens / 16 + 1;

// Of every block that gathers rows.
template <int kBlocks>
struct AnswerShared {
  static constexpr int kHeads = 8 * kBlocks;
  int32_t page[kMostPages];  // of the block's tokens
  float lse[kHeads];
  float reference[2][kReferences][kHeads];  // log2, of this stage and of the one before; at the end of all splits
  float number[kPartialSums][kHeads];       // of all splits
  unsigned long long warp_sum[kGatherWarps];
  bool last;
};

// Of one whose warps weigh a stage of rows together.
template <int kBlocks>
struct GatherShared : AnswerShared<kBlocks> {
  static constexpr int kHeads = AnswerShared<kBlocks>::kHeads;
  int list_at[kMaxBlockSplits + 1];                   // where each split begins in the list, and the end
  float warp_max[kReferences][kGatherWarps][kHeads];  // of log2 w
  float factor[kReferences][32][kHeads];              // of 32 splits' sums
  float by_warp[kPartialSums][kGatherWarps][kHeads];
  float weight[kHeads][kWeightPitch];                // log2 of w; -inf where there is no row
  uint16_t packed[kPartialVectors][kHeads][kPitch];  // what the value rows are multiplied by, 16-bit
};

// Of a block whose inclusions come from codes.
template <int kBlocks>
struct OctaveShared : GatherShared<kBlocks> {
  alignas(16) float octaves[kMostOctaves / kMaxGroup * GatherShared<kBlocks>::kHeads];
};

// And whose weights may come from them.
template <int kBlocks>
struct CodedShared : OctaveShared<kBlocks> {
  // Of two stages' rows, where weights are taken from codes.
  alignas(16) uint16_t codes[2][kStageRows][GatherShared<kBlocks>::kHeads];
};

// What a block is about, but for the rows themselves.
struct BlockTask {
  const GroupLaunch& group;
  const int item_index;
  const DeviceItem& item;
  const int kv_head;
  const int splits_of_block;
  const BlockSplits splits;
  const int first_split;
  const GroupArrays arrays;
  const int full_end;  // the end of pages with a sketch

  __device__ BlockTask(const GroupLaunch& group, int kv_head) : BlockTask(group, kv_head, group.splits_of_block) {}
  __device__ BlockTask(const GroupLaunch& group, int kv_head, int splits_of_block)
      : BlockTask(group, kv_head, splits_of_block, blockIdx.y) {}
  // first: the place of its first split in the launch's work.
  __device__ BlockTask(const GroupLaunch& group, int kv_head, int splits_of_block, int first)
      : group(group),
        item_index(group.decode.work[first].item),
        item(group.decode.items[item_index]),
        kv_head(kv_head),
        splits_of_block(splits_of_block),
        splits(group.decode.work + first, item, splits_of_block),
        first_split(splits.work->split),
        arrays(group.arrays[item_index]),
        full_end(sketched() ? min(splits.end, FullPagesEnd(item, group.decode.page_shift)) : splits.end) {}

  __device__ bool sketched() const { return group.method == Method::kSketched; }
  __device__ bool one_pass() const { return group.pilots != nullptr; }
  // Whether a row's weight is exp(s) / pi by its key, and not p / pi.
  __device__ bool weighs_by_keys() const { return sketched() || one_pass(); }
  __device__ int code_bytes() const { return CodeBytes(group.method, group.sketch); }
  __device__ bool pilot() const { return item.target_relative_error > 0 && !group.second_draw; }
  __device__ bool wants_error() const { return item.relative_standard_error != nullptr || pilot(); }
  __device__ int group_size() const { return group.decode.group_size; }
  __device__ int quads() const { return CodesOfToken(group_size()) / kQuad; }
  __device__ sampling::RandomStream stream() const {
    return sampling::MakeRandomStream(item.seed, item.sampling_key, item.layer_index, item.position, kv_head);
  }
  template <typename Code>
  __device__ const QuadCodes<Code>* codes(int place) const {
    return reinterpret_cast<const QuadCodes<Code>*>(arrays.codes(kv_head, splits.origin / sampling::kCodeBlock)) +
           static_cast<size_t>(place) * quads();
  }
};

template <typename Kv, int D>
struct GatherTask : BlockTask {
  const CacheView<Kv, D> view;

  __device__ GatherTask(const GroupLaunch& group, int kv_head) : GatherTask(group, kv_head, group.splits_of_block) {}
  __device__ GatherTask(const GroupLaunch& group, int kv_head, int splits_of_block)
      : GatherTask(group, kv_head, splits_of_block, blockIdx.y) {}
  __device__ GatherTask(const GroupLaunch& group, int kv_head, int splits_of_block, int first)
      : BlockTask(group, kv_head, splits_of_block, first),
        view(group.decode, item, {.begin = splits.begin, .end = splits.end}, kv_head) {}
};

// Fills what a block begins with, and clears what later kernels add to. All threads call it.
template <int kBlocks>
__device__ __forceinline__ void ClearShared(const BlockTask& task, GatherShared<kBlocks>& shared) {
  const int group_size = task.group_size();
  if (task.pilot() && task.first_split == 0) {
    for (int i = threadIdx.x; i < group_size * sampling::kInclusionBins; i += kGatherThreads) {
      task.arrays.spreads(task.kv_head)[i] = 0;
    }
  }
  if (threadIdx.x < 8 * kBlocks) {
    shared.lse[threadIdx.x] = threadIdx.x < group_size ? task.arrays.lse(task.kv_head)[threadIdx.x] : 0.0f;
  }
  for (int i = threadIdx.x; i < 8 * kBlocks * kPitch; i += kGatherThreads) {  // of heads that there are not
    const int head = i / kPitch, row = i % kPitch;
    if (row < kWeightPitch) shared.weight[head][row] = kNegativeInfinity;
    for (int vector = 0; vector < kPartialVectors; ++vector) shared.packed[vector][head][row] = 0;
  }
  __syncthreads();
}

// The sum of `mine` over the threads before this one; *total: over all.
__device__ inline unsigned long long SumBefore(unsigned long long mine, unsigned long long (&warp_sum)[kGatherWarps],
                                               unsigned long long* total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned long long sum = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned long long other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) warp_sum[warp] = sum;
  __syncthreads();
  *total = 0;
#pragma unroll
  for (int w = 0; w < kGatherWarps; ++w) {
    if (w < warp) sum += warp_sum[w];
    *total += warp_sum[w];
  }
  __syncthreads();
  return sum - mine;
}

inline constexpr unsigned long long kTold = 1ull << 63;

// Tells the sum of the block's splits, and returns that of the splits before them. Their blocks were started earlier,
// and wait for none that come later.
__device__ inline unsigned long long SumOfEarlier(unsigned long long* totals, int split, int splits_of_block,
                                                  unsigned long long total,
                                                  unsigned long long (&warp_sum)[kGatherWarps]) {
  if (threadIdx.x == 0) atomicExch(totals + split, total | kTold);
  unsigned long long sum = 0;
  for (int earlier = threadIdx.x * splits_of_block; earlier < split; earlier += kGatherThreads * splits_of_block) {
    unsigned long long told;
    do {
      told = *static_cast<volatile unsigned long long*>(totals + earlier);
    } while (!(told & kTold));
    sum += told & ~kTold;
  }
  unsigned long long all;
  SumBefore(sum, warp_sum, &all);
  return all;
}

// The inclusions of the tokens at places [first, end), of those before them none; [place]. codes: of the token at place
// 0, `quads` of each token; octaves: quads of four for each code block. Not inlined: one for all kernels of a source.
template <typename Code>
__device__ __noinline__ void FindInclusions(const QuadCodes<Code>* codes, int quads, const float* octaves,
                                            sampling::InclusionThreshold threshold, int first, int end,
                                            uint32_t* inclusion) {
  // Codes of the next run of up to four heads are on their way while those of one are summed.
  constexpr int kLoads = kRunTokens * sizeof(QuadCodes<Code>) / sizeof(uint4);
  uint4 next[kLoads] = {};
  const auto load = [&](int place) {
    if (quads > 1 || place >= end) return;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) next[i] = reinterpret_cast<const uint4*>(codes + place)[i];
  };
  load(kRunTokens * threadIdx.x);
#pragma unroll 1
  for (int place = kRunTokens * threadIdx.x; place < end; place += kRunTokens * kGatherThreads) {
    const float* of_block = octaves + place / sampling::kCodeBlock * kQuad * quads;
    float a_squared[kRunTokens];
    if (quads == 1) {
      alignas(16) QuadCodes<Code> run[kRunTokens];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) reinterpret_cast<uint4*>(run)[i] = next[i];
      load(place + kRunTokens * kGatherThreads);
      SumSquares(a_squared, run, of_block, 1);
    } else {
      SumSquares(a_squared, codes + static_cast<size_t>(place) * quads, of_block, quads);
    }
    uint32_t each[kRunTokens];
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i) {
      const bool has_chance = place + i >= first && place + i < end;
      each[i] = has_chance ? sampling::Inclusion(threshold, a_squared[i]) : 0;
    }
    *reinterpret_cast<uint4*>(inclusion + place) = {each[0], each[1], each[2], each[3]};
  }
  __syncwarp();  // what is called is left by all lanes together, for barriers count warps
}

// The inclusion of every token with a chance, from shared.lse; to be seen by all threads after a barrier. All threads
// call it.
template <int kBlocks>
__device__ __forceinline__ void FindInclusions(const BlockTask& task, OctaveShared<kBlocks>& shared,
                                               uint32_t* inclusion) {
  LoadOctaves(shared.octaves, task.arrays, task.splits, task.kv_head, task.group_size(), shared.lse);
  __syncthreads();
  const sampling::InclusionThreshold threshold = *task.arrays.threshold(task.kv_head);
  const int first = task.splits.begin - task.splits.origin, end = task.full_end - task.splits.origin;
  if (task.code_bytes() == 1) {
    FindInclusions(task.codes<uint8_t>(0), task.quads(), shared.octaves, threshold, first, end, inclusion);
  } else {
    FindInclusions(task.codes<uint16_t>(0), task.quads(), shared.octaves, threshold, first, end, inclusion);
  }
}

// Where a block begins on the line that is read at every multiple of kCertain, from the sum of its inclusions: of its
// group's line, after the blocks before it. All threads call it.
struct PlaceOnLine {
  unsigned long long* totals;
  int split, splits_of_block;
  unsigned long long offset;

  __device__ explicit PlaceOnLine(const BlockTask& task)
      : totals(task.arrays.totals(task.kv_head)),
        split(task.first_split),
        splits_of_block(task.splits_of_block),
        offset(sampling::InclusionOffset(task.stream(), task.pilot() ? 1 : 0)) {}
  __device__ __forceinline__ unsigned long long operator()(unsigned long long total,
                                                           unsigned long long (&warp_sum)[kGatherWarps]) const {
    return SumOfEarlier(totals, split, splits_of_block, total, warp_sum) + offset;
  }
};

// Fills the list and list_at. inclusion: [place], of places below full_end, to be seen by all threads; all tokens from
// there on are listed. All threads call it. Not inlined: one for all kernels of a source.
template <int kBlocks>
__device__ __noinline__ void ListRows(BlockSplits splits, int full_end, GatherShared<kBlocks>& shared,
                                      const uint32_t* inclusion, uint32_t* list, PlaceOnLine place) {
  const int end = max(0, full_end - splits.origin);
  const int runs = (end + kRunTokens - 1) / kRunTokens, each = (runs + kGatherThreads - 1) / kGatherThreads;
  const auto* run = reinterpret_cast<const uint4*>(inclusion);
  const int from = min(threadIdx.x * each, runs), to = min(from + each, runs);
  unsigned long long mine = 0, total;
  for (int i = from; i < to; ++i) mine += static_cast<unsigned long long>(run[i].x) + run[i].y + run[i].z + run[i].w;
  unsigned long long at = SumBefore(mine, shared.warp_sum, &total);
  // Of the block's rows whose inclusions come to `sum`, so many are read.
  const unsigned long long begin = place(total, shared.warp_sum);
  const auto read_of = [begin](unsigned long long sum) {
    return static_cast<int>((begin + sum >> sampling::kInclusionBits) - (begin >> sampling::kInclusionBits));
  };
  int index = read_of(at);
  for (int i = from; i < to; ++i) {
    const uint32_t of_run[kRunTokens] = {run[i].x, run[i].y, run[i].z, run[i].w};
#pragma unroll
    for (int j = 0; j < kRunTokens; ++j) {
      at += of_run[j];
      const int next = read_of(at);
      if (next != index) list[index] = Entry(kRunTokens * i + j, of_run[j]);
      index = next;
    }
  }
  int count = read_of(total);
  // What has no sketch is read always.
  const int unsketched = max(full_end, splits.begin);
  for (int token = unsketched + threadIdx.x; token < splits.end; token += kGatherThreads) {
    list[count + token - unsketched] = Entry(token - splits.origin, sampling::kCertain);
  }
  count += max(0, splits.end - unsketched);
  __syncthreads();
  if (threadIdx.x <= splits.count) {  // the first entry at or after a split's first token
    const int first =
        threadIdx.x == splits.count ? splits.end - splits.origin : splits.work[threadIdx.x].begin - splits.origin;
    int low = 0, high = count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (PlaceOf(list[middle]) < first) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    shared.list_at[threadIdx.x] = low;
  }
  __syncthreads();
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_LIST_CUH_
