// What the kernels that score by sketches share: how a block of 64 tokens' sketch comes to a warp, and scores of the
// tokens that have none.
#ifndef SANTA_KERNELS_CUDA_SKETCH_SCORES_CUH_
#define SANTA_KERNELS_CUDA_SKETCH_SCORES_CUH_

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/group_inclusion.cuh"
#include "kernels/cuda/group_splits.cuh"
#include "kernels/cuda/key_rows.cuh"
#include "kernels/cuda/sketch_products.cuh"

namespace santa::cuda {

// A block of 64 tokens of one head, of keys or of values: parts of one page, or several whole ones, each with its codes
// of kBits and columns.
template <int D, int kBits>
struct SketchGeometry {
  static constexpr int kSlabBytes = SketchSlabBytes(D, kBits), kColumnBytes = SketchColumnBytes(D);
  int part_tokens, parts;

  explicit __host__ __device__ SketchGeometry(int page_shift)
      : part_tokens(page_shift < 6 ? 1 << page_shift : sampling::kCodeBlock),
        parts(sampling::kCodeBlock / part_tokens) {}
  __host__ __device__ int part_bytes() const { return part_tokens / 16 * kSlabBytes + kColumnBytes; }
  __host__ __device__ int stage_bytes() const { return parts * part_bytes(); }
};

// Where the sketches of one head's pages lie.
template <int D, int kBits>
struct SketchView {
  using Geometry = SketchGeometry<D, kBits>;
  const uint8_t* sketch;
  const int32_t* page_table;
  size_t page_bytes;  // of all heads
  int page_shift;
  int begin, end;  // the first visible token; the end of full pages

  // value_bits: 0 where values have no sketch.
  __device__ SketchView(const DecodeLaunch& launch, const DeviceItem& item, int kv_head, int value_bits)
      : sketch(static_cast<const uint8_t*>(item.sketch) +
               kv_head * SketchHeadBytes(D, 1 << launch.page_shift, kBits, value_bits)),
        page_table(item.page_table),
        page_bytes(launch.num_kv_heads * SketchHeadBytes(D, 1 << launch.page_shift, kBits, value_bits)),
        page_shift(launch.page_shift),
        begin(item.begin),
        end(FullPagesEnd(item, launch.page_shift)) {}

  // Starts copying what there is of a block into a stage. offset: 0 for keys, SketchPartBytes for values.
  __device__ __forceinline__ void CopyBlock(uint32_t stage, const Geometry& geometry, int block, size_t offset,
                                            int lane) const {
    if (geometry.parts > 1) return CopyPages(stage, geometry, block, offset, lane);
    const int token = block * sampling::kCodeBlock;
    if (token >= end) return;
    const uint8_t* page = sketch + __ldg(page_table + (token >> page_shift)) * page_bytes + offset;
    const uint8_t* codes = page + (token & ((1 << page_shift) - 1)) / 16 * Geometry::kSlabBytes + 16 * lane;
    const uint8_t* columns = page + (1 << page_shift) / 16 * Geometry::kSlabBytes + 16 * lane;
    constexpr int kCodeBytes = kBlockSlabs * Geometry::kSlabBytes;
    static_assert(kCodeBytes % (16 * 32) == 0);
#pragma unroll
    for (int at = 0; at < kCodeBytes; at += 16 * 32) StreamAsync16(stage + 16 * lane + at, codes + at, true);
#pragma unroll
    for (int at = 0; at < Geometry::kColumnBytes; at += 16 * 32) {
      if (at + 16 * lane < Geometry::kColumnBytes) {
        StreamAsync16(stage + kCodeBytes + 16 * lane + at, columns + at, true);
      }
    }
  }

 private:
  // Of pages shorter than a block.
  __device__ __forceinline__ void CopyPages(uint32_t stage, const Geometry& geometry, int block, size_t offset,
                                            int lane) const {
    for (int part = 0; part < geometry.parts; ++part) {
      const int token = block * sampling::kCodeBlock + part * geometry.part_tokens;
      if (token >= end) break;
      // The table has no pages of invisible tokens alone: in their place, another.
      const uint8_t* page = sketch + __ldg(page_table + (max(token, begin) >> page_shift)) * page_bytes + offset;
      const int in_page = token & ((1 << page_shift) - 1);
      const uint8_t* codes = page + in_page / 16 * Geometry::kSlabBytes;
      const uint8_t* columns = page + (1 << page_shift) / 16 * Geometry::kSlabBytes;
      const uint32_t to = stage + part * geometry.part_bytes();
      const int code_bytes = geometry.part_tokens / 16 * Geometry::kSlabBytes;
      for (int at = 16 * lane; at < code_bytes; at += 16 * 32) StreamAsync16(to + at, codes + at, true);
      for (int at = 16 * lane; at < Geometry::kColumnBytes; at += 16 * 32) {
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

// Brings a block's dot products to scores: their factor, and what is invisible at -inf.
__device__ __forceinline__ float ScaleQuad(QuadScores& s, const SketchScorer& scorer, const BlockSplits& splits,
                                           int first_token, int lane) {
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
  return scale;
}

// A head's largest, for all of its lanes.
__device__ __forceinline__ float LargestOf(const QuadScores& s) {
  float largest = kNegativeInfinity;
#pragma unroll
  for (int i = 0; i < 2 * kBlockSlabs; ++i) largest = fmaxf(largest, s[i / 2][i % 2]);
#pragma unroll
  for (int step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  return largest;
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SKETCH_SCORES_CUH_
