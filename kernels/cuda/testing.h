// For tests of the decode kernels on a GPU: a sequence in a paged cache, any batch of steps over such sequences
// answered by whichever kernels their methods want, and what the CPU backend answers.
#ifndef SANTA_KERNELS_CUDA_TESTING_H_
#define SANTA_KERNELS_CUDA_TESTING_H_

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/estimators.h"

namespace santa::cuda {

// Skips its tests where there is no GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override;
};

void Check(cudaError_t error);

// Device memory with a host vector's contents.
template <typename T>
class DeviceVector {
 public:
  explicit DeviceVector(const std::vector<T>& host) : size_(host.size()) {
    Check(cudaMalloc(&data_, (size_ == 0 ? 1 : size_) * sizeof(T)));
    Check(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceVector() { cudaFree(data_); }
  DeviceVector(DeviceVector&& other) noexcept : size_(other.size_), data_(other.data_) { other.data_ = nullptr; }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;

  T* get() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> host(size_);
    Check(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

// What a launch's items have in common.
struct Shape {
  DType dtype = DType::kBFloat16;
  int32_t group_size = 4;
  int32_t num_kv_heads = 2;
  int32_t head_dim = 128;
  int32_t page_size = 64;
  bool scaled = false;  // fp8 with scales other than 1: powers of two, so that nothing is rounded
  Sketch sketch = Sketch::kK4;

  KvLayout layout() const;
  DType query_type() const { return dtype == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat16; }
};
std::string Describe(const Shape& shape);

// One sequence. Its numbers are as stored, times their scale; step.options are the test's to set.
struct Problem {
  Shape shape;
  reference::Step step;
  std::vector<int32_t> page_table;  // shuffled; a few of the pages are nobody's
  std::vector<float> scales;        // [2][H_kv], or empty
};

// Standard normal keys and values, queries of deviation 2, rounded to their types; a pure function of the arguments.
Problem MakeProblem(const Shape& shape, int64_t num_tokens);

// The layer's pool; every byte that holds no token is part of a NaN. So are the tokens before `first_token`.
std::vector<uint8_t> PoolOf(const Problem& problem, int64_t first_token = 0);

struct Answer {
  std::vector<float> o;                        // [H][D]
  std::vector<float> lse;                      // [H]
  std::vector<float> relative_standard_error;  // [H], NaN where a kernel has not written it
  uint64_t rows_read = 0;
};

// One step of a batch: the problem's, under a seed.
struct Item {
  const Problem* problem = nullptr;
  uint64_t seed = 0;
};

// Answers a batch of items of one shape on the GPU, cut into work as the backend cuts it. Tokens before the window are
// NaN in the cache. rows_read is 0 where EXACT answers.
std::vector<Answer> DecodeOnGpu(const std::vector<Item>& items);

// The same on the CPU backend, with a cache of a type that holds the same numbers.
std::vector<Answer> DecodeOnCpu(const std::vector<Item>& items);

// |found - expected| / |expected|; NaN counts as infinite.
double RelativeError(const float* found, const float* expected, size_t count);
double RelativeError(const std::vector<float>& found, const std::vector<double>& expected);

// How many seeds a statistical test takes: `full`, or a part of them where a checker such as compute-sanitizer makes
// every launch slow, full / N with SANTA_FEWER_SEEDS=N in the environment. A deviation of the same probability is then
// wider.
int SeedCount(int full);
double Widened(double deviation);

// Against the estimator's own mean and variance, over answers to one problem under as many seeds: the largest |z| of a
// component's mean, and the summed squared error over what it should be.
struct Fit {
  double worst_z = 0;
  double variance_ratio = 0;
};
Fit FitMoments(const Problem& problem, const std::vector<Answer>& answers);

// Relative error of an output whose draws are the same: sums in fp32, by tensor cores that truncate. A draw that moved
// makes a difference of more than one in S.
inline constexpr double kRounding = 1e-4;

// How many heads' outputs differ by more than rounding between two answers: their draws differ.
struct Comparison {
  int heads = 0;
  int moved = 0;
};

// Expects `found` to be what the CPU answers for the items, all of them sampled, but for moved draws, which are
// counted.
Comparison CompareToCpu(const std::vector<Item>& items, const std::vector<Answer>& found);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_TESTING_H_
