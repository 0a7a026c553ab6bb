// SKETCHED's scores and sums of values: the sketches of K and V of every full page once, codes to scratch. The tokens
// of a page that is not full have no sketch: their scores are exact, and they take no part in the sums.
//
// Grid: (key/value head, work, heads of its group). A block takes a split; each warp takes every kWarps-th block of 64
// tokens of it. Asynchronous copies bring its keys, then its values, into a ring of the warp's own, ahead of its
// products.
#include <algorithm>

#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_scores.cuh"
#include "kernels/cuda/sketch_values.cuh"

namespace santa::cuda {
namespace {

constexpr int kMostQuads = 2;  // of a block's heads

// What there is shared memory for, whatever the page size.
template <int D, int kBits>
constexpr int kWarps = D > 128 && kBits == 8 ? 2 : 4;
constexpr int kStages = 2;  // each of a block's keys or of its values
template <int D, int kBits, int kQuads>
constexpr int kBlocksAtOnce = D > 128 || kBits == 8 ? 2
                              : kQuads == 1         ? 4
                                                    : 3;

// A warp's copies, ahead of its products: keys, then values, of one block of 64 tokens after the other.
template <int D, int kBits>
struct Loader {
  const SketchView<D, kBits>& sketches;
  const SketchGeometry<D, kBits>& geometry;
  const BlockSplits& splits;
  BlockCursor<kWarps<D, kBits>> cursor;
  uint32_t ring;
  int stage_bytes, warp, lane;
  const int32_t* pages;  // of the blocks from the first one's origin on
  int at = 0;
  bool of_values = false;

  __device__ __forceinline__ void Next() {
    if (!cursor.done()) {
      const size_t offset = of_values ? SketchPartBytes(D, 1 << sketches.page_shift, kBits) : 0;
      const int32_t page = pages[cursor.block - splits.origin / sampling::kCodeBlock];
      sketches.CopyBlock(ring + at, geometry, cursor.block, page, offset, lane);
      if (of_values) cursor.Advance(splits, warp);
      of_values = !of_values;
    }
    CommitCopies();
    at = After(at);
  }
  __device__ __forceinline__ int After(int stage_at) const {
    return stage_at + stage_bytes == kStages * stage_bytes ? 0 : stage_at + stage_bytes;
  }
};

// Writes a quad's codes of a block and its largest scores, and turns what the codes stand for into a right operand.
// Returns the largest score of the lane's head.
template <typename Code>
__device__ __forceinline__ float EncodeQuad(BlockWeights& turned, QuadScores& s, const SketchScorer& scorer,
                                            const BlockSplits& splits, int first_token, Code* codes, int stride,
                                            float* block_max, bool is_head, int lane) {
  const float scale = ScaleQuad(s, scorer, splits.begin, splits.end, first_token, lane);
  const float largest = LargestOf(s);
  const float max = fmaxf(largest * scale, -sampling::kMaxScore);
  const float steps = scale * sampling::kStepsPerOctave<Code>;
  Code* to = codes + lane / 4 * stride + lane % 4;
  uint32_t weights[2 * kBlockSlabs];
#pragma unroll
  for (int i = 0; i < 2 * kBlockSlabs; ++i) {
    constexpr float kMost = sampling::kNoWeight<Code>;
    // As sampling::EncodeScore, without a conversion: 2^23 + x has x in its last bits.
    const float code = fminf(fmaf(s[i / 2][i % 2] - largest, -steps, 0x1p23f), 0x1p23f + kMost);
    to[8 * i * stride] = static_cast<Code>(__float_as_uint(code));
    weights[i] = __float_as_uint(SketchWeight(code, sampling::kStepsPerOctave<Code>));
  }
  TurnWeights(turned, weights);
  if (lane < kQuad && is_head) block_max[lane] = max;
  return max;
}

template <int D, int kBits, int kQuads>
__global__ void __launch_bounds__(32 * kWarps<D, kBits>, kBlocksAtOnce<D, kBits, kQuads>)
    ScoreSketchValuesKernel(const __grid_constant__ GroupLaunch group) {
  using Code = std::conditional_t<kBits == 4, uint8_t, uint16_t>;
  using Merger = TotalsMerger<D, kWarps<D, kBits>>;
  extern __shared__ __align__(1024) unsigned char bytes[];
  const DecodeLaunch& launch = group.decode;
  __shared__ SketchQueries<D, kQuads> queries;
  __shared__ int32_t pages[kMaxBlockTokens / sampling::kCodeBlock + 1];
  LetLaterKernelStart();
  const int item_index = launch.work[blockIdx.y].item;
  const DeviceItem& item = launch.items[item_index];
  const BlockSplits splits(group, item, 1);
  const int kv_head = blockIdx.x, first_head = kQuad * kQuads * blockIdx.z, group_size = launch.group_size;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const SketchView<D, kBits> sketches(launch, item, kv_head, kBits);
  const GroupArrays arrays = group.arrays[item_index];
  const SketchGeometry<D, kBits> geometry(launch.page_shift);
  const int stage_bytes = geometry.stage_bytes(), stride = CodesOfToken(group_size);
  const unsigned char* ring = bytes + warp * kStages * stage_bytes;
  const int heads = min(kQuad * kQuads, group_size - first_head);
  auto* merged = reinterpret_cast<float*>(bytes + kWarps<D, kBits> * kStages * stage_bytes);

  const int first_block = splits.origin / sampling::kCodeBlock;
  for (int i = threadIdx.x; i <= (splits.end - 1) / sampling::kCodeBlock - first_block; i += 32 * kWarps<D, kBits>) {
    pages[i] = sketches.PageOf(geometry, first_block + i);
  }
  __syncthreads();
  BlockCursor<kWarps<D, kBits>> cursor(splits, warp);
  Loader<D, kBits> loader{sketches, geometry, splits, cursor, SharedAddress(ring), stage_bytes, warp, lane, pages};
  const Scorer scorer_of_keys(item, kv_head);
  WaitForEarlierKernel();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) loader.Next();
  const float factor =
      LoadSketchQueries<kBits>(queries, launch, item, kv_head, first_head / kQuad, scorer_of_keys.scale);
  const SketchScorer scorer(scorer_of_keys, factor);
  __syncthreads();
  ValueTotals<D, kQuads> totals;
  int at = 0;
#pragma unroll 1
  for (; !cursor.done(); cursor.Advance(splits, warp)) {
    const int block = cursor.block, first = block * sampling::kCodeBlock;
    BlockWeights weights[kQuads] = {};
    float max[kQuads], factors[kQuads];
    loader.Next();
    WaitCopies<kStages - 1>();
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      max[quad] = -sampling::kMaxScore;
      if (quad > 0 && kQuad * quad >= heads) break;
      QuadScores s = {};
      ScoreSketched<D, kBits>(s, queries, geometry, ring + at, quad, first, sketches.end, lane);
      ScoreUnsketched<D>(s, launch, item, splits.begin, splits.end, kv_head, first_head / kQuad + quad, first,
                         sketches.end, factor, lane);
      const int head = first_head + kQuad * quad;
      max[quad] = EncodeQuad(weights[quad], s, scorer, splits, first,
                             reinterpret_cast<Code*>(arrays.codes(kv_head, block)) + head, stride,
                             arrays.block_max(kv_head, block) + head, head + lane < group_size, lane);
    }
    totals.Raise(max);
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      factors[quad] = Exp2(max[quad] - totals.scores[quad].max - kWeightOctaves);
    __syncwarp();  // the keys have been read
    at = loader.After(at);
    loader.Next();
    WaitCopies<kStages - 1>();
    AddBlock<kBits>(totals, geometry, ring + at, weights, factors, first, splits.begin, sketches.end, lane);
    __syncwarp();  // and the values
    at = loader.After(at);
  }
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    if (kQuad * quad >= heads) break;
    const Merger merger{merged, min(kQuad, heads - kQuad * quad)};
    merger.Leave(totals, quad, warp, lane);
    __syncthreads();
    merger.Write(arrays, kv_head, splits.work->split, first_head + kQuad * quad, group_size);
    __syncthreads();
  }
  WaitCopies<0>();
  ClearCounts(arrays, kv_head, splits.work->split, 1);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kHeads>
  cudaError_t RunHeads() const {  // one kernel for all types of cache
    constexpr int kQuads = std::min(kHeads / kQuad, kMostQuads);
    return launch.sketch == Sketch::kK4V4 ? Start<D, 4, kQuads>() : Start<D, 8, kQuads>();
  }
  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    return DispatchHeads<__half, D, 1>(launch.decode.group_size, *this);
  }

 private:
  template <int D, int kBits, int kQuads>
  cudaError_t Start() const {
    constexpr int kWarpsOfBlock = kWarps<D, kBits>, kHeads = kQuad * kQuads;
    const int group_size = launch.decode.group_size;
    const int ring_bytes = kWarpsOfBlock * kStages * SketchGeometry<D, kBits>(launch.decode.page_shift).stage_bytes();
    const int shared_bytes = ring_bytes + TotalsMerger<D, kWarpsOfBlock>::Bytes(std::min(group_size, kQuad));
    return LaunchGroup(ScoreSketchValuesKernel<D, kBits, kQuads>, launch, 32 * kWarpsOfBlock, shared_bytes, stream,
                       (group_size + kHeads - 1) / kHeads);
  }
};

}  // namespace

cudaError_t LaunchScoreSketchValues(const GroupLaunch& launch, cudaStream_t stream) {
  if (launch.decode.dtype == DType::kFloat8E4M3) return cudaErrorNotSupported;
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
