#include "kernels/cpu/cpu_backend.h"

#include <gtest/gtest.h>

#include <memory>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "kernels/testing/backend_suite.h"

namespace santa::testing {
namespace {

BackendFactory WithThreads(int32_t num_threads) {
  return [num_threads](const KvLayout& layout, int32_t num_pages) {
    return MakeCpuBackend({.layout = layout, .num_pages = num_pages, .num_threads = num_threads});
  };
}

INSTANTIATE_TEST_SUITE_P(Cpu, BackendSuite,
                         ::testing::Values(BackendUnderTest{
                             .name = "cpu", .make = WithThreads(2), .variants = {WithThreads(1), WithThreads(3)}}),
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
