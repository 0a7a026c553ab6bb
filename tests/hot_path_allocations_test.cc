// In the steady state a step allocates nothing on the server: counted over a whole server, from a message in shared
// memory to the answer there, so that gRPC's own allocations for a stream's messages are not among them.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <string>
#include <vector>

#include "tests/raw_ring_client.h"
#include "tests/server_fixture.h"

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCounts = false;  // the sanitizer has malloc
#else
constexpr bool kCounts = true;

// glibc's own, under the names that it keeps for whoever replaces them. operator new calls malloc.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(count, size);
}
void* realloc(void* memory, size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(memory, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, size);
}
}
#endif

namespace santa {
namespace {

constexpr int kItems = 3;
constexpr int kWarmUp = 300;
constexpr int kSteps = 1000;
// gRPC's threads and the one that looks for expired leases go on meanwhile. One in every step would be 1.
constexpr double kOfOthers = 0.2;

class HotPathTest : public ::testing::TestWithParam<v1::Method> {
 protected:
  HotPathTest() {
    for (int i = 0; i < kItems; ++i) {
      handles_[i] = Create(server_.stub.get()).handle();
      EXPECT_TRUE(Fill(server_.stub.get(), handles_[i], i, 0, kTokens).ok());
    }
  }

  std::string Step(int64_t position, bool with_token) {
    v1::AttendRequest request;
    for (int i = 0; i < kItems; ++i) {
      v1::AttendItem& item = *request.add_items();
      item = Item(handles_[i], i, 0, position, with_token);
      item.mutable_options()->set_method(GetParam());
      if (GetParam() != v1::METHOD_EXACT) item.mutable_options()->set_sample_count(16);
      item.mutable_options()->set_want_statistics(true);
    }
    request.set_request_id(1);
    return request.SerializeAsString();
  }

  // Of each of the steps, on average. The client allocates nothing meanwhile.
  double AllocationsOf(const std::vector<std::string>& steps) {
    RawRingClient client(server_);
    for (int i = 0; i < kWarmUp; ++i) client.Exchange(steps[i]);
    const int64_t before = allocations;
    for (size_t i = kWarmUp; i < steps.size(); ++i) client.Exchange(steps[i]);
    return static_cast<double>(allocations - before) / static_cast<double>(steps.size() - kWarmUp);
  }

  static constexpr int64_t kTokens = 50;
  TestServer server_{{}, 1024};
  v1::SequenceHandle handles_[kItems];
};

TEST_P(HotPathTest, AStepThatReads) {
  if (!kCounts) GTEST_SKIP() << "a sanitizer counts for itself";
  EXPECT_LT(AllocationsOf(std::vector<std::string>(kWarmUp + kSteps, Step(kTokens - 1, false))), kOfOthers);
}

// The books of a page, which begins with every 16th token, take up to four.
TEST_P(HotPathTest, AStepThatAppends) {
  if (!kCounts) GTEST_SKIP() << "a sanitizer counts for itself";
  std::vector<std::string> steps;
  steps.reserve(kWarmUp + kSteps);
  for (int i = 0; i < kWarmUp + kSteps; ++i) steps.push_back(Step(kTokens + i, true));
  EXPECT_LT(AllocationsOf(steps), kOfOthers + 4.0 * kItems / SmallLayout().page_size);
}

INSTANTIATE_TEST_SUITE_P(Methods, HotPathTest, ::testing::Values(v1::METHOD_EXACT, v1::METHOD_S2ANTA_FLASH),
                         [](const auto& info) { return info.param == v1::METHOD_EXACT ? "Exact" : "Flash"; });

}  // namespace
}  // namespace santa
