// The queries of a group for keys that lie feature by feature (KeyOrder::kFeatureMajor): the features that are to be
// read, and of each what every head has of it. With score draws (kernels/sampling/ternary_query.h) these are the
// features that some draw took, and the mean of the draws; else all features, and the query itself. In fp32: products
// with such keys are sums over features, which need no tensor core.
#ifndef SANTA_KERNELS_CUDA_FEATURE_QUERIES_H_
#define SANTA_KERNELS_CUDA_FEATURE_QUERIES_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/decode_launch.h"
#include "kernels/sampling/host_device.h"

namespace santa::cuda {

// Heads of a feature: those of the group, padded to what a kernel is compiled for.
SANTA_HOST_DEVICE int FeatureHeads(int group_size) { return group_size <= 4 ? 4 : group_size <= 8 ? 8 : 16; }

// One group's, in memory aligned to 16 bytes. The first `count` elements of each array count, features ascending.
class FeatureQueries {
 public:
  SANTA_HOST_DEVICE FeatureQueries(uint8_t* memory, int head_dim) : memory_(memory), head_dim_(head_dim) {}

  static SANTA_HOST_DEVICE size_t Bytes(int group_size, int head_dim) {
    return kArrays + (1 + static_cast<size_t>(FeatureHeads(group_size))) * head_dim * 4;
  }
  SANTA_HOST_DEVICE int32_t* count() const { return reinterpret_cast<int32_t*>(memory_); }
  // 16 bytes of zeros: what is read in the place of keys that do not count.
  SANTA_HOST_DEVICE uint4* zeros() const { return reinterpret_cast<uint4*>(memory_ + 16); }
  SANTA_HOST_DEVICE int32_t* features() const { return reinterpret_cast<int32_t*>(memory_ + kArrays); }  // [D]
  // [D][FeatureHeads], zeros past the group.
  SANTA_HOST_DEVICE float* numbers() const { return reinterpret_cast<float*>(memory_ + kArrays) + head_dim_; }

 private:
  static constexpr int kArrays = 32;

  uint8_t* memory_;
  int head_dim_;
};

// That of an item of the launch.
SANTA_HOST_DEVICE FeatureQueries FeatureQueriesOf(const DecodeLaunch& launch, int item, int kv_head) {
  const size_t bytes = FeatureQueries::Bytes(launch.group_size, launch.head_dim);
  return {launch.feature_queries + bytes * (static_cast<size_t>(item) * launch.num_kv_heads + kv_head),
          launch.head_dim};
}

struct FeatureQueriesLaunch {
  DecodeLaunch decode;  // whose feature_queries are written; `work` is not read
  int32_t num_items = 0;
};

// Writes those of every item, and adds the features to the items' features_read. cudaErrorNotSupported for a shape that
// the exact kernel has not got either. Asynchronous; nothing is allocated.
cudaError_t LaunchFeatureQueries(const FeatureQueriesLaunch& launch, cudaStream_t stream);

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_FEATURE_QUERIES_H_
