// A backend with sequences in it, as the suite's tests need them: pages in a shuffled order, everything that no token
// was stored in poisoned with NaN, outputs between guard bytes.
#ifndef SANTA_KERNELS_TESTING_CACHE_H_
#define SANTA_KERNELS_TESTING_CACHE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/estimators.h"
#include "kernels/testing/backend_suite.h"

namespace santa::testing {

// Keys and values of `count` tokens, [count][H_kv][D].
struct Tokens {
  int64_t count = 0;
  std::vector<double> k;
  std::vector<double> v;
};

std::vector<double> RandomNumbers(size_t count, double deviation, std::mt19937_64& random);

// Standard normal keys and values.
Tokens RandomTokens(const KvLayout& layout, int64_t count, std::mt19937_64& random);

// One sequence in one layer.
struct Sequence {
  int32_t layer = 0;
  std::vector<int32_t> pages;
  uint64_t sampling_key = 1;
  Tokens tokens;  // as stored: rounded to the layout's type
};

struct Query {
  const Sequence* sequence = nullptr;
  int64_t num_tokens = 0;  // 0: all of the sequence
  AttentionOptions options = {};
  std::vector<float> sink_logits = {};  // [H], or empty
  DType io_dtype = DType::kFloat32;
  std::vector<double> q = {};  // [H][D], rounded to io_dtype on the way
  // [H][D]: what score draws put in place of q (DrawnQuery), which is the query to the reference; or empty.
  std::vector<double> drawn_q = {};
};

struct Answer {
  std::vector<uint8_t> o_bytes;  // in io_dtype
  std::vector<double> o;         // [H][D]
  std::vector<float> lse;        // [H]
  DecodeStatistics statistics;
  std::vector<float> relative_standard_error;  // [H]; empty without statistics
};

// One draw for all query heads of a key/value head.
inline bool DrawsForGroups(Method method) { return method == Method::kCoordinated || method == Method::kSketched; }

class Cache {
 public:
  // Null (and a test failure) where the backend cannot be made. `seed` shuffles the pages.
  static std::unique_ptr<Cache> Make(const BackendFactory& make, const KvLayout& layout, int32_t num_pages,
                                     uint64_t seed = 1);
  // Likewise. The layout must be one that the backend has (BackendUnderTest::Nearest).
  static std::unique_ptr<Cache> Make(const BackendUnderTest& backend, const KvLayout& layout, int32_t num_pages,
                                     uint64_t seed = 1);

  const KvLayout& layout() const { return layout_; }
  Backend& backend() { return *backend_; }

  // Takes fresh pages for `tokens` and stores them in `layer`. Aborts the test run if the pages run out.
  Sequence Add(const Tokens& tokens, int32_t layer = 0);

  // Overwrites tokens [position, position + tokens.count) of the sequence, in the backend alone.
  void Overwrite(const Sequence& sequence, int64_t position, const Tokens& tokens);

  // One Decode call. `with_statistics` false passes null for statistics and standard errors.
  std::vector<Answer> Decode(const std::vector<Query>& queries, bool with_statistics = true);

  // The same step for the reference, queries rounded as the backend rounds them.
  reference::Step StepOf(const Query& query) const;

 private:
  Cache(std::unique_ptr<Backend> backend, uint64_t seed);

  KvLayout layout_;
  std::unique_ptr<Backend> backend_;
  std::function<DType(DType stored)> query_type_;
  std::vector<int32_t> free_pages_;
};

// NaN in every number.
Tokens PoisonTokens(const KvLayout& layout, int64_t count);

// Expects |found[i] - expected[i]| <= allowed[i]; a failure names the worst index, both values and the allowance.
void ExpectClose(const std::string& what, const std::vector<double>& found, const std::vector<double>& expected,
                 const std::vector<double>& allowed);

// Expects o, lse and statistics of an exact answer (EXACT, or S >= visible tokens) within the backend's tolerance.
void ExpectExact(const std::string& what, const BackendUnderTest& backend, const Cache& cache, const Query& query,
                 const Answer& answer);

// What has no bias in an answer (reference::Moments): o, but for SKETCHED o^ exp(lse^ - lse).
std::vector<double> Unbiased(const Query& query, const reference::Output& exact, const Answer& answer);

// Expects lse as exact (SKETCHED: as exp(lse^ - lse) should be, like o); o (Unbiased) within `deviations` standard
// deviations of the estimator (and the tolerance of exact answers) of its mean; statistics in range.
void ExpectEstimate(const std::string& what, const BackendUnderTest& backend, const Cache& cache, const Query& query,
                    const Answer& answer, double deviations);

// Expects the same bits in o and lse and the same statistics.
void ExpectIdentical(const std::string& what, const Answer& found, const Answer& expected);

// What rounding and fp32 arithmetic may add to an output: for each component of `o`.
std::vector<double> RoundingAllowance(const BackendUnderTest& backend, const reference::Step& step, DType io_dtype,
                                      const std::vector<double>& o);

// Every estimator that the backend has, S2ANTA_PROP with both roundings.
std::vector<AttentionOptions> SampledMethods(const BackendUnderTest& backend, uint32_t sample_count, uint64_t seed = 0);

// BERNOULLI_QK, and the same estimators, with so many score draws; none where keys are token-major.
std::vector<AttentionOptions> ScoreDrawMethods(const BackendUnderTest& backend, uint32_t score_draws,
                                               uint32_t sample_count, uint64_t seed = 0);

// What the score draws of a query put in its place, asked of the backend: with one visible key, which is 1 in feature j
// and 0 elsewhere, and a scale of 1, lse is feature j. Takes a page of the cache.
std::vector<double> DrawnQuery(Cache& cache, const Query& query);

// Features of K that some query head of a key/value head's group has in the step's query: of a drawn one, those read.
std::vector<bool> FeaturesRead(const reference::Step& step, int32_t kv_head);

std::string Describe(const KvLayout& layout);
std::string Describe(const Query& query);

}  // namespace santa::testing

#endif  // SANTA_KERNELS_TESTING_CACHE_H_
