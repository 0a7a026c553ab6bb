#include "kernels/testing/cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/estimators.h"
#include "kernels/reference/number_format.h"

namespace santa::testing {
namespace {

constexpr size_t kGuard = 64;
constexpr uint8_t kGuardByte = 0xA5;

// An output array between guard bytes.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : memory_(bytes + 2 * kGuard, kGuardByte) {}
  void* data() { return memory_.data() + kGuard; }
  std::vector<uint8_t> contents() const { return {memory_.begin() + kGuard, memory_.end() - kGuard}; }
  bool guards_hold() const {
    return std::all_of(memory_.begin(), memory_.begin() + kGuard, [](uint8_t b) { return b == kGuardByte; }) &&
           std::all_of(memory_.end() - kGuard, memory_.end(), [](uint8_t b) { return b == kGuardByte; });
  }

 private:
  std::vector<uint8_t> memory_;
};

template <typename T>
bool SameBits(T a, T b) {
  return std::memcmp(static_cast<const void*>(&a), static_cast<const void*>(&b), sizeof(T)) == 0;
}

int64_t VisibleTokens(const reference::Step& step) {
  const int64_t window = step.options.window;
  return window > 0 ? std::min(window, step.num_tokens) : step.num_tokens;
}

// The largest |x| of visible rows of k or v.
double LargestVisible(const reference::Step& step, const std::vector<double>& rows) {
  const int64_t row = static_cast<int64_t>(step.num_kv_heads) * step.head_dim;
  double largest = 0;
  for (auto at = (step.num_tokens - VisibleTokens(step)) * row; at < step.num_tokens * row; ++at) {
    largest = std::max(largest, std::abs(rows[at]));
  }
  return largest;
}

void ExpectLse(const std::string& what, const BackendUnderTest& backend, const reference::Output& exact,
               const Answer& answer) {
  std::vector<double> allowed;
  allowed.reserve(exact.lse.size());
  for (const double lse : exact.lse) allowed.push_back(backend.lse_tolerance * std::max(1.0, std::abs(lse)));
  ExpectClose(what + ", lse", {answer.lse.begin(), answer.lse.end()}, exact.lse, allowed);
}

// Of SKETCHED: exp(lse^ - lse) within so many deviations of 1.
void ExpectMass(const std::string& what, const BackendUnderTest& backend, const reference::Output& exact,
                const reference::Moments& moments, const Answer& answer, double deviations) {
  std::vector<double> found;
  std::vector<double> allowed;
  for (size_t h = 0; h < exact.lse.size(); ++h) {
    found.push_back(std::exp(answer.lse[h] - exact.lse[h]));
    allowed.push_back(deviations * std::sqrt(moments.mass_variance[h]) +
                      2 * backend.lse_tolerance * std::max(1.0, std::abs(exact.lse[h])));
  }
  ExpectClose(what + ", exp(lse^ - lse)", found, std::vector<double>(found.size(), 1.0), allowed);
}

void ExpectReads(const std::string& what, const KvLayout& layout, const reference::Step& step, const Answer& answer) {
  const DecodeStatistics& statistics = answer.statistics;
  const int64_t visible = VisibleTokens(step);
  const int64_t samples = step.options.sample_count;
  const int64_t group = step.num_query_heads / step.num_kv_heads;
  const bool sketched = step.options.method == Method::kSketched;
  const bool all_values = !DrawsValues(step.options.method);
  const auto row = static_cast<int64_t>(layout.row_bytes());
  EXPECT_EQ(statistics.visible_tokens, visible) << what;
  int64_t most = group * samples;
  if (sketched) most = samples + step.num_tokens % layout.page_size;
  if (step.options.method == Method::kCoordinated) most = samples;
  if (all_values) most = visible;
  // One row for all heads of a group may, at S = 1, be none: the chances sum to a little less.
  EXPECT_GE(statistics.value_rows_read, DrawsForGroups(step.options.method) && samples < 2 ? 0 : step.num_kv_heads)
      << what;
  if (all_values) {
    EXPECT_EQ(statistics.value_rows_read, visible * step.num_kv_heads) << what;
  }
  EXPECT_LE(statistics.value_rows_read, step.num_kv_heads * std::min(visible, most)) << what;
  EXPECT_EQ(statistics.key_rows_read, sketched ? statistics.value_rows_read : visible * step.num_kv_heads) << what;
  int64_t bytes = statistics.value_rows_read * row;
  if (step.options.score_draws > 0) {
    for (int32_t kv_head = 0; kv_head < step.num_kv_heads; ++kv_head) {
      const std::vector<bool> read = FeaturesRead(step, kv_head);
      bytes += std::count(read.begin(), read.end(), true) * visible * static_cast<int64_t>(SizeOf(layout.dtype));
    }
    for (const float error : answer.relative_standard_error) EXPECT_TRUE(std::isnan(error)) << what;
  } else {
    bytes += statistics.key_rows_read * row;
  }
  if (sketched) {
    const int64_t pages = step.num_tokens / layout.page_size - (step.num_tokens - visible) / layout.page_size;
    const int bits = KeyBits(layout.sketch) + ValueBits(layout.sketch);
    const int arrays = ValueBits(layout.sketch) > 0 ? 2 : 1;
    // Codes, and two half-precision numbers a column.
    bytes += pages * step.num_kv_heads * layout.head_dim * (layout.page_size * bits / 8 + 4 * arrays);
  }
  EXPECT_EQ(statistics.kv_bytes_read, bytes) << what;
  EXPECT_EQ(statistics.dense_kv_bytes, 2 * visible * step.num_kv_heads * row) << what;
}

}  // namespace

std::vector<double> RandomNumbers(size_t count, double deviation, std::mt19937_64& random) {
  std::normal_distribution<double> normal(0.0, deviation);
  std::vector<double> numbers(count);
  for (double& number : numbers) number = static_cast<float>(normal(random));
  return numbers;
}

Tokens RandomTokens(const KvLayout& layout, int64_t count, std::mt19937_64& random) {
  const size_t size = static_cast<size_t>(count) * layout.num_kv_heads * layout.head_dim;
  Tokens tokens{.count = count, .k = RandomNumbers(size, 1, random), .v = {}};
  tokens.v = RandomNumbers(size, 1, random);
  return tokens;
}

Tokens PoisonTokens(const KvLayout& layout, int64_t count) {
  const std::vector<double> poison(static_cast<size_t>(count) * layout.num_kv_heads * layout.head_dim,
                                   std::numeric_limits<double>::quiet_NaN());
  return {.count = count, .k = poison, .v = poison};
}

std::unique_ptr<Cache> Cache::Make(const BackendFactory& make, const KvLayout& layout, int32_t num_pages,
                                   uint64_t seed) {
  auto backend = make(layout, num_pages);
  if (!backend.ok()) {
    ADD_FAILURE() << backend.status();
    return nullptr;
  }
  return std::unique_ptr<Cache>(new Cache(*std::move(backend), seed));
}

std::unique_ptr<Cache> Cache::Make(const BackendUnderTest& backend, const KvLayout& layout, int32_t num_pages,
                                   uint64_t seed) {
  std::unique_ptr<Cache> cache = Make(backend.make, layout, num_pages, seed);
  if (cache != nullptr) cache->query_type_ = backend.query_type;
  return cache;
}

Cache::Cache(std::unique_ptr<Backend> backend, uint64_t seed)
    : layout_(backend->layout()), backend_(std::move(backend)), free_pages_(backend_->num_pages()) {
  std::iota(free_pages_.begin(), free_pages_.end(), 0);
  for (int32_t layer = 0; layer < layout_.num_layers; ++layer) {
    const Sequence everything{.layer = layer, .pages = free_pages_, .sampling_key = 0, .tokens = {}};
    Overwrite(everything, 0, PoisonTokens(layout_, static_cast<int64_t>(free_pages_.size()) * layout_.page_size));
  }
  std::mt19937_64 random(seed);
  std::shuffle(free_pages_.begin(), free_pages_.end(), random);
}

Sequence Cache::Add(const Tokens& tokens, int32_t layer) {
  Sequence sequence{.layer = layer, .pages = {}, .sampling_key = 1, .tokens = tokens};
  for (int64_t covered = 0; covered < tokens.count; covered += layout_.page_size) {
    if (free_pages_.empty()) {
      ADD_FAILURE() << "the test asks for more pages than it made";
      std::abort();
    }
    sequence.pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  Overwrite(sequence, 0, tokens);
  // Rounded twice, as on their way through an fp32 append.
  sequence.tokens.k = reference::RoundAll(layout_.dtype, reference::RoundAll(DType::kFloat32, tokens.k));
  sequence.tokens.v = reference::RoundAll(layout_.dtype, reference::RoundAll(DType::kFloat32, tokens.v));
  return sequence;
}

void Cache::Overwrite(const Sequence& sequence, int64_t position, const Tokens& tokens) {
  const std::vector<float> k(tokens.k.begin(), tokens.k.end());
  const std::vector<float> v(tokens.v.begin(), tokens.v.end());
  const KvAppend append{.layer = sequence.layer,
                        .page_table = sequence.pages.data(),
                        .position = position,
                        .num_tokens = tokens.count,
                        .dtype = DType::kFloat32,
                        .k = k.data(),
                        .v = v.data()};
  const absl::Status status = backend_->Append({&append, 1});
  EXPECT_TRUE(status.ok()) << status;
}

std::vector<Answer> Cache::Decode(const std::vector<Query>& queries, bool with_statistics) {
  const size_t heads = layout_.num_query_heads;
  const size_t numbers = heads * layout_.head_dim;
  std::vector<std::vector<uint8_t>> q;
  std::vector<Guarded> o;
  std::vector<Guarded> lse;
  std::vector<Guarded> errors;
  std::vector<DecodeItem> items;
  std::vector<Answer> answers(queries.size());
  for (size_t i = 0; i < queries.size(); ++i) {
    const Query& query = queries[i];
    q.push_back(reference::EncodeAll(query.io_dtype, query.q));
    o.emplace_back(numbers * SizeOf(query.io_dtype));
    lse.emplace_back(heads * sizeof(float));
    errors.emplace_back(heads * sizeof(float));
    items.push_back({.layer = query.sequence->layer,
                     .page_table = query.sequence->pages.data(),
                     .num_tokens = query.num_tokens > 0 ? query.num_tokens : query.sequence->tokens.count,
                     .sampling_key = query.sequence->sampling_key,
                     .options = query.options,
                     .sink_logits = query.sink_logits.empty() ? nullptr : query.sink_logits.data(),
                     .io_dtype = query.io_dtype,
                     .q = q.back().data(),
                     .o = o.back().data(),
                     .lse = static_cast<float*>(lse.back().data()),
                     .statistics = with_statistics ? &answers[i].statistics : nullptr,
                     .relative_standard_error = with_statistics ? static_cast<float*>(errors.back().data()) : nullptr});
  }
  const absl::Status status = backend_->Decode(items);
  EXPECT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < queries.size(); ++i) {
    EXPECT_TRUE(o[i].guards_hold() && lse[i].guards_hold() && errors[i].guards_hold())
        << "item " << i << " wrote outside its outputs";
    answers[i].o_bytes = o[i].contents();
    answers[i].o = reference::DecodeAll(queries[i].io_dtype, answers[i].o_bytes);
    answers[i].lse.resize(heads);
    std::memcpy(answers[i].lse.data(), lse[i].data(), heads * sizeof(float));
    if (!with_statistics) continue;
    answers[i].relative_standard_error.resize(heads);
    std::memcpy(answers[i].relative_standard_error.data(), errors[i].data(), heads * sizeof(float));
  }
  return answers;
}

reference::Step Cache::StepOf(const Query& query) const {
  reference::Step step;
  step.num_query_heads = layout_.num_query_heads;
  step.num_kv_heads = layout_.num_kv_heads;
  step.head_dim = layout_.head_dim;
  step.num_tokens = query.num_tokens > 0 ? query.num_tokens : query.sequence->tokens.count;
  step.q = reference::RoundAll(query.io_dtype, query.q);
  if (query_type_) step.q = reference::RoundAll(query_type_(layout_.dtype), step.q);
  if (!query.drawn_q.empty()) step.q = query.drawn_q;
  step.k = query.sequence->tokens.k;
  step.v = query.sequence->tokens.v;
  step.sink_logits.assign(query.sink_logits.begin(), query.sink_logits.end());
  step.options = query.options;
  step.page_size = layout_.page_size;
  step.sketch = layout_.sketch;
  return step;
}

void ExpectClose(const std::string& what, const std::vector<double>& found, const std::vector<double>& expected,
                 const std::vector<double>& allowed) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  size_t worst = 0;
  double worst_excess = -std::numeric_limits<double>::infinity();
  size_t wrong = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    double excess = std::abs(found[i] - expected[i]) - allowed[i];
    if (std::isnan(excess)) excess = std::numeric_limits<double>::infinity();
    wrong += excess > 0;
    if (excess > worst_excess) {
      worst = i;
      worst_excess = excess;
    }
  }
  EXPECT_EQ(wrong, 0u) << what << ": " << wrong << " of " << found.size() << " are off; the worst, at index " << worst
                       << ", is " << found[worst] << " where " << expected[worst] << " was expected, +-"
                       << allowed[worst];
}

std::vector<double> RoundingAllowance(const BackendUnderTest& backend, const reference::Step& step, DType io_dtype,
                                      const std::vector<double>& o) {
  const double arithmetic = backend.exact_tolerance * LargestVisible(step, step.v);
  const double smallest = io_dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-120;
  std::vector<double> allowed;
  allowed.reserve(o.size());
  for (const double x : o) {
    allowed.push_back(arithmetic + reference::RelativeRounding(io_dtype) * (std::abs(x) + arithmetic) + smallest);
  }
  return allowed;
}

void ExpectExact(const std::string& what, const BackendUnderTest& backend, const Cache& cache, const Query& query,
                 const Answer& answer) {
  const reference::Step step = cache.StepOf(query);
  const reference::Output exact = reference::Exact(step);
  ExpectClose(what + ", o", answer.o, exact.o, RoundingAllowance(backend, step, query.io_dtype, exact.o));
  ExpectLse(what, backend, exact, answer);
  const int64_t rows = VisibleTokens(step) * step.num_kv_heads;
  const auto bytes = 2 * rows * static_cast<int64_t>(cache.layout().row_bytes());
  EXPECT_EQ(answer.statistics.visible_tokens, VisibleTokens(step)) << what;
  EXPECT_EQ(answer.statistics.value_rows_read, rows) << what;
  EXPECT_EQ(answer.statistics.kv_bytes_read, bytes) << what;
  EXPECT_EQ(answer.statistics.dense_kv_bytes, bytes) << what;
  EXPECT_EQ(answer.statistics.key_rows_read, rows) << what;
  for (const float error : answer.relative_standard_error) EXPECT_EQ(error, 0) << what << ", standard error";
}

std::vector<double> Unbiased(const Query& query, const reference::Output& exact, const Answer& answer) {
  std::vector<double> o = answer.o;
  if (query.options.method != Method::kSketched) return o;
  const size_t dims = o.size() / exact.lse.size();
  for (size_t i = 0; i < o.size(); ++i) o[i] *= std::exp(answer.lse[i / dims] - exact.lse[i / dims]);
  return o;
}

void ExpectEstimate(const std::string& what, const BackendUnderTest& backend, const Cache& cache, const Query& query,
                    const Answer& answer, double deviations) {
  const reference::Step step = cache.StepOf(query);
  const reference::Moments moments = reference::MomentsOf(step);
  std::vector<double> allowed = RoundingAllowance(backend, step, query.io_dtype, moments.mean);
  for (size_t i = 0; i < allowed.size(); ++i) {
    const double spread = deviations * std::sqrt(moments.variance[i]);
    allowed[i] += spread * (1 + reference::RelativeRounding(query.io_dtype));
  }
  const reference::Output exact = reference::Exact(step);
  ExpectClose(what + ", o", Unbiased(query, exact, answer), moments.mean, allowed);
  if (query.options.method == Method::kSketched) {
    ExpectMass(what, backend, exact, moments, answer, deviations);
  } else {
    ExpectLse(what, backend, exact, answer);
  }
  ExpectReads(what, cache.layout(), step, answer);
}

void ExpectIdentical(const std::string& what, const Answer& found, const Answer& expected) {
  size_t at = 0;
  while (at < found.o.size() && SameBits(found.o[at], expected.o[at])) ++at;
  EXPECT_TRUE(found.o_bytes == expected.o_bytes)
      << what << ": o differs first at index " << at << ": " << found.o[at] << " and " << expected.o[at];
  EXPECT_TRUE(std::equal(found.lse.begin(), found.lse.end(), expected.lse.begin(), expected.lse.end(), SameBits<float>))
      << what << ": lse differs";
  EXPECT_EQ(found.statistics.visible_tokens, expected.statistics.visible_tokens) << what;
  EXPECT_EQ(found.statistics.value_rows_read, expected.statistics.value_rows_read) << what;
  EXPECT_EQ(found.statistics.kv_bytes_read, expected.statistics.kv_bytes_read) << what;
  EXPECT_TRUE(std::equal(found.relative_standard_error.begin(), found.relative_standard_error.end(),
                         expected.relative_standard_error.begin(), expected.relative_standard_error.end(),
                         SameBits<float>))
      << what << ": standard errors differ";
}

std::vector<AttentionOptions> SampledMethods(const BackendUnderTest& backend, uint32_t sample_count, uint64_t seed) {
  std::vector<AttentionOptions> all;
  for (const Method method : backend.methods) {
    all.push_back({.method = method, .sample_count = sample_count, .seed = seed});
    if (method != Method::kS2antaProp) continue;
    all.push_back(all.back());
    all.back().budget_rounding = BudgetRounding::kLargestRemainder;
  }
  return all;
}

std::vector<AttentionOptions> ScoreDrawMethods(const BackendUnderTest& backend, uint32_t score_draws,
                                               uint32_t sample_count, uint64_t seed) {
  if (backend.key_order != KeyOrder::kFeatureMajor) return {};
  std::vector<AttentionOptions> all = SampledMethods(backend, sample_count, seed);
  all.push_back({.method = Method::kBernoulliQk, .seed = seed});
  for (AttentionOptions& options : all) options.score_draws = score_draws;
  return all;
}

std::vector<double> DrawnQuery(Cache& cache, const Query& query) {
  const KvLayout& layout = cache.layout();
  const int32_t heads = layout.num_query_heads;
  const int32_t dims = layout.head_dim;
  const auto row = static_cast<size_t>(layout.num_kv_heads) * dims;
  Query probe = query;
  probe.num_tokens = query.num_tokens > 0 ? query.num_tokens : query.sequence->tokens.count;
  probe.options = {.method = Method::kBernoulliQk,
                   .seed = query.options.seed,
                   .scale = 1,
                   .window = 1,
                   .score_draws = query.options.score_draws};
  probe.sink_logits.clear();
  // The page stands for every page: one token of it is seen.
  Sequence sequence = cache.Add({.count = 1, .k = std::vector<double>(row, 0), .v = std::vector<double>(row, 0)},
                                query.sequence->layer);
  sequence.sampling_key = query.sequence->sampling_key;
  sequence.pages.resize((probe.num_tokens - 1) / layout.page_size + 1, sequence.pages[0]);
  probe.sequence = &sequence;
  std::vector<double> drawn(query.q.size());
  for (int32_t j = 0; j < dims; ++j) {
    Tokens key{.count = 1, .k = std::vector<double>(row, 0), .v = std::vector<double>(row, 0)};
    for (int32_t kv_head = 0; kv_head < layout.num_kv_heads; ++kv_head) key.k[kv_head * dims + j] = 1;
    cache.Overwrite(sequence, probe.num_tokens - 1, key);
    const Answer answer = cache.Decode({probe})[0];
    for (int32_t h = 0; h < heads; ++h) drawn[h * dims + j] = answer.lse[h];
  }
  return drawn;
}

std::vector<bool> FeaturesRead(const reference::Step& step, int32_t kv_head) {
  const int32_t group = step.num_query_heads / step.num_kv_heads;
  std::vector<bool> read(step.head_dim, false);
  for (int32_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    for (int32_t j = 0; j < step.head_dim; ++j) read[j] = read[j] || step.q[h * step.head_dim + j] != 0;
  }
  return read;
}

std::string Describe(const KvLayout& layout) {
  std::ostringstream text;
  text << Name(layout.dtype) << " H=" << layout.num_query_heads << " H_kv=" << layout.num_kv_heads
       << " D=" << layout.head_dim << " page=" << layout.page_size << " sketch=" << Name(layout.sketch)
       << " key_order=" << Name(layout.key_order);
  return text.str();
}

std::string Describe(const Query& query) {
  const AttentionOptions& options = query.options;
  std::ostringstream text;
  text << Name(options.method);
  if (options.budget_rounding == BudgetRounding::kLargestRemainder) text << " (largest remainder)";
  text << " n=" << (query.num_tokens > 0 ? query.num_tokens : query.sequence->tokens.count)
       << " S=" << options.sample_count << " io=" << Name(query.io_dtype);
  if (options.score_draws > 0) text << " R=" << options.score_draws;
  if (options.window > 0) text << " window=" << options.window;
  if (options.soft_cap > 0) text << " soft_cap=" << options.soft_cap;
  if (options.scale > 0) text << " scale=" << options.scale;
  if (!query.sink_logits.empty()) text << " sinks";
  return text.str();
}

}  // namespace santa::testing
