#include "client/bench/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace santa::bench {

// Values below 2^kSubBits have a bucket each; above, the kSubBits bits that follow the leading one choose it.
int64_t LatencyHistogram::Bucket(int64_t value) {
  if (value < kSub) return value;
  const int shift = std::bit_width(static_cast<uint64_t>(value)) - 1 - kSubBits;
  const int64_t bucket = (shift + 1) * kSub + ((value >> shift) - kSub);
  return std::min(bucket, kBuckets - 1);
}

int64_t LatencyHistogram::UpperEnd(int64_t bucket) {
  if (bucket < kSub) return bucket;
  const int64_t shift = bucket / kSub - 1;
  return ((bucket % kSub + kSub + 1) << shift) - 1;
}

void LatencyHistogram::Record(int64_t nanoseconds) {
  const int64_t value = std::max<int64_t>(0, nanoseconds);
  ++counts_[Bucket(value)];
  ++count_;
  max_ = std::max(max_, value);
  sum_ += static_cast<double>(value);
}

void LatencyHistogram::Merge(const LatencyHistogram& other) {
  for (int64_t i = 0; i < kBuckets; ++i) counts_[i] += other.counts_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
}

double LatencyHistogram::mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0; }

int64_t LatencyHistogram::Quantile(double fraction) const {
  const auto rank = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(fraction * static_cast<double>(count_))));
  int64_t seen = 0;
  for (int64_t bucket = 0; bucket + 1 < kBuckets; ++bucket) {
    seen += counts_[bucket];
    if (seen >= rank) return std::min(UpperEnd(bucket), max_);
  }
  return max_;
}

}  // namespace santa::bench
