#include "kernels/cuda/cuda_backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/number_format.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/backend_suite.h"

namespace santa::testing {
namespace {

// Empty where there is a GPU.
std::string WhyNoGpu() {
  const absl::StatusOr<CudaMemory> memory = CudaDeviceMemory(0);
  return memory.ok() ? "" : std::string(memory.status().message());
}

KvLayout NearestLayout(KvLayout layout) {
  if (layout.dtype == DType::kFloat32) layout.dtype = DType::kBFloat16;
  for (const int32_t dim : {64, 96, 128, 192, 256}) {
    if (layout.head_dim <= dim) {
      layout.head_dim = dim;
      break;
    }
  }
  return layout;
}

DType QueryType(DType stored) { return stored == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat16; }

const BackendUnderTest kCuda = {
    .name = "cuda",
    .make = [](const KvLayout& layout,
               int32_t num_pages) { return MakeCudaBackend({.layout = layout, .num_pages = num_pages}); },
    // Softmax weights are rounded to bf16, the coarser of the two types of products.
    .exact_tolerance = 0x1p-8,
    .nearest_layout = NearestLayout,
    .query_type = QueryType,
    .tells_errors_by_steps_of = {Method::kSanta, Method::kStratified, Method::kSystematic, Method::kS2antaFlash,
                                 Method::kS2antaProp},
    .missing = WhyNoGpu()};

// Feature-major keys are multiplied in fp32 with the query as it came, and weights enter the products with V in parts
// that lose nothing.
BackendUnderTest FeatureMajor() {
  BackendUnderTest backend = kCuda.FeatureMajor();
  backend.exact_tolerance = BackendUnderTest{}.exact_tolerance;
  backend.query_type = nullptr;
  backend.tells_no_errors_of = {Method::kS2antaFlash};
  return backend;
}

INSTANTIATE_TEST_SUITE_P(Cuda, BackendSuite,
                         ::testing::Values(kCuda, FeatureMajor(), kCuda.Sketched(Sketch::kK4),
                                           kCuda.Sketched(Sketch::kK4V4), kCuda.Sketched(Sketch::kK8V8)),
                         NameOf);

class CudaBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoGpu(); !why.empty()) GTEST_SKIP() << why;
  }
};

// A sequence of random tokens in shuffled pages, stored alike in any number of backends, and queries on it.
class Twins {
 public:
  Twins(const KvLayout& layout, int64_t tokens, uint64_t seed) : layout_(layout), tokens_(tokens), random_(seed) {
    pages_.resize((tokens + layout.page_size - 1) / layout.page_size);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), random_);
    k_ = Numbers(tokens * layout.num_kv_heads * layout.head_dim, 1);
    v_ = Numbers(tokens * layout.num_kv_heads * layout.head_dim, 1);
  }

  int32_t num_pages() const { return static_cast<int32_t>(pages_.size()); }
  std::vector<float> Numbers(size_t count, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> numbers(count);
    for (float& number : numbers) number = normal(random_);
    return numbers;
  }
  std::vector<float> Queries(float deviation) { return Numbers(outputs(), deviation); }
  size_t outputs() const { return static_cast<size_t>(layout_.num_query_heads) * layout_.head_dim; }

  KvAppend Append(int32_t layer = 0) const {
    return {.layer = layer,
            .page_table = pages_.data(),
            .position = 0,
            .num_tokens = tokens_,
            .dtype = DType::kFloat32,
            .k = k_.data(),
            .v = v_.data()};
  }

  struct Answer {
    std::vector<float> o, lse;
    DecodeStatistics statistics;
  };
  DecodeItem Item(const std::vector<float>& q, const AttentionOptions& options, Answer& answer) const {
    answer.o.assign(outputs(), NAN);
    answer.lse.assign(layout_.num_query_heads, NAN);
    return {.page_table = pages_.data(),
            .num_tokens = tokens_,
            .sampling_key = 7,
            .options = options,
            .io_dtype = DType::kFloat32,
            .q = q.data(),
            .o = answer.o.data(),
            .lse = answer.lse.data(),
            .statistics = &answer.statistics};
  }
  Answer Decode(Backend& backend, const std::vector<float>& q, const AttentionOptions& options, int32_t layer = 0,
                int64_t num_tokens = 0) const {
    Answer answer;
    DecodeItem item = Item(q, options, answer);
    item.layer = layer;
    if (num_tokens > 0) item.num_tokens = num_tokens;
    const absl::Status status = backend.Decode({&item, 1});
    EXPECT_TRUE(status.ok()) << status;
    return answer;
  }

 private:
  const KvLayout layout_;
  const int64_t tokens_;
  std::mt19937_64 random_;
  std::vector<int32_t> pages_;
  std::vector<float> k_, v_;
};

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    largest = std::isnan(difference) ? INFINITY : std::max(largest, difference);
  }
  return largest;
}

constexpr KvLayout kLayout = {.num_layers = 2, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 128};

TEST(CudaBackendOptionsTest, RefusesWhatItHasNot) {
  const auto refusal = [](KvLayout layout, int32_t num_pages = 1) {
    return MakeCudaBackend({.layout = layout, .num_pages = num_pages}).status();
  };
  KvLayout layout = kLayout;
  EXPECT_EQ(refusal(layout, 0), absl::InvalidArgumentError("num_pages is 0; it must be at least 1"));
  layout.dtype = DType::kFloat32;
  EXPECT_EQ(refusal(layout), absl::UnimplementedError("dtype is fp32; the CUDA backend has bf16, fp16 and fp8_e4m3"));
  layout = kLayout;
  layout.head_dim = 72;
  EXPECT_EQ(refusal(layout), absl::UnimplementedError("head_dim is 72; the CUDA backend has 64, 96, 128, 192 and 256"));
  layout.head_dim = 12;
  EXPECT_EQ(refusal(layout).code(), absl::StatusCode::kInvalidArgument);
  layout = kLayout;
  layout.num_query_heads = 34;
  EXPECT_EQ(refusal(layout),
            absl::UnimplementedError("num_query_heads / num_kv_heads is 17; the CUDA backend has 1 to 16"));
  layout = kLayout;
  layout.dtype = DType::kFloat8E4M3;
  layout.sketch = Sketch::kK4V4;
  EXPECT_EQ(refusal(layout),
            absl::UnimplementedError("sketch is k4v4, dtype is fp8_e4m3; the CUDA backend has none and k4 for it"));
}

TEST_F(CudaBackendTest, RefusesADeviceThatIsNotThere) {
  const absl::Status status = MakeCudaBackend({.layout = kLayout, .num_pages = 1, .device = -1}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("device is -1; it must be in [0, "), std::string::npos) << status;
}

TEST_F(CudaBackendTest, MoreMemoryThanThereIsIsAStatus) {
  KvLayout layout = kLayout;
  layout.num_layers = 65536;
  layout.head_dim = layout.page_size = 256;
  EXPECT_EQ(MakeCudaBackend({.layout = layout, .num_pages = 1 << 20}).status().code(),
            absl::StatusCode::kResourceExhausted);
  const auto backend = MakeCudaBackend({.layout = kLayout, .num_pages = 2});
  EXPECT_TRUE(backend.ok()) << backend.status();  // that error did not stick
}

TEST_F(CudaBackendTest, SaysWhatItRunsOn) {
  const auto backend = MakeCudaBackend({.layout = kLayout, .num_pages = 3});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->name(), "cuda");
  EXPECT_EQ((*backend)->num_pages(), 3);
  EXPECT_NE((*backend)->device().find("GiB, compute capability "), std::string::npos) << (*backend)->device();
}

// The same seed draws the same rows as on the CPU, but where a difference in the last place of a score moves a draw
// across the boundary of two rows. One draw of 256 moves an output by about its weight, 4e-3: far above the rounding.
// With masses off by 1e-6 of themselves, 3,000 boundaries off by 2e-8 of the whole and 256 draws, about 1 head in 65
// has one.
void ExpectTheRowsOfTheCpu(const KvLayout& layout, uint32_t score_draws) {
  constexpr int64_t kTokens = 3000;
  constexpr int kSeeds = 50;
  Twins twins(layout, kTokens, 1);
  const auto cuda = MakeCudaBackend({.layout = layout, .num_pages = twins.num_pages()});
  ASSERT_TRUE(cuda.ok()) << cuda.status();
  const auto cpu = MakeCpuBackend({.layout = layout, .num_pages = twins.num_pages()});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  const KvAppend append = twins.Append();
  ASSERT_TRUE((*cuda)->Append({&append, 1}).ok());
  ASSERT_TRUE((*cpu)->Append({&append, 1}).ok());
  // Queries that bf16 holds: nothing is rounded on the way.
  std::vector<float> q = twins.Queries(1.5f);
  for (float& x : q) x = static_cast<float>(reference::Round(DType::kBFloat16, x));
  for (const Method method :
       {Method::kSanta, Method::kStratified, Method::kSystematic, Method::kS2antaFlash, Method::kS2antaProp}) {
    AttentionOptions options = {.method = method, .sample_count = 256, .score_draws = score_draws};
    int heads = 0;
    int moved = 0;
    for (int seed = 0; seed < kSeeds; ++seed) {
      options.seed = seed;
      const Twins::Answer found = twins.Decode(**cuda, q, options);
      const Twins::Answer expected = twins.Decode(**cpu, q, options);
      EXPECT_LT(LargestDifference(found.lse, expected.lse), 1e-4);
      int moved_here = 0;
      for (int32_t h = 0; h < layout.num_query_heads; ++h, ++heads) {
        const auto of_head = [&](const std::vector<float>& o) {
          return std::vector<float>(o.begin() + h * layout.head_dim, o.begin() + (h + 1) * layout.head_dim);
        };
        moved_here += LargestDifference(of_head(found.o), of_head(expected.o)) > 1e-3;
      }
      if (moved_here == 0) {
        EXPECT_EQ(found.statistics.value_rows_read, expected.statistics.value_rows_read);
      }
      moved += moved_here;
    }
    ::testing::Test::RecordProperty(std::string(Name(method)) + "_heads_with_a_moved_draw", moved);
    EXPECT_LE(moved, heads / 10) << Name(method) << ": draws of " << moved << " of " << heads << " heads differ";
  }
}

TEST_F(CudaBackendTest, DrawsTheRowsThatTheCpuDraws) { ExpectTheRowsOfTheCpu(kLayout, 0); }

TEST_F(CudaBackendTest, DrawsTheRowsThatTheCpuDrawsByDrawnScores) {
  KvLayout layout = kLayout;
  layout.key_order = KeyOrder::kFeatureMajor;
  ExpectTheRowsOfTheCpu(layout, 3);
}

// The same seed draws the same ternary queries as on the CPU: the same features are read, and the rest is rounding.
TEST_F(CudaBackendTest, DrawsTheQueriesThatTheCpuDraws) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int32_t group_size : {1, 4, 7, 16}) {
      KvLayout layout = kLayout;
      layout.num_query_heads = group_size * layout.num_kv_heads;
      layout.dtype = dtype;
      layout.key_order = KeyOrder::kFeatureMajor;
      Twins twins(layout, 600, 6);
      const auto cuda = MakeCudaBackend({.layout = layout, .num_pages = twins.num_pages()});
      ASSERT_TRUE(cuda.ok()) << cuda.status();
      const auto cpu = MakeCpuBackend({.layout = layout, .num_pages = twins.num_pages()});
      ASSERT_TRUE(cpu.ok()) << cpu.status();
      const KvAppend append = twins.Append();
      ASSERT_TRUE((*cuda)->Append({&append, 1}).ok());
      ASSERT_TRUE((*cpu)->Append({&append, 1}).ok());
      const std::vector<float> q = twins.Queries(1.5f);
      for (const uint32_t draws : {1u, 7u, 300u}) {
        const AttentionOptions options = {.method = Method::kBernoulliQk, .seed = draws, .score_draws = draws};
        const Twins::Answer found = twins.Decode(**cuda, q, options);
        const Twins::Answer expected = twins.Decode(**cpu, q, options);
        EXPECT_EQ(found.statistics.kv_bytes_read, expected.statistics.kv_bytes_read);
        EXPECT_EQ(found.statistics.value_rows_read, expected.statistics.value_rows_read);
        EXPECT_LT(LargestDifference(found.lse, expected.lse), 1e-4) << "G " << group_size << " R " << draws;
        EXPECT_LT(LargestDifference(found.o, expected.o), 1e-4) << "G " << group_size << " R " << draws;
      }
    }
  }
}

// Storage with scales: what one token answers is its value as stored, and its score; then attention over many.
void ExpectTheReferencesFloat8(KeyOrder order) {
  for (const int32_t dim : {64, 128}) {
    for (const bool scaled : {false, true}) {
      KvLayout layout = kLayout;
      layout.dtype = DType::kFloat8E4M3;
      layout.head_dim = dim;
      layout.key_order = order;
      Twins twins(layout, 700, 2);
      KvScales scales;
      if (scaled) scales = {.k = {0.02f, 0.3f, 1.7f, 0.011f}, .v = {0.5f, 0.007f, 0.013f, 3}};
      const auto cuda = MakeCudaBackend({.layout = layout, .num_pages = twins.num_pages(), .scales = scales});
      ASSERT_TRUE(cuda.ok()) << cuda.status();
      const auto expected = reference::MakeScaledReferenceBackend(layout, twins.num_pages(), scales);
      ASSERT_TRUE(expected.ok()) << expected.status();
      // Queries that fp16 holds.
      std::vector<float> q = twins.Queries(1.5f);
      for (float& x : q) x = static_cast<float>(reference::Round(DType::kFloat16, x));
      for (int32_t layer = 0; layer < 2; ++layer) {
        const KvAppend append = twins.Append(layer);
        ASSERT_TRUE((*cuda)->Append({&append, 1}).ok());
        ASSERT_TRUE((*expected)->Append({&append, 1}).ok());
        bool matches = false;
        ASSERT_TRUE((*cuda)->Compare({&append, 1}, {&matches, 1}).ok());
        EXPECT_TRUE(matches);
        for (const int64_t position : {1, 2, 63, 64, 65, 700}) {
          const auto found = twins.Decode(**cuda, q, {.window = 1}, layer, position);
          const auto one = twins.Decode(**expected, q, {.window = 1}, layer, position);
          EXPECT_LT(LargestDifference(found.o, one.o), 1e-5) << "position " << position;
          EXPECT_LT(LargestDifference(found.lse, one.lse), 1e-4) << "position " << position;
        }
        const auto found = twins.Decode(**cuda, q, {}, layer);
        const auto all = twins.Decode(**expected, q, {}, layer);
        EXPECT_LT(LargestDifference(found.o, all.o), 5 * 0x1p-11);  // |v| < 5; weights are rounded to fp16
        EXPECT_LT(LargestDifference(found.lse, all.lse), 1e-4);
        EXPECT_EQ(found.statistics.kv_bytes_read, 2 * 700 * 2 * dim);
        if (order == KeyOrder::kTokenMajor) continue;
        const AttentionOptions draws = {.method = Method::kBernoulliQk, .score_draws = 2};
        const auto drawn = twins.Decode(**cuda, q, draws, layer);
        const auto expected_drawn = twins.Decode(**expected, q, draws, layer);
        EXPECT_LT(LargestDifference(drawn.o, expected_drawn.o), 1e-4);
        EXPECT_LT(LargestDifference(drawn.lse, expected_drawn.lse), 1e-4);
        EXPECT_EQ(drawn.statistics.kv_bytes_read, expected_drawn.statistics.kv_bytes_read);
        // All rows but one, which are those that hardly count.
        const auto sampled = twins.Decode(**cuda, q, {.method = Method::kCoordinated, .sample_count = 699}, layer);
        EXPECT_LT(LargestDifference(sampled.o, all.o), 5 * 0x1p-11);
        EXPECT_LT(LargestDifference(sampled.lse, all.lse), 1e-4);
      }
    }
  }
}

TEST_F(CudaBackendTest, Float8IsTheReferences) { ExpectTheReferencesFloat8(KeyOrder::kTokenMajor); }

TEST_F(CudaBackendTest, Float8WithFeatureMajorKeysIsTheReferences) {
  ExpectTheReferencesFloat8(KeyOrder::kFeatureMajor);
}

// fp16 takes queries up to 65504; larger ones, and tiny ones, are scaled into it.
TEST_F(CudaBackendTest, QueriesBeyondFp16AreScaled) {
  KvLayout layout = kLayout;
  layout.dtype = DType::kFloat16;
  Twins twins(layout, 300, 3);
  const auto cuda = MakeCudaBackend({.layout = layout, .num_pages = twins.num_pages()});
  ASSERT_TRUE(cuda.ok()) << cuda.status();
  const KvAppend append = twins.Append();
  ASSERT_TRUE((*cuda)->Append({&append, 1}).ok());
  const std::vector<float> q = twins.Queries(1.5f);
  const auto expected = twins.Decode(**cuda, q, {.scale = 0.1f});
  for (const float factor : {0x1p20f, 0x1p-40f, 0x1p100f}) {
    std::vector<float> other = q;
    for (float& x : other) x *= factor;
    const auto found = twins.Decode(**cuda, other, {.scale = 0.1f / factor});
    EXPECT_EQ(found.o, expected.o) << factor;
    EXPECT_EQ(found.lse, expected.lse) << factor;
  }
}

// Tokens, and others in the same place; a query's answers from each, which differ.
struct Turns {
  KvAppend append, overwrite;
  std::vector<float> q;
  Twins::Answer before = {}, after = {};
};

Turns TakeTurns(Twins& twins, Backend& backend) {
  Turns turns{.append = twins.Append(), .overwrite = twins.Append(), .q = twins.Queries(1.5f)};
  std::swap(turns.overwrite.k, turns.overwrite.v);
  EXPECT_TRUE(backend.Append({&turns.append, 1}).ok());
  turns.before = twins.Decode(backend, turns.q, {});
  EXPECT_TRUE(backend.Append({&turns.overwrite, 1}).ok());
  turns.after = twins.Decode(backend, turns.q, {});
  EXPECT_NE(turns.before.o, turns.after.o);
  return turns;
}

// Two decodes in flight and writes behind them: each answer is that of its own moment.
TEST_F(CudaBackendTest, CallsTakeEffectInOrder) {
  Twins twins(kLayout, 5000, 4);
  const auto backend = MakeCudaBackend({.layout = kLayout, .num_pages = twins.num_pages()});
  ASSERT_TRUE(backend.ok()) << backend.status();
  ASSERT_EQ((*backend)->max_decodes_in_flight(), 2);
  const auto [append, overwrite, q, before, after] = TakeTurns(twins, **backend);

  ASSERT_TRUE((*backend)->Append({&append, 1}).ok());
  // More items than a wave takes.
  std::vector<Twins::Answer> first(600), second(3);
  std::vector<DecodeItem> items;
  for (Twins::Answer& answer : first) items.push_back(twins.Item(q, {}, answer));
  ASSERT_TRUE((*backend)->BeginDecode(items).ok());
  ASSERT_TRUE((*backend)->Append({&overwrite, 1}).ok());
  items.clear();
  for (Twins::Answer& answer : second) items.push_back(twins.Item(q, {}, answer));
  ASSERT_TRUE((*backend)->BeginDecode(items).ok());
  double seconds = 0;
  ASSERT_TRUE((*backend)->AwaitDecode(&seconds).ok());
  EXPECT_GT(seconds, 0);
  for (const Twins::Answer& answer : first) EXPECT_EQ(answer.o, before.o);
  ASSERT_TRUE((*backend)->AwaitDecode(&seconds).ok());
  for (const Twins::Answer& answer : second) EXPECT_EQ(answer.o, after.o);
  EXPECT_FALSE((*backend)->AwaitDecode(&seconds).ok());  // nothing was begun
}

// The few tokens of a step, which may be kept to go to the device with the queries behind them.
TEST_F(CudaBackendTest, FewTokensTakeEffectInOrder) {
  Twins twins(kLayout, 60, 6);
  ASSERT_EQ(twins.num_pages(), 1);
  const auto backend = MakeCudaBackend({.layout = kLayout, .num_pages = 2});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const auto [append, overwrite, q, before, after] = TakeTurns(twins, **backend);

  const int32_t other_page = 1;
  const PageCopy copy = {.from = 0, .to = other_page};
  KvAppend overwrite_copy = overwrite;
  overwrite_copy.page_table = &other_page;
  const auto decode_copy = [&] {
    Twins::Answer answer;
    DecodeItem item = twins.Item(q, {}, answer);
    item.page_table = &other_page;
    EXPECT_TRUE((*backend)->Decode({&item, 1}).ok());
    return answer.o;
  };
  for (int turn = 0; turn < 20; ++turn) {
    ASSERT_TRUE((*backend)->Append({&append, 1}).ok());
    ASSERT_TRUE((*backend)->CopyPages({&copy, 1}).ok());
    EXPECT_EQ(decode_copy(), before.o);
    ASSERT_TRUE((*backend)->CopyPages({&copy, 1}).ok());
    ASSERT_TRUE((*backend)->Append({&overwrite_copy, 1}).ok());
    EXPECT_EQ(decode_copy(), after.o);

    Twins::Answer first, second;
    const DecodeItem items[] = {twins.Item(q, {}, first), twins.Item(q, {}, second)};
    ASSERT_TRUE((*backend)->BeginDecode({&items[0], 1}).ok());
    ASSERT_TRUE((*backend)->Append({&overwrite, 1}).ok());
    ASSERT_TRUE((*backend)->BeginDecode({&items[1], 1}).ok());
    double seconds = 0;
    ASSERT_TRUE((*backend)->AwaitDecode(&seconds).ok());
    ASSERT_TRUE((*backend)->AwaitDecode(&seconds).ok());
    EXPECT_EQ(first.o, before.o);
    EXPECT_EQ(second.o, after.o);

    ASSERT_TRUE((*backend)->Append({&append, 1}).ok());
    ASSERT_TRUE((*backend)->Append({&overwrite, 1}).ok());
    bool matches = false;
    ASSERT_TRUE((*backend)->Compare({&overwrite, 1}, {&matches, 1}).ok());
    EXPECT_TRUE(matches);
  }
}

// Runs in a process of its own, which the broken device dies with: 0 where every call after the first error answers it.
int BreakTheDevice() {
  Twins twins(kLayout, 100, 5);
  const auto backend = MakeCudaBackend({.layout = kLayout, .num_pages = twins.num_pages()});
  if (!backend.ok()) return 1;
  const std::vector<int32_t> nowhere(twins.num_pages(), 1 << 30);
  const KvAppend append = twins.Append();
  KvAppend stray = append;
  stray.page_table = nowhere.data();
  // The error is the device's, so a later call may be the first to see it.
  absl::Status first = (*backend)->Append({&stray, 1});
  const std::vector<float> q = twins.Queries(1);
  Twins::Answer answer;
  const DecodeItem item = twins.Item(q, {}, answer);
  if (first.ok()) first = (*backend)->Decode({&item, 1});
  if (first.code() != absl::StatusCode::kInternal) return 2;
  if (first.message().find(" failed: ") == std::string::npos) return 3;
  bool matches = false;
  double seconds = 0;
  for (const absl::Status& status :
       {(*backend)->Append({&append, 1}), (*backend)->Compare({&append, 1}, {&matches, 1}),
        (*backend)->Decode({&item, 1}), (*backend)->BeginDecode({&item, 1}), (*backend)->AwaitDecode(&seconds)}) {
    if (status.ok()) return 4;
  }
  return (*backend)->Decode({&item, 1}) == first ? 0 : 5;
}

// compute-sanitizer rightly objects to this one.
TEST(CudaBackendDeathTest, AnErrorOfTheDeviceSticks) {
  if (const std::string why = WhyNoGpu(); !why.empty()) GTEST_SKIP() << why;
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::_Exit(BreakTheDevice()), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace santa::testing
