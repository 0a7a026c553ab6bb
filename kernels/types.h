// The names that the contract (kernels/attention.h) shares with device code: a header without dependencies, which nvcc
// reads once for each architecture of each file.
#ifndef SANTA_KERNELS_TYPES_H_
#define SANTA_KERNELS_TYPES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace santa {

enum class DType : uint8_t {
  kFloat32,
  kBFloat16,
  kFloat16,
  // 4 bits of exponent, 3 of mantissa, no infinities, +-448 the largest (OCP 8-bit floating point, "e4m3fn"). Of a
  // cache only: q, o, k and v come and go in one of the others.
  kFloat8E4M3,
};

constexpr size_t SizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat8E4M3 ? 1 : 2; }
std::string_view Name(DType dtype);  // "fp32", "bf16", "fp16", "fp8_e4m3"

// The estimators of "Stochastic Sparse Attention for Memory-Bound Inference" (arXiv 2605.01910). p[h] is the softmax of
// s[h] over the visible tokens, S the sample count per query head. All but S2ANTA_PROP with kLargestRemainder are
// unbiased for o; all read every visible K row, and value rows only where a draw fell. Their lse is exact.
// With S >= n every method computes the exact result. Score draws (AttentionOptions::score_draws), which BERNOULLI_QK
// is made of and the others may have too, put estimated scores in place of the exact ones in all of this.
enum class Method : uint8_t {
  kExact,
  kSanta,        // S independent draws from p[h]; o = mean of the drawn value rows
  kStratified,   // draw j at u_j = (j + U_j) / S through the inverse CDF of p[h]
  kSystematic,   // draw j at u_j = (j + U) / S: row i is drawn floor(S C_i + U) - floor(S C_{i-1} + U) times
  kS2antaFlash,  // a fixed budget S_t for each tile, systematic on the tile's own softmax, tiles merged by their mass
  kS2antaProp,   // S split over the tiles in proportion to their mass, then systematic inside each tile
  // Beyond the paper (kernels/sampling/inclusion.h): one draw for a whole group, in which S counts distinct rows of a
  // key/value head, each read once for all of its query heads. Rows that matter much are read for certain.
  kCoordinated,  // probabilities from the exact scores: all K is read; unbiased for o, lse exact
  // Probabilities from the cache's sketch, and K and V of the drawn rows only: numerator and denominator of o are
  // unbiased, o and lse (estimated too) consistent, with a bias of O(1 / S). Tokens of a page that is not full have no
  // sketch; they are read always, beside the S. Needs KvLayout::sketch. With a sketch of values too it is a difference
  // estimator: what the sketches say of all rows, corrected by the drawn ones.
  kSketched,
  // The paper's score stage alone (kernels/sampling/ternary_query.h): scores of a query that is the mean of R ternary
  // ones, and all value rows. Scores are unbiased, their softmax and lse are not. Needs KeyOrder::kFeatureMajor.
  kBernoulliQk,
};
inline constexpr std::array kAllMethods = {Method::kExact,       Method::kSanta,       Method::kStratified,
                                           Method::kSystematic,  Method::kS2antaFlash, Method::kS2antaProp,
                                           Method::kCoordinated, Method::kSketched,    Method::kBernoulliQk};
std::string_view Name(Method method);  // "EXACT", "SANTA", ..., as in the API

// Whether it reads a sample of the value rows, and so takes a sample count; the others read them all.
constexpr bool DrawsValues(Method method) { return method != Method::kExact && method != Method::kBernoulliQk; }

// How S2ANTA_PROP turns a tile's share S * mass_t into a whole number of draws.
enum class BudgetRounding : uint8_t {
  kSystematic,        // one systematic draw over the tile masses: E[S_t] = S * mass_t, unbiased
  kLargestRemainder,  // as published; a tile rounded to 0 is never seen, hence a small bias
};

// How K of one head of one page lies in memory. V is token-major always.
enum class KeyOrder : uint8_t {
  kTokenMajor,    // [token][D]
  kFeatureMajor,  // [D][token]: a feature that is not asked for is memory that is not read
};
inline constexpr std::array kAllKeyOrders = {KeyOrder::kTokenMajor, KeyOrder::kFeatureMajor};
std::string_view Name(KeyOrder order);  // "token", "feature"

// What a cache keeps of each full page beside the page itself (kernels/sampling/sketch.h): keys, and values, in so many
// bits a feature.
enum class Sketch : uint8_t { kNone, kK4, kK4V4, kK8V8 };
inline constexpr std::array kAllSketches = {Sketch::kNone, Sketch::kK4, Sketch::kK4V4, Sketch::kK8V8};
std::string_view Name(Sketch sketch);  // "none", "k4", "k4v4", "k8v8"
constexpr int KeyBits(Sketch sketch) { return sketch == Sketch::kNone ? 0 : sketch == Sketch::kK8V8 ? 8 : 4; }
constexpr int ValueBits(Sketch sketch) { return sketch == Sketch::kK4V4 ? 4 : sketch == Sketch::kK8V8 ? 8 : 0; }

}  // namespace santa

#endif  // SANTA_KERNELS_TYPES_H_
