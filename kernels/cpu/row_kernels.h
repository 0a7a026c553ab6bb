// The inner loops of decode attention over rows of K and V, one table of functions for each vector instruction set,
// chosen at run time for the CPU that the program meets.
//
// Query heads come in chunks of up to four that share the loads of a row. Scores and what is made of them (weights,
// masses) are interleaved, [row][pitch] with pitch = Pitch(heads): number `row * pitch + head`. A per-head value beside
// them is four floats, HeadVector, repeated with period pitch: it then lines up with every four interleaved numbers.
// Score arrays must have room for the rows rounded up to kRowGroup, plus kRowGroup more.
//
// Packed vectors (queries, sums of value rows) have padded_dim floats a head, in an order of the kernels' own; the
// padding is 0.
//
// All functions are thread safe and allocate nothing.
#ifndef SANTA_KERNELS_CPU_ROW_KERNELS_H_
#define SANTA_KERNELS_CPU_ROW_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/sampling/inclusion.h"

namespace santa::cpu {

inline constexpr int kChunkHeads = 4;   // query heads in a chunk, at most
inline constexpr int kRowGroup = 16;    // rows whose masses are also summed up
inline constexpr int kMaxRun = 64;      // rows of one Run, at most: they stay in the L1 cache between two chunks
inline constexpr int kBlockRows = 256;  // rows of a block: their weights stay in the L1 cache, K and V in L2

constexpr int Pitch(int heads) { return heads == 3 ? 4 : heads; }

struct HeadVector {
  float lane[4];
};

// Memory that will be needed soon, fetched to the L2 cache beside other work.
struct Ahead {
  const uint8_t* begin = nullptr;
  int64_t bytes = 0;
};

// Consecutive rows of K or V, in one run of memory.
struct ScoreArgs {
  const uint8_t* rows = nullptr;
  int num_rows = 0;  // [1, kMaxRun]
  int head_dim = 0;
  int heads = 0;                           // [1, kChunkHeads]
  const float* queries = nullptr;          // packed, [heads][padded_dim]
  const uint16_t* bf16_queries = nullptr;  // the same from pack_bf16, and taken instead; or null
  float* scores = nullptr;  // written: dot products, [num_rows][pitch], and garbage up to kRowGroup rows beyond
  Ahead ahead = {};
};

// Tokens of one page whose keys lie feature by feature.
struct FeatureScoreArgs {
  // The first token's feature 0; a token's features are `stride` bytes apart, tokens one element. Elements up to 2 *
  // lanes - 1 beyond the last token's may be read, and have no effect.
  const uint8_t* keys = nullptr;
  int64_t stride = 0;
  int num_rows = 0;                   // tokens, [1, kMaxRun]
  const int32_t* features = nullptr;  // that are read; no other's memory is
  int num_features = 0;               // >= 0
  int heads = 0;                      // [1, kChunkHeads]
  const float* queries = nullptr;     // [num_features][heads]
  float* scores = nullptr;            // as ScoreArgs::scores
  const uint8_t* ahead = nullptr;     // as keys, of tokens whose same features will be needed soon; or null
};

struct AccumulateArgs {
  const uint8_t* rows = nullptr;  // consecutive rows, or null: row_pointers
  const uint8_t* const* row_pointers = nullptr;
  int num_rows = 0;  // >= 0
  int head_dim = 0;
  int heads = 0;
  const float* weights = nullptr;     // [num_rows][pitch]
  float* sums = nullptr;              // packed, [heads][padded_dim]: += weight * row
  const uint8_t* prefetch = nullptr;  // beside `rows`: as many bytes that will be needed soon, or null
  Ahead ahead = {};                   // beside `row_pointers`
  // Beside `row_pointers`: for each row one that will be needed soon, or null.
  const uint8_t* const* beside = nullptr;
};

inline constexpr int kMaxPageSize = 256;

// Tokens of one page by its sketch (kernels/cpu/sketches.h).
struct SketchScoreArgs {
  const uint8_t* codes = nullptr;
  const uint16_t* low = nullptr;  // [head_dim], half precision
  const uint16_t* step = nullptr;
  int bits = 0;  // 4 or 8
  int page_size = 0;
  int first = 0;  // token of the page
  int num_rows = 0;
  int head_dim = 0;
  int heads = 0;                   // [1, kChunkHeads]
  const float* queries = nullptr;  // [heads][head_dim], as they are
  float* scores = nullptr;         // as ScoreArgs::scores
  Ahead ahead = {};
};

// Values of one page by its sketch, for the heads of a chunk.
struct SketchSumArgs {
  const uint8_t* codes = nullptr;  // of the first row
  const uint16_t* low = nullptr;   // [head_dim], half precision
  const uint16_t* step = nullptr;
  int bits = 0;  // 4 or 8
  int num_rows = 0;
  int head_dim = 0;
  int heads = 0;                   // [1, kChunkHeads]
  const float* weights = nullptr;  // [num_rows][pitch]
  HeadVector factors = {};         // of all weights
  float* sums = nullptr;           // [heads][head_dim], in order, not packed
};

// Rows of V beside what their sketches say of them.
struct SketchRowArgs {
  const uint8_t* const* rows = nullptr;
  const uint8_t* const* codes = nullptr;    // of each row; null where it has no sketch, which then says what it is
  const uint16_t* const* ranges = nullptr;  // of each row's page: low[head_dim] and then step[head_dim], half precision
  int bits = 0;                             // 4 or 8
  int num_rows = 0;
  int head_dim = 0;
  float* sketched = nullptr;     // written: packed, [num_rows][padded_dim]
  float* differences = nullptr;  // likewise: row - sketched
};

// Pairs of rows.
struct PairArgs {
  const uint8_t* const* first = nullptr;
  const uint8_t* const* second = nullptr;
  int num_pairs = 0;
  int head_dim = 0;
  float* out = nullptr;  // written, of each pair
};

// Draws on the rows of a block for the heads of a chunk.
struct SystematicArgs {
  const uint32_t* masses = nullptr;  // [num_rows][pitch]
  int num_rows = 0;
  int pitch = 0;
  // For each head (repeated with period pitch, as HeadVector): the draws below a cumulative mass C are
  // ceil(C * draws_per_mass - phase), where phase = offset / total, in [0, 1). A head without draws: 0 and 0.5.
  double draws_per_mass[4];
  double phase[4];
  double below[4];  // C before the first row; at most 2^53
  Ahead ahead = {};
};

struct RowKernels {
  const char* target;  // instruction set, for people
  int lanes;           // floats in a vector

  // Floats a head in packed vectors.
  int padded_dim(int head_dim) const { return (head_dim + 2 * lanes - 1) / (2 * lanes) * (2 * lanes); }

  void (*pack)(const float* vector, int head_dim, float* packed);
  // Packs a query as bf16, [padded_dim], which `score` is faster with. False, with no result, for a query that it would
  // not score as well: some number is not a bf16, or beyond bounds. Null where `score` makes no use of it: then
  // bf16_queries must be null.
  bool (*pack_bf16)(const float* vector, int head_dim, uint16_t* packed);
  void (*unpack)(const float* packed, int head_dim, float factor, float* vector);  // times `factor`
  void (*score)(const ScoreArgs& args);
  void (*score_features)(const FeatureScoreArgs& args);
  void (*accumulate)(const AccumulateArgs& args);

  // Turns dot products into scores (sampling::Score) in place, pads them with -inf up to a multiple of kRowGroup rows,
  // and raises `max` to the largest of each head.
  void (*finish_scores)(float* scores, int num_rows, int pitch, float scale, float soft_cap, HeadVector* max);

  // weights = exp(scores - max), which may be the same array, and their sums. 0 where it would be subnormal. `weights`
  // may be null: only the sums. Roughly: within 9e-5, for weights that choose rows and are in no answer.
  HeadVector (*exponentials)(const float* scores, int num_rows, int pitch, const HeadVector& max, float* weights,
                             const Ahead& ahead);
  HeadVector (*rough_exponentials)(const float* scores, int num_rows, int pitch, const HeadVector& max, float* weights,
                                   const Ahead& ahead);

  // In place of the weights (uint32 in the same array) their masses (sampling::RowMass), and those of each group of
  // kRowGroup rows: group_masses[group][pitch].
  void (*masses)(float* weights, int num_rows, int pitch, uint64_t* group_masses);

  // How often systematic draws (kernels/sampling/draws.h) fall on each row of a block: counts[row][pitch], and bit r %
  // 16 of drawn[r / 16] set where any head's count is not 0; for kBlockRows rows. False, with no result, where the
  // floating point of this function cannot be sure of some count: then draw them one by one.
  bool (*systematic_counts)(const SystematicArgs& args, float* counts, uint16_t* drawn);

  // sums[row][pitch]: masses of rows up to and with `row`; for rows from num_rows to kBlockRows the last sum.
  void (*cumulate)(const uint32_t* masses, int num_rows, int pitch, uint64_t* sums);

  // Of pairs of rows: x . y, and |x - y|^2.
  void (*dots)(const PairArgs& args);
  void (*distances)(const PairArgs& args);

  // For draws of a whole group, of rows of a block. squares[row] += the squares of a chunk's weights times their heads'
  // factors, a factor of 0 leaving its head out (arrays as ScoreArgs::scores have room); histogram[InclusionBin] += 1
  // for each of the squares, those of 0 only if `zeros`; and sampling::Inclusion of each row, with their sum.
  void (*add_squares)(const float* weights, int num_rows, int pitch, const HeadVector& factors, float* squares);
  void (*count_bins)(const float* squares, int num_rows, bool zeros, uint32_t* histogram);
  uint64_t (*inclusions)(const sampling::InclusionThreshold& threshold, const float* squares, int num_rows,
                         uint32_t* inclusions);
  // The rows of them that the draw reads, as numbers from `first` on: written to `rows`, with room for all and
  // kRowGroup more; returns how many. past: of the line, beyond the last multiple of sampling::kCertain; moved on.
  int (*draw_rows)(const uint32_t* inclusions, int num_rows, int32_t first, uint32_t* past, int32_t* rows);

  // sums += factor * weight * row as the sketch has it; returns the sums of factor * weight.
  HeadVector (*sketch_sums)(const SketchSumArgs& args);
  void (*sketch_rows)(const SketchRowArgs& args);
  // `accumulate` and `dots` of rows that are packed vectors, with padded_dim as their head_dim.
  void (*accumulate_packed)(const AccumulateArgs& args);
  void (*dots_packed)(const PairArgs& args);

  // `count` a multiple of `lanes`, as in packed vectors.
  void (*scale)(float* values, float factor, int count);                           // values *= factor
  void (*add_scaled)(float* values, const float* other, float factor, int count);  // values += factor * other
};

// The table for rows of `dtype` and the best instruction set of this CPU.
const RowKernels& GetRowKernels(DType dtype);

// What scores by a sketch, whatever the rows' type.
using SketchScorer = void (*)(const SketchScoreArgs& args);
SketchScorer GetSketchScorer();

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_ROW_KERNELS_H_
