// The decode kernels against the fp64 reference, on a GPU; skipped where there is none.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/exact.h"
#include "kernels/cuda/s2anta_flash.h"
#include "kernels/reference/estimators.h"
#include "kernels/reference/number_format.h"

namespace santa::cuda {
namespace {

constexpr int kHeadDim = 128;
constexpr int kPageSize = 64;
constexpr int kSplitTokens = 512;

void Check(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// Device memory with a host vector's contents.
template <typename T>
class DeviceVector {
 public:
  explicit DeviceVector(const std::vector<T>& host) : size_(host.size()) {
    Check(cudaMalloc(&data_, std::max<size_t>(size_, 1) * sizeof(T)));
    Check(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceVector() { cudaFree(data_); }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;

  T* get() { return data_; }
  std::vector<T> Read() const {
    std::vector<T> host(size_);
    Check(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

// One sequence in a pool whose pages are shuffled and whose other tokens are NaN.
struct Problem {
  DType dtype;
  reference::Step step;
  std::vector<uint16_t> pool;
  std::vector<int32_t> page_table;
};

std::vector<double> Normal(DType dtype, size_t count, double deviation, std::mt19937_64& random) {
  std::normal_distribution<double> normal(0, deviation);
  std::vector<double> values(count);
  for (double& value : values) value = normal(random);
  return reference::RoundAll(dtype, values);
}

Problem MakeProblem(DType dtype, int group_size, int num_kv_heads, int64_t num_tokens) {
  std::mt19937_64 random(group_size * 1000 + num_tokens);
  Problem problem{.dtype = dtype, .step = {}, .pool = {}, .page_table = {}};
  reference::Step& step = problem.step;
  step.num_query_heads = group_size * num_kv_heads;
  step.num_kv_heads = num_kv_heads;
  step.head_dim = kHeadDim;
  step.num_tokens = num_tokens;
  step.q = Normal(dtype, static_cast<size_t>(step.num_query_heads) * kHeadDim, 2, random);
  step.k = Normal(dtype, num_tokens * num_kv_heads * kHeadDim, 1, random);
  step.v = Normal(dtype, num_tokens * num_kv_heads * kHeadDim, 1, random);
  const auto pages = static_cast<int32_t>((num_tokens + kPageSize - 1) / kPageSize) + 3;
  problem.page_table.resize(pages);
  std::iota(problem.page_table.begin(), problem.page_table.end(), 0);
  std::shuffle(problem.page_table.begin(), problem.page_table.end(), random);
  problem.pool.assign(static_cast<size_t>(pages) * 2 * num_kv_heads * kPageSize * kHeadDim, 0x7fff);  // NaN
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int head = 0; head < num_kv_heads; ++head) {
      for (int which = 0; which < 2; ++which) {
        const size_t page = static_cast<size_t>(problem.page_table[token / kPageSize]) * 2 + which;
        const size_t to = ((page * num_kv_heads + head) * kPageSize + token % kPageSize) * kHeadDim;
        const std::vector<double>& from = which == 0 ? step.k : step.v;
        for (int d = 0; d < kHeadDim; ++d) {
          const double value = from[(token * num_kv_heads + head) * kHeadDim + d];
          problem.pool[to + d] = static_cast<uint16_t>(reference::Encode(dtype, value));
        }
      }
    }
  }
  return problem;
}

struct Answer {
  std::vector<float> o, lse;
  unsigned long long rows_read = 0;
};

using LaunchFunction = cudaError_t (*)(const DecodeLaunch&, cudaStream_t);

// Runs the step once for each seed, all in one launch.
std::vector<Answer> RunStep(const Problem& problem, LaunchFunction launch_function,
                            const std::vector<uint64_t>& seeds) {
  const reference::Step& step = problem.step;
  const int64_t begin = step.options.window == 0 ? 0 : std::max<int64_t>(0, step.num_tokens - step.options.window);
  const auto first_split = static_cast<int>(begin / kSplitTokens);
  const int num_splits = static_cast<int>((step.num_tokens + kSplitTokens - 1) / kSplitTokens) - first_split;
  const size_t items = seeds.size(), outputs = step.q.size(), heads = step.num_query_heads;

  std::vector<uint16_t> q_bits;
  for (const double value : step.q) q_bits.push_back(static_cast<uint16_t>(reference::Encode(problem.dtype, value)));
  DeviceVector<uint16_t> pool(problem.pool), q(q_bits);
  DeviceVector<int32_t> page_table(problem.page_table);
  DeviceVector<float> o(std::vector<float>(items * outputs, NAN)), lse(std::vector<float>(items * heads, NAN));
  DeviceVector<float> sinks(std::vector<float>(step.sink_logits.begin(), step.sink_logits.end()));
  DeviceVector<unsigned long long> rows_read(std::vector<unsigned long long>(items, 0));
  DeviceVector<float> partial_o(std::vector<float>(items * num_splits * outputs, NAN));
  DeviceVector<float2> partial_max_sum(std::vector<float2>(items * num_splits * heads, float2{NAN, NAN}));
  DeviceVector<unsigned> tickets(std::vector<unsigned>(items * step.num_kv_heads, 0));
  std::vector<DeviceItem> host_items;
  std::vector<WorkUnit> work;
  for (size_t i = 0; i < items; ++i) {
    host_items.push_back({.layer = pool.get(),
                          .page_table = page_table.get(),
                          .q = q.get(),
                          .o = o.get() + i * outputs,
                          .lse = lse.get() + i * heads,
                          .sinks = step.sink_logits.empty() ? nullptr : sinks.get(),
                          .rows_read = rows_read.get() + i,
                          .seed = seeds[i],
                          .sampling_key = 5,
                          .position = static_cast<int32_t>(step.num_tokens - 1),
                          .begin = static_cast<int32_t>(begin),
                          .end = static_cast<int32_t>(step.num_tokens),
                          .first_split = static_cast<int32_t>(i) * num_splits,
                          .num_splits = num_splits,
                          .layer_index = 0,
                          .sample_count = step.options.sample_count,
                          .scale = step.options.scale,
                          .soft_cap = step.options.soft_cap,
                          .io_dtype = DType::kFloat32});
    for (int split = 0; split < num_splits; ++split) {
      const auto from = std::max<int64_t>(begin, (first_split + split) * kSplitTokens);
      const auto to = std::min<int64_t>(step.num_tokens, (first_split + split + 1) * kSplitTokens);
      work.push_back({static_cast<int>(i), split, static_cast<int>(from), static_cast<int>(to)});
    }
  }
  DeviceVector<DeviceItem> device_items(host_items);
  DeviceVector<WorkUnit> device_work(work);
  const DecodeLaunch launch{.items = device_items.get(),
                            .work = device_work.get(),
                            .num_work = static_cast<int32_t>(work.size()),
                            .partial_o = partial_o.get(),
                            .partial_max_sum = partial_max_sum.get(),
                            .tickets = tickets.get(),
                            .num_kv_heads = step.num_kv_heads,
                            .group_size = step.num_query_heads / step.num_kv_heads,
                            .head_dim = kHeadDim,
                            .page_shift = 6,
                            .dtype = problem.dtype};
  Check(launch_function(launch, nullptr));
  Check(cudaDeviceSynchronize());
  const std::vector<float> all_o = o.Read(), all_lse = lse.Read();
  const std::vector<unsigned long long> all_rows = rows_read.Read();
  std::vector<Answer> answers(items);
  for (size_t i = 0; i < items; ++i) {
    answers[i].o.assign(all_o.begin() + i * outputs, all_o.begin() + (i + 1) * outputs);
    answers[i].lse.assign(all_lse.begin() + i * heads, all_lse.begin() + (i + 1) * heads);
    answers[i].rows_read = all_rows[i];
  }
  return answers;
}

double RelativeError(const std::vector<float>& found, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

class DecodeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_F(DecodeTest, ExactMatchesTheReference) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int group_size : {1, 3, 4, 8, 16}) {
      for (const int64_t tokens : {1, 15, 64, 511, 512, 513, 1700}) {
        for (const uint32_t window : {0u, 100u}) {
          SCOPED_TRACE(std::string(Name(dtype)) + " G " + std::to_string(group_size) + " n " + std::to_string(tokens) +
                       " window " + std::to_string(window));
          Problem problem = MakeProblem(dtype, group_size, 2, tokens);
          problem.step.options = {.scale = 0.1f, .window = window, .soft_cap = window == 0 ? 0.0f : 5.0f};
          if (window != 0) problem.step.sink_logits.assign(problem.step.num_query_heads, 1.5);
          const reference::Output expected = reference::Exact(problem.step);
          const std::vector<Answer> answers = RunStep(problem, LaunchExact, {1, 2});
          // The weights are rounded to the cache's type for the second product, as every tensor-core kernel does.
          EXPECT_LT(RelativeError(answers[0].o, expected.o), dtype == DType::kBFloat16 ? 4e-3 : 5e-4);
          EXPECT_LT(RelativeError(answers[0].lse, expected.lse), 1e-6);
          EXPECT_EQ(answers[0].o, answers[1].o);
        }
      }
    }
  }
}

TEST_F(DecodeTest, S2antaFlashHasTheEstimatorsMeanAndVariance) {
  constexpr int kSeeds = 2000;
  std::vector<uint64_t> seeds(kSeeds);
  std::iota(seeds.begin(), seeds.end(), 1);
  for (const int group_size : {1, 4, 7}) {
    SCOPED_TRACE("G " + std::to_string(group_size));
    Problem problem = MakeProblem(DType::kBFloat16, group_size, 2, 1100);
    problem.step.options = {.method = Method::kS2antaFlash, .sample_count = 64, .scale = 0.1f};
    const reference::Moments moments = reference::MomentsOf(problem.step);
    const reference::Output exact = reference::Exact(problem.step);
    const std::vector<Answer> answers = RunStep(problem, LaunchS2antaFlash, seeds);
    double sum_of_squares = 0, expected_squares = 0, worst = 0;
    for (size_t i = 0; i < moments.mean.size(); ++i) {
      double mean = 0;
      for (const Answer& answer : answers) {
        mean += answer.o[i] / kSeeds;
        sum_of_squares += (answer.o[i] - exact.o[i]) * (answer.o[i] - exact.o[i]) / kSeeds;
      }
      expected_squares += moments.variance[i];
      worst = std::max(worst, std::abs(mean - exact.o[i]) / std::sqrt(moments.variance[i] / kSeeds));
    }
    // 7 * 2 * 128 components at most: |z| > 5.5 in one of them is a false alarm in 1 of 14,000 runs.
    EXPECT_LT(worst, 5.5);
    EXPECT_NEAR(sum_of_squares / expected_squares, 1, 0.1);
    for (const Answer& answer : answers) {
      EXPECT_LE(answer.rows_read, 2u * group_size * 64);
      EXPECT_GT(answer.rows_read, 0u);
      EXPECT_LT(RelativeError(answer.lse, exact.lse), 1e-6);
    }
  }
}

TEST_F(DecodeTest, UnsupportedShapesAreRefused) {
  EXPECT_EQ(LaunchExact({.group_size = 17, .head_dim = 128, .dtype = DType::kBFloat16}, nullptr),
            cudaErrorNotSupported);
  EXPECT_EQ(LaunchExact({.group_size = 4, .head_dim = 80, .dtype = DType::kBFloat16}, nullptr), cudaErrorNotSupported);
  EXPECT_EQ(LaunchS2antaFlash({.group_size = 17, .head_dim = 128, .dtype = DType::kFloat16}, nullptr),
            cudaErrorNotSupported);
}

}  // namespace
}  // namespace santa::cuda
