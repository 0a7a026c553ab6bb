// SKETCHED's scores: the sketch of K of every full page once, codes of 8 bits to scratch. The tokens of a page that is
// not full have no sketch: their scores are exact.
//
// Grid: (key/value head, work). A block takes some splits; each warp takes every kWarps-th block of 64 tokens of one
// after the other, whose sketch asynchronous copies bring into a ring of its own, a few blocks ahead.
#include <algorithm>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/group_inclusion.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_scores.cuh"
#include "kernels/cuda/key_rows.cuh"
#include "kernels/cuda/sketch_products.cuh"

namespace santa::cuda {
namespace {

// As many as there is shared memory for, whatever the page size.
template <int D>
constexpr int kWarps = D <= 128 ? 8 : 4;
constexpr int kStages = 3;

// A block of 64 tokens of one head: parts of one page, or several whole ones, each with its codes and columns.
template <int D>
struct Geometry {
  int part_tokens, parts;

  explicit __host__ __device__ Geometry(int page_shift)
      : part_tokens(page_shift < 6 ? 1 << page_shift : sampling::kCodeBlock),
        parts(sampling::kCodeBlock / part_tokens) {}
  __host__ __device__ int part_bytes() const { return part_tokens / 16 * SketchSlabBytes(D) + SketchColumnBytes(D); }
  __host__ __device__ int stage_bytes() const { return parts * part_bytes(); }
};

// Where the sketches of one head's pages lie.
template <int D>
struct SketchView {
  const uint8_t* sketch;
  const int32_t* page_table;
  size_t page_bytes;  // of all heads
  int page_shift;
  int begin, end;  // the first visible token; the end of full pages

  __device__ SketchView(const DecodeLaunch& launch, const DeviceItem& item, int kv_head)
      : sketch(static_cast<const uint8_t*>(item.sketch) + kv_head * SketchHeadBytes(D, 1 << launch.page_shift)),
        page_table(item.page_table),
        page_bytes(launch.num_kv_heads * SketchHeadBytes(D, 1 << launch.page_shift)),
        page_shift(launch.page_shift),
        begin(item.begin),
        end(FullPagesEnd(item, launch.page_shift)) {}

  // Starts copying what there is of a block into a stage.
  __device__ __forceinline__ void CopyBlock(uint32_t stage, const Geometry<D>& geometry, int block, int lane) const {
    if (geometry.parts > 1) return CopyPages(stage, geometry, block, lane);
    const int token = block * sampling::kCodeBlock;
    if (token >= end) return;
    const uint8_t* page = sketch + __ldg(page_table + (token >> page_shift)) * page_bytes;
    const uint8_t* codes = page + (token & ((1 << page_shift) - 1)) / 16 * SketchSlabBytes(D) + 16 * lane;
    const uint8_t* columns = page + (1 << page_shift) / 16 * SketchSlabBytes(D) + 16 * lane;
    constexpr int kCodeBytes = kBlockSlabs * SketchSlabBytes(D);
    static_assert(kCodeBytes % (16 * 32) == 0);
#pragma unroll
    for (int at = 0; at < kCodeBytes; at += 16 * 32) StreamAsync16(stage + 16 * lane + at, codes + at, true);
#pragma unroll
    for (int at = 0; at < SketchColumnBytes(D); at += 16 * 32) {
      if (at + 16 * lane < SketchColumnBytes(D)) StreamAsync16(stage + kCodeBytes + 16 * lane + at, columns + at, true);
    }
  }

 private:
  // Of pages shorter than a block.
  __device__ __forceinline__ void CopyPages(uint32_t stage, const Geometry<D>& geometry, int block, int lane) const {
    for (int part = 0; part < geometry.parts; ++part) {
      const int token = block * sampling::kCodeBlock + part * geometry.part_tokens;
      if (token >= end) break;
      // The table has no pages of invisible tokens alone: in their place, another.
      const uint8_t* page = sketch + __ldg(page_table + (max(token, begin) >> page_shift)) * page_bytes;
      const int in_page = token & ((1 << page_shift) - 1);
      const uint8_t* codes = page + in_page / 16 * SketchSlabBytes(D);
      const uint8_t* columns = page + (1 << page_shift) / 16 * SketchSlabBytes(D);
      const uint32_t to = stage + part * geometry.part_bytes();
      const int code_bytes = geometry.part_tokens / 16 * SketchSlabBytes(D);
      for (int at = 16 * lane; at < code_bytes; at += 16 * 32) StreamAsync16(to + at, codes + at, true);
      for (int at = 16 * lane; at < SketchColumnBytes(D); at += 16 * 32) {
        StreamAsync16(to + code_bytes + at, columns + at, true);
      }
    }
  }
};

// Exact dot products of a slab whose tokens have no sketch, as ScoreSlab gives them.
template <typename Kv, int D>
__device__ __noinline__ float2 ScoreExactly(const DecodeLaunch& launch, const DeviceItem& item,
                                            const BlockSplits& splits, int kv_head, int quad, int token, int lane) {
  const CacheView<Kv, D> view(launch, item, {.begin = splits.begin, .end = splits.end}, kv_head);
  KeyRows<Kv, D> rows;
  LoadSlabRows(rows, view, token, lane);
  QueryFragment<D> q[1];
  const int head = kQuad * quad + lane / 8;
  const auto* row = static_cast<const uint16_t*>(item.q) + (kv_head * launch.group_size + head) * D;
  LoadRowQuery<Kv, D>(q[0], lane / 4 % 2 == 0 && head < launch.group_size ? row : nullptr, lane);
  float s[1][4];
  ScoreRows<Kv, D, 1>(s, rows, q);
  return {s[0][0], s[0][2]};
}
template <int D>
__device__ float2 ScoreExactly(const DecodeLaunch& launch, const DeviceItem& item, const BlockSplits& splits,
                               int kv_head, int quad, int token, int lane) {
  switch (launch.dtype) {
    case DType::kBFloat16:
      return ScoreExactly<__nv_bfloat16, D>(launch, item, splits, kv_head, quad, token, lane);
    case DType::kFloat16:
      return ScoreExactly<__half, D>(launch, item, splits, kv_head, quad, token, lane);
    default:
      return ScoreExactly<__nv_fp8_e4m3, D>(launch, item, splits, kv_head, quad, token, lane);
  }
}

// Holds an exact dot product, in units of a sketch's, to what a score has room for. NaN stays.
__device__ __forceinline__ float Hold(float dot) {
  constexpr float kMost = 0x1p36f;  // which no sketch's comes near
  if (dot > kMost) dot = kMost;
  if (dot < -kMost) dot = -kMost;
  return dot;
}

// A lane's running softmax of its head: the largest score, which all lanes of the head know, and its share of the sum.
struct LaneSum {
  float max = kNegativeInfinity, sum = 0;
};

// From dot products to scores in log2 units, with no bound to them: scale > 0 is small enough.
struct SketchScorer {
  float scale, soft_cap;

  // factor: that of the queries.
  __device__ SketchScorer(const DeviceItem& item, int kv_head, float factor)
      : scale(fminf(Scorer(item, kv_head).scale / factor, 0x1p90f)), soft_cap(item.soft_cap * kLog2E) {}
};

// Writes a block's codes and largest scores of a quad's heads, and adds it to the sums. s: dot products.
__device__ __forceinline__ void WriteQuad(QuadScores& s, const SketchScorer& scorer, const BlockSplits& splits,
                                          int first_token, uint8_t* codes, int stride, float* block_max, bool is_head,
                                          LaneSum& sums, int lane) {
  float scale = scorer.scale;
  if (scorer.soft_cap > 0) {
#pragma unroll
    for (int i = 0; i < 2 * kBlockSlabs; ++i) {
      float& x = s[i / 2][i % 2];
      x = scorer.soft_cap * tanhf(x * scale / scorer.soft_cap);
    }
    scale = 1;
  }
  if (first_token < splits.begin || first_token + sampling::kCodeBlock > splits.end) {
#pragma unroll
    for (int i = 0; i < 2 * kBlockSlabs; ++i) {
      const int token = first_token + 8 * i + lane / 4;
      if (token < splits.begin || token >= splits.end) s[i / 2][i % 2] = kNegativeInfinity;
    }
  }
  float largest = kNegativeInfinity;
#pragma unroll
  for (int i = 0; i < 2 * kBlockSlabs; ++i) largest = fmaxf(largest, s[i / 2][i % 2]);
#pragma unroll
  for (int step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
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
  const SketchView<D> sketches(launch, item, kv_head);
  const GroupArrays arrays = group.arrays[item_index];
  const Geometry<D> geometry(launch.page_shift);
  const int stage_bytes = geometry.stage_bytes(), stride = CodesOfToken(launch.group_size);
  unsigned char* ring = bytes + warp * kStages * stage_bytes;

  BlockCursor<kWarps<D>> cursor(splits, warp), ahead = cursor;
  int ahead_at = 0, at = 0;
  const auto next = [stage_bytes](int stage_at) {
    return stage_at + stage_bytes == kStages * stage_bytes ? 0 : stage_at + stage_bytes;
  };
  const auto copy_ahead = [&] {
    if (!ahead.done()) {
      sketches.CopyBlock(SharedAddress(ring) + ahead_at, geometry, ahead.block, lane);
      ahead.Advance(splits, warp);
    }
    ahead_at = next(ahead_at);
    CommitCopies();
  };
  WaitForEarlierKernel();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy_ahead();
  const float factor = LoadSketchQueries(queries, launch, item, kv_head, Scorer(item, kv_head).scale);
  const SketchScorer scorer(item, kv_head, factor);
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
      QuadScores s;
      if (geometry.parts == 1 && first < sketches.end) {
        const PageQueries<D> page(queries, quad, stage + kBlockSlabs * SketchSlabBytes(D), lane);
#pragma unroll
        for (int slab = 0; slab < kBlockSlabs; ++slab) {
          ScoreSlab<D>(s[slab], stage + slab * SketchSlabBytes(D), page, lane);
        }
      } else {
#pragma unroll
        for (int slab = 0; slab < kBlockSlabs; ++slab) {
          const int token = first + slab * kSlabRows;
          s[slab][0] = s[slab][1] = 0;
          if (token < sketches.end) {
            const int part = slab * kSlabRows / geometry.part_tokens;
            const unsigned char* codes = stage + part * geometry.part_bytes();
            const PageQueries<D> page(queries, quad, codes + geometry.part_tokens / 16 * SketchSlabBytes(D), lane);
            const int in_part = slab - part * geometry.part_tokens / kSlabRows;
            ScoreSlab<D>(s[slab], codes + in_part * SketchSlabBytes(D), page, lane);
          } else if (token < splits.end) {
            const float2 exact = ScoreExactly<D>(launch, item, splits, kv_head, quad, token, lane);
            s[slab][0] = Hold(exact.x * factor);
            s[slab][1] = Hold(exact.y * factor);
          }
        }
      }
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
    const int shared_bytes = kWarps<D> * kStages * Geometry<D>(launch.decode.page_shift).stage_bytes();
    const auto kernel = launch.decode.group_size <= kQuad ? ScoreSketchKernel<D, 1> : ScoreSketchKernel<D, 2 * kBlocks>;
    return LaunchGroup(kernel, launch, 32 * kWarps<D>, shared_bytes, stream);
  }
};

}  // namespace

cudaError_t LaunchScoreSketch(const GroupLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
