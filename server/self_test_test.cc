#include "server/self_test.h"

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "server/kv/page_pool.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"

namespace santa {
namespace {

constexpr Method kMethods[] = {Method::kExact,      Method::kSanta,       Method::kStratified,
                               Method::kSystematic, Method::kS2antaFlash, Method::kS2antaProp};
constexpr StoreLimits kLimits = {
    .max_sequences = 1, .max_tokens_per_sequence = 1000, .default_lease = absl::Hours(1), .max_lease = absl::Hours(1)};

// Tests the backend, and that nothing of it stays.
absl::Status SelfTest(Backend* backend, int64_t max_tokens = 1000, std::span<const Method> methods = kMethods) {
  PagePool pool(backend->num_pages());
  SequenceStore store(backend->layout().num_layers, backend->layout().page_size, kLimits, &pool);
  Engine engine(backend, &store, &pool, {}, [](const BatchReport& report) { EXPECT_TRUE(report.background); });
  absl::Status status = RunSelfTest(
      {.layout = backend->layout(), .scales = {}, .methods = methods, .max_tokens = max_tokens}, &engine, &store);
  EXPECT_EQ(store.size(), 0);
  EXPECT_EQ(pool.free_pages(), backend->num_pages());
  return status;
}

TEST(SelfTestTest, AWorkingBackendPassesInEveryShape) {
  const KvLayout shapes[] = {
      {.num_layers = 1, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8, .page_size = 16},
      {.num_layers = 3, .num_query_heads = 32, .num_kv_heads = 8, .head_dim = 128, .page_size = 64},
      {.num_layers = 2, .num_query_heads = 7, .num_kv_heads = 1, .head_dim = 256, .page_size = 256},
  };
  for (KvLayout layout : shapes) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      layout.dtype = dtype;
      const auto backend = MakeCpuBackend({.layout = layout, .num_pages = 2, .num_threads = 1});
      ASSERT_TRUE(backend.ok()) << backend.status();
      for (const int64_t max_tokens : {1, 20, 1000}) {
        const absl::Status status = SelfTest(backend->get(), max_tokens);
        EXPECT_TRUE(status.ok()) << status << " for " << Name(dtype) << ", D = " << layout.head_dim;
      }
    }
  }
}

TEST(SelfTestTest, AWorkingBackendWithFeatureMajorKeysPasses) {
  constexpr Method kWithScoreDraws[] = {Method::kExact, Method::kSystematic, Method::kCoordinated,
                                        Method::kBernoulliQk};
  for (const int32_t head_dim : {8, 128}) {
    const KvLayout layout = {.num_layers = 2,
                             .num_query_heads = 8,
                             .num_kv_heads = 2,
                             .head_dim = head_dim,
                             .page_size = 64,
                             .key_order = KeyOrder::kFeatureMajor};
    const auto backend = MakeCpuBackend({.layout = layout, .num_pages = 2, .num_threads = 1});
    ASSERT_TRUE(backend.ok()) << backend.status();
    const absl::Status status = SelfTest(backend->get(), 1000, kWithScoreDraws);
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(SelfTestTest, AnAnswerThatIsNotAttentionIsNamed) {
  FakeBackend backend(TestLayout(2), 8);  // answers with the mean
  const absl::Status status = SelfTest(&backend);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(std::string(status.message()).rfind("the self-test failed: EXACT in layer 0 gave ", 0), 0U) << status;
}

TEST(SelfTestTest, ADeviceThatFailsIsReported) {
  FakeBackend backend(TestLayout(2), 8);
  backend.set_hook([](FakeBackend::Call) { return absl::InternalError("on fire"); });
  const absl::Status status = SelfTest(&backend);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(status.message()).find("on fire"), std::string::npos) << status;
}

}  // namespace
}  // namespace santa
