#include "server/backend_choice.h"

#include <gtest/gtest.h>

namespace santa {
namespace {

// Linked with //kernels/cuda:no_cuda.
BackendChoice Choice(const std::string& backend) {
  return {.backend = backend,
          .layout = {.num_layers = 1, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 64},
          .kv_bytes = 1 << 20,
          .threads = 1};
}

TEST(BackendChoiceTest, TheCacheHasThePagesThatFit) {
  const auto backend = MakeBackend(Choice("cpu"));
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->name(), "cpu");
  EXPECT_EQ((*backend)->num_pages(), (1 << 20) / (2 * 2 * 64 * 64 * 2));
}

TEST(BackendChoiceTest, AutoIsTheCpuWithoutCuda) {
  const auto backend = MakeBackend(Choice("auto"));
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->name(), "cpu");
}

TEST(BackendChoiceTest, RefusalsNameTheFlag) {
  BackendChoice choice = Choice("cuda");
  EXPECT_EQ(MakeBackend(choice).status(), absl::UnimplementedError("--backend is cuda, but this build has no CUDA"));
  choice = Choice("abacus");
  EXPECT_EQ(MakeBackend(choice).status(),
            absl::InvalidArgumentError("--backend is \"abacus\"; allowed is cpu, cuda or auto"));
  choice = Choice("cpu");
  choice.kv_bytes = 1000;
  EXPECT_EQ(MakeBackend(choice).status(),
            absl::InvalidArgumentError(
                "--kv_bytes is 1000; allowed is room for one page or more of this layout, 32768 bytes each"));
  choice.kv_bytes = int64_t{1} << 60;
  EXPECT_EQ(MakeBackend(choice).status().code(), absl::StatusCode::kInvalidArgument);
  choice = Choice("cpu");
  choice.layout.dtype = DType::kFloat8E4M3;
  EXPECT_EQ(MakeBackend(choice).status(),
            absl::UnimplementedError("--dtype is fp8_e4m3; the CPU backend has fp32, bf16 and fp16"));
}

}  // namespace
}  // namespace santa
