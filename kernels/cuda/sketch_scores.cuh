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

  // The page of a block that has a sketch and is part of one; else any number.
  __device__ __forceinline__ int32_t PageOf(const Geometry& geometry, int block) const {
    const int token = block * sampling::kCodeBlock;
    return geometry.parts > 1 || token >= end ? 0 : __ldg(page_table + (token >> page_shift));
  }

  // Starts copying what there is of a block into a stage. offset: 0 for keys, SketchPartBytes for values.
  __device__ __forceinline__ void CopyBlock(uint32_t stage, const Geometry& geometry, int block, size_t offset,
                                            int lane) const {
    CopyBlock(stage, geometry, block, PageOf(geometry, block), offset, lane);
  }
  // page: of PageOf.
  __device__ __forceinline__ void CopyBlock(uint32_t stage, const Geometry& geometry, int block, int32_t page_index,
                                            size_t offset, int lane) const {
    if (geometry.parts > 1) return CopyPages(stage, geometry, block, offset, lane);
    const int token = block * sampling::kCodeBlock;
    if (token >= end) return;
    const uint8_t* page = sketch + page_index * page_bytes + offset;
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

  // Starts copying the part that begins with `token`, which lies before `end`.
  __device__ __forceinline__ void CopyPart(uint32_t to, const Geometry& geometry, int token, size_t offset,
                                           int lane) const {
    // The table has no pages of invisible tokens alone: in their place, another.
    const uint8_t* page = sketch + __ldg(page_table + (max(token, begin) >> page_shift)) * page_bytes + offset;
    const int in_page = token & ((1 << page_shift) - 1);
    const uint8_t* codes = page + in_page / 16 * Geometry::kSlabBytes;
    const uint8_t* columns = page + (1 << page_shift) / 16 * Geometry::kSlabBytes;
    const int code_bytes = geometry.part_tokens / 16 * Geometry::kSlabBytes;
    for (int at = 16 * lane; at < code_bytes; at += 16 * 32) StreamAsync16(to + at, codes + at, true);
    for (int at = 16 * lane; at < Geometry::kColumnBytes; at += 16 * 32) {
      StreamAsync16(to + code_bytes + at, columns + at, true);
    }
  }

 private:
  // Of pages shorter than a block.
  __device__ __forceinline__ void CopyPages(uint32_t stage, const Geometry& geometry, int block, size_t offset,
                                            int lane) const {
    for (int part = 0; part < geometry.parts; ++part) {
      const int token = block * sampling::kCodeBlock + part * geometry.part_tokens;
      if (token >= end) break;
      CopyPart(stage + part * geometry.part_bytes(), geometry, token, offset, lane);
    }
  }
};

// A quad's dot products of the tokens of a block that have a sketch, those before `sketched_end`: others stay as they
// are.
template <int D, int kBits, int kQuads>
__device__ __forceinline__ void ScoreSketched(QuadScores& s, const SketchQueries<D, kQuads>& queries,
                                              const SketchGeometry<D, kBits>& geometry, const unsigned char* stage,
                                              int quad, int first_token, int sketched_end, int lane) {
  using Geometry = SketchGeometry<D, kBits>;
  if (geometry.parts == 1) {
    if (first_token >= sketched_end) return;
    const PageQueries<D, kBits> page[] = {{queries, quad, stage + kBlockSlabs * Geometry::kSlabBytes, lane}};
    return ScoreSlabs<D, kBits>(s, stage, Geometry::kSlabBytes, page, lane);
  }
#pragma unroll
  for (int slab = 0; slab < kBlockSlabs; ++slab) {
    if (first_token + slab * kSlabRows >= sketched_end) return;
    const int part = slab * kSlabRows / geometry.part_tokens, in_part = slab - part * geometry.part_tokens / kSlabRows;
    const unsigned char* codes = stage + part * geometry.part_bytes();
    const PageQueries<D, kBits> page[] = {
        {queries, quad, codes + geometry.part_tokens / 16 * Geometry::kSlabBytes, lane}};
    float(&of_slab)[1][2] = *reinterpret_cast<float(*)[1][2]>(&s[slab]);
    ScoreSlabs<D, kBits>(of_slab, codes + in_part * Geometry::kSlabBytes, Geometry::kSlabBytes, page, lane);
  }
}

// Exact dot products of a slab whose tokens have no sketch, as ScoreSlabs gives them. Tokens [begin, end) are visible.
template <typename Kv, int D>
__device__ __noinline__ float2 ScoreExactly(const DecodeLaunch& launch, const DeviceItem& item, int begin, int end,
                                            int kv_head, int quad, int token, int lane) {
  const CacheView<Kv, D> view(launch, item, {.begin = begin, .end = end}, kv_head);
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
__device__ float2 ScoreExactly(const DecodeLaunch& launch, const DeviceItem& item, int begin, int end, int kv_head,
                               int quad, int token, int lane) {
  switch (launch.dtype) {
    case DType::kBFloat16:
      return ScoreExactly<__nv_bfloat16, D>(launch, item, begin, end, kv_head, quad, token, lane);
    case DType::kFloat16:
      return ScoreExactly<__half, D>(launch, item, begin, end, kv_head, quad, token, lane);
    default:
      return ScoreExactly<__nv_fp8_e4m3, D>(launch, item, begin, end, kv_head, quad, token, lane);
  }
}

// A quad's dot products of the tokens of a block that have none, in units of a sketch's, which `factor` has brought its
// queries to.
template <int D>
__device__ __forceinline__ void ScoreUnsketched(QuadScores& s, const DecodeLaunch& launch, const DeviceItem& item,
                                                int begin, int end, int kv_head, int quad, int first_token,
                                                int sketched_end, float factor, int lane) {
  if (first_token + sampling::kCodeBlock <= sketched_end) return;
#pragma unroll
  for (int slab = 0; slab < kBlockSlabs; ++slab) {
    const int token = first_token + slab * kSlabRows;
    if (token < sketched_end || token >= end) continue;
    const float2 exact = ScoreExactly<D>(launch, item, begin, end, kv_head, quad, token, lane);
    s[slab][0] = Hold(exact.x * factor);
    s[slab][1] = Hold(exact.y * factor);
  }
}

// A lane's running softmax of its head: the largest score, which all lanes of the head know, and its share of the sum.
struct LaneSum {
  float max = kNegativeInfinity, sum = 0;
};

// From dot products to scores in log2 units, with no bound to them: scale > 0 is small enough.
struct SketchScorer {
  float scale, soft_cap;

  SketchScorer() = default;
  // factor: that of the queries.
  __device__ SketchScorer(const Scorer& scorer, float factor)
      : scale(fminf(scorer.scale / factor, 0x1p90f)), soft_cap(scorer.soft_cap) {}

  // Brings dot products to scores but for a factor, which it returns.
  __device__ __forceinline__ float Cap(QuadScores& s) const {
    if (soft_cap <= 0) return scale;
#pragma unroll
    for (int i = 0; i < 2 * kBlockSlabs; ++i) {
      float& x = s[i / 2][i % 2];
      x = soft_cap * tanhf(x * scale / soft_cap);
    }
    return 1;
  }
};

// Brings a block's dot products to scores: their factor, and what is outside [begin, end) at -inf.
__device__ __forceinline__ float ScaleQuad(QuadScores& s, const SketchScorer& scorer, int begin, int end,
                                           int first_token, int lane) {
  const float scale = scorer.Cap(s);
  if (first_token < begin || first_token + sampling::kCodeBlock > end) {
#pragma unroll
    for (int i = 0; i < 2 * kBlockSlabs; ++i) {
      const int token = first_token + 8 * i + lane / 4;
      if (token < begin || token >= end) s[i / 2][i % 2] = kNegativeInfinity;
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
