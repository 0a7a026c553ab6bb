// Latencies, counted in buckets whose width grows with the value, as in HdrHistogram (G. Tene): constant memory, a
// relative error below 1 % at any quantile.
#ifndef SANTA_CLIENT_BENCH_LATENCY_HISTOGRAM_H_
#define SANTA_CLIENT_BENCH_LATENCY_HISTOGRAM_H_

#include <array>
#include <cstdint>

namespace santa::bench {

// Not thread safe.
class LatencyHistogram {
 public:
  // Below 0 counts as 0; above about 18 minutes counts in the last bucket (max() and mean() stay true).
  void Record(int64_t nanoseconds);
  void Merge(const LatencyHistogram& other);

  int64_t count() const { return count_; }
  int64_t max() const { return max_; }  // nanoseconds, exact; 0 when empty
  double mean() const;                  // nanoseconds, exact; 0 when empty

  // The least recorded value (its bucket's upper end, at most max()) that `fraction` of all values do not exceed, in
  // nanoseconds. fraction in (0, 1]. 0 when empty.
  int64_t Quantile(double fraction) const;

 private:
  static constexpr int kSubBits = 7;  // 128 buckets for each power of two: 1 / 128 < 1 %
  static constexpr int kMaxBits = 40;
  static constexpr int64_t kSub = int64_t{1} << kSubBits;
  static constexpr int64_t kBuckets = (kMaxBits - kSubBits + 1) * kSub;

  static int64_t Bucket(int64_t value);
  static int64_t UpperEnd(int64_t bucket);  // the largest value in it

  std::array<int64_t, kBuckets> counts_ = {};
  int64_t count_ = 0;
  int64_t max_ = 0;
  double sum_ = 0;
};

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_LATENCY_HISTOGRAM_H_
