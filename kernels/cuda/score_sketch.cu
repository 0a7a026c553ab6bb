// SKETCHED's scores: the sketch of K of every full page once, codes of 8 bits to scratch. The tokens of a page that is
// not full have no sketch: their scores are exact.
//
// Grid: (key/value head, work). A block takes some splits; each warp takes every kWarps-th block of 64 tokens of one
// after the other, whose sketch asynchronous copies bring into a ring of its own, a few blocks ahead.
#include <algorithm>

#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_scores.cuh"
#include "kernels/cuda/sketch_scores.cuh"

namespace santa::cuda {
namespace {

// As many as there is shared memory for, whatever the page size.
template <int D>
constexpr int kWarps = D <= 128 ? 8 : 4;
constexpr int kStages = 3;
constexpr int kBits = 4;  // of a key's code

// Writes a block's codes and largest scores of a quad's heads, and adds it to the sums. s: dot products.
__device__ __forceinline__ void WriteQuad(QuadScores& s, const SketchScorer& scorer, const BlockSplits& splits,
                                          int first_token, uint8_t* codes, int stride, float* block_max, bool is_head,
                                          LaneSum& sums, int lane) {
  const float scale = ScaleQuad(s, scorer, splits.begin, splits.end, first_token, lane);
  const float largest = LargestOf(s);
  const float max = fmaxf(largest * scale, -sampling::kMaxScore);
  const float steps = scale * sampling::kStepsPerOctave<uint8_t>;
  float sum = 0;
  uint8_t* to = codes + lane / 4 * stride + lane % 4;
#pragma unroll
  for (int i = 0; i < 2 * kBlockSlabs; ++i) {
    constexpr float kMost = sampling::kNoWeight<uint8_t>;
    // 0 of the largest, however large it is: a product less the rounded `max` would not be.
    const float below = s[i / 2][i % 2] - largest;
    sum += Exp2(below * scale);
    // As sampling::EncodeScore, without a conversion: 2^23 + x has x in its last bits.
    to[8 * i * stride] = static_cast<uint8_t>(__float_as_uint(fminf(fmaf(below, -steps, 0x1p23f), 0x1p23f + kMost)));
  }
  const float raised = fmaxf(sums.max, max);
  sums.sum = Exp2(sums.max - raised) * sums.sum + Exp2(max - raised) * sum;
  sums.max = raised;
  if (lane < kQuad && is_head) block_max[lane] = max;
}

// Keeps the warp's sums as those of a split, and begins anew.
template <int kWarps, int kQuads>
__device__ __forceinline__ void KeepQuads(SplitSums<kWarps, kQuad * kQuads>& shared, LaneSum (&sums)[kQuads], int split,
                                          int warp, int lane) {
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    float sum = sums[quad].sum;
#pragma unroll
    for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane < kQuad) shared.of[split][warp][kQuad * quad + lane] = make_float2(sums[quad].max, sum);
    sums[quad] = LaneSum();
  }
}

template <int D, int kQuads>
__global__ void __launch_bounds__(32 * kWarps<D>, D <= 128 ? 2 : 1)
    ScoreSketchKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  const DecodeLaunch& launch = group.decode;
  __shared__ SketchQueries<D, kQuads> queries;
  __shared__ SplitSums<kWarps<D>, kQuad * kQuads> shared;
  LetLaterKernelStart();
  if (!BlockSplits::IsFirst(group)) return WaitForEarlierKernel();
  const int item_index = launch.work[blockIdx.y].item;
  const DeviceItem& item = launch.items[item_index];
  const BlockSplits splits(group, item);
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const SketchView<D, kBits> sketches(launch, item, kv_head, 0);
  const GroupArrays arrays = group.arrays[item_index];
  const SketchGeometry<D, kBits> geometry(launch.page_shift);
  const int stage_bytes = geometry.stage_bytes(), stride = CodesOfToken(launch.group_size);
  unsigned char* ring = bytes + warp * kStages * stage_bytes;

  BlockCursor<kWarps<D>> cursor(splits, warp), ahead = cursor;
  int ahead_at = 0, at = 0;
  const auto next = [stage_bytes](int stage_at) {
    return stage_at + stage_bytes == kStages * stage_bytes ? 0 : stage_at + stage_bytes;
  };
  const auto copy_ahead = [&] {
    if (!ahead.done()) {
      sketches.CopyBlock(SharedAddress(ring) + ahead_at, geometry, ahead.block, 0, lane);
      ahead.Advance(splits, warp);
    }
    ahead_at = next(ahead_at);
    CommitCopies();
  };
  const Scorer scorer_of_keys(item, kv_head);
  WaitForEarlierKernel();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy_ahead();
  const float factor = LoadSketchQueries<kBits>(queries, launch, item, kv_head, 0, scorer_of_keys.scale);
  const SketchScorer scorer(scorer_of_keys, factor);
  __syncthreads();
  LaneSum sums[kQuads];
  int split = 0;  // that the sums are of
#pragma unroll 1
  for (; !cursor.done(); cursor.Advance(splits, warp), at = next(at)) {
    for (; split < cursor.split; ++split) KeepQuads(shared, sums, split, warp, lane);
    copy_ahead();
    WaitCopies<kStages - 1>();
    const unsigned char* stage = ring + at;
    const int block = cursor.block, first = block * sampling::kCodeBlock;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      if (quad > 0 && kQuad * quad >= launch.group_size) break;
      QuadScores s = {};
      ScoreSketched<D, kBits>(s, queries, geometry, stage, quad, first, sketches.end, lane);
      ScoreUnsketched<D>(s, launch, item, splits.begin, splits.end, kv_head, quad, first, sketches.end, factor, lane);
      WriteQuad(s, scorer, splits, first, arrays.codes(kv_head, block) + kQuad * quad, stride,
                arrays.block_max(kv_head, block) + kQuad * quad, kQuad * quad + lane < launch.group_size, sums[quad],
                lane);
    }
    __syncwarp();  // the stage has been read
  }
  for (; split < splits.count; ++split) KeepQuads(shared, sums, split, warp, lane);
  WaitCopies<0>();
  FinishSplits(shared, arrays, kv_head, splits.work->split, splits.count, launch.group_size);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {  // one kernel for all types of cache
    const int shared_bytes = kWarps<D> * kStages * SketchGeometry<D, kBits>(launch.decode.page_shift).stage_bytes();
    const auto kernel = launch.decode.group_size <= kQuad ? ScoreSketchKernel<D, 1> : ScoreSketchKernel<D, 2 * kBlocks>;
    return LaunchGroup(kernel, launch, 32 * kWarps<D>, shared_bytes, stream);
  }
};

}  // namespace

cudaError_t LaunchScoreSketch(const GroupLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
