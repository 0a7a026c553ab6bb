#include "kernels/cpu/cpu_backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "kernels/reference/number_format.h"
#include "kernels/testing/backend_suite.h"
#include "kernels/testing/cache.h"
#include "kernels/testing/shapes.h"

namespace santa::testing {
namespace {

BackendFactory WithThreads(int32_t num_threads) {
  return [num_threads](const KvLayout& layout, int32_t num_pages) {
    return MakeCpuBackend(
        {.layout = layout, .num_pages = num_pages, .num_threads = num_threads, .min_shared_bytes = 0});
  };
}

const BackendUnderTest kCpu = {.name = "cpu", .make = WithThreads(2), .variants = {WithThreads(1), WithThreads(3)}};

INSTANTIATE_TEST_SUITE_P(Cpu, BackendSuite,
                         ::testing::Values(kCpu, kCpu.FeatureMajor(), kCpu.Sketched(Sketch::kK4),
                                           kCpu.Sketched(Sketch::kK4V4), kCpu.Sketched(Sketch::kK8V8)),
                         NameOf);

constexpr KvLayout kLayout = {.num_layers = 1, .num_query_heads = 4, .num_kv_heads = 1, .head_dim = 8};

TEST(CpuBackendTest, RefusesBadOptions) {
  CpuBackendOptions options = {.layout = kLayout, .num_pages = 0};
  EXPECT_EQ(MakeCpuBackend(options).status(), absl::InvalidArgumentError("num_pages is 0; it must be at least 1"));
  options.num_pages = 1;
  options.num_threads = -1;
  EXPECT_EQ(MakeCpuBackend(options).status(), absl::InvalidArgumentError("num_threads is -1; it must be in [0, 1024]"));
  options.num_threads = 1025;
  EXPECT_EQ(MakeCpuBackend(options).status(),
            absl::InvalidArgumentError("num_threads is 1025; it must be in [0, 1024]"));
  options.num_threads = 0;
  options.layout.head_dim = 12;
  EXPECT_EQ(MakeCpuBackend(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuBackendTest, HasNoFloat8) {
  CpuBackendOptions options = {.layout = kLayout, .num_pages = 1};
  options.layout.dtype = DType::kFloat8E4M3;
  EXPECT_EQ(MakeCpuBackend(options).status(),
            absl::UnimplementedError("dtype is fp8_e4m3; the CPU backend has fp32, bf16 and fp16"));
}

TEST(CpuBackendTest, MoreMemoryThanThereIsIsAStatus) {
  CpuBackendOptions options = {.layout = kLayout, .num_pages = 2147483647};
  options.layout.num_layers = 65536;
  options.layout.head_dim = 256;
  options.layout.page_size = 256;
  EXPECT_EQ(MakeCpuBackend(options).status().code(), absl::StatusCode::kResourceExhausted);
  options.layout.num_kv_heads = options.layout.num_query_heads = 65536;  // past 2^64 bytes
  EXPECT_EQ(MakeCpuBackend(options).status().code(), absl::StatusCode::kResourceExhausted);
}

// Queries that bf16 holds may be multiplied as such; one number that it does not hold has all heads of the item
// multiplied the other way. That may change their rounding only.
TEST(CpuBackendTest, BothWaysToMultiplyABf16CacheAgree) {
  std::mt19937_64 random(1);
  const KvLayout layout = {.num_layers = 1, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 128};
  const std::unique_ptr<Cache> cache = Cache::Make(WithThreads(2), layout, 20);
  ASSERT_NE(cache, nullptr);
  const Sequence sequence = cache->Add(RandomTokens(layout, 1000, random));
  Query query = WithOptions(layout, sequence, {}, 0, random);
  query.q = reference::RoundAll(DType::kBFloat16, query.q);
  Query other = query;
  other.q[0] += 0x1p-20;
  const std::vector<Answer> answers = cache->Decode({query, other});
  ExpectClose("outputs", answers[1].o, answers[0].o, std::vector<double>(answers[0].o.size(), 2e-5));
  for (size_t h = 0; h < answers[0].lse.size(); ++h) EXPECT_NEAR(answers[1].lse[h], answers[0].lse[h], 1e-5);
  // What the rounding cannot do is change an answer made in other company.
  ExpectIdentical("alone", cache->Decode({query})[0], answers[0]);
  ExpectIdentical("alone, the other way", cache->Decode({other})[0], answers[1]);
}

// Small work stays on the calling thread, large work does not; the answer is the same.
TEST(CpuBackendTest, SharesWorkThatIsWorthIt) {
  std::mt19937_64 random(2);
  const KvLayout layout = {.num_layers = 1, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 128};
  std::vector<Answer> answers;
  for (const int64_t min_shared_bytes : {int64_t{0}, int64_t{1} << 40}) {
    random.seed(2);
    const std::unique_ptr<Cache> cache = Cache::Make(
        [&](const KvLayout& wanted, int32_t num_pages) {
          return MakeCpuBackend(
              {.layout = wanted, .num_pages = num_pages, .num_threads = 3, .min_shared_bytes = min_shared_bytes});
        },
        layout, 20);
    ASSERT_NE(cache, nullptr);
    const Sequence sequence = cache->Add(RandomTokens(layout, 1000, random));
    answers.push_back(cache->Decode({WithOptions(layout, sequence, {}, 0, random)})[0]);
  }
  ExpectIdentical("alone", answers[1], answers[0]);
}

TEST(CpuBackendTest, SaysWhatItRunsOn) {
  const auto backend = MakeCpuBackend({.layout = kLayout, .num_pages = 3, .num_threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->name(), "cpu");
  EXPECT_EQ((*backend)->num_pages(), 3);
  EXPECT_EQ((*backend)->layout().head_dim, 8);
  EXPECT_NE((*backend)->device().find(", 1 thread, "), std::string::npos) << (*backend)->device();
}

}  // namespace
}  // namespace santa::testing
