// The queries of a group for keys that lie feature by feature: the features that are to be read, and of each what every
// head has of it.
#ifndef SANTA_KERNELS_CPU_FEATURE_QUERIES_H_
#define SANTA_KERNELS_CPU_FEATURE_QUERIES_H_

#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/decode_plan.h"

namespace santa::cpu {

// Features of K that a group reads, in ascending order; of a token-major cache none are listed.
struct FeatureList {
  const int32_t* features = nullptr;
  int32_t count = 0;
};

// Scratch of one worker thread.
struct FeatureScratch {
  std::vector<float> queries;        // [G][D]
  std::vector<uint64_t> thresholds;  // likewise
  std::vector<uint32_t> taken;       // likewise
  std::vector<uint32_t> uniforms;    // [D]
};

// Writes the features that the item's group reads to features [D], and returns how many they are: all of them, or with
// score draws those that some of the draws took, whose mean then stands for the query. queries: of chunk c [feature of
// the list][heads(c)], one chunk after the other, G * D numbers at most.
int32_t PackFeatures(const DecodeItem& item, const DecodeShape& shape, int kv_head, FeatureScratch& scratch,
                     int32_t* features, float* queries);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_FEATURE_QUERIES_H_
