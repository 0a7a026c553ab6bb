// How fast the CPU reads memory: the yardstick of kernel_bench.
#ifndef SANTA_KERNELS_BENCH_CPU_READ_H_
#define SANTA_KERNELS_BENCH_CPU_READ_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cpu/page_memory.h"
#include "kernels/cpu/thread_pool.h"

namespace santa::bench {

// Threads that each read a contiguous share of memory larger than the caches, and do nothing else: the best case, which
// a paged cache cannot quite reach.
class CpuReader {
 public:
  // num_threads as in CpuBackendOptions.
  static absl::StatusOr<std::shared_ptr<CpuReader>> Make(int64_t most_bytes, int32_t num_threads);

  // Seconds to read `bytes`, at most most_bytes; other memory than the call before.
  double Read(int64_t bytes);

 private:
  explicit CpuReader(int32_t num_threads) : pool_(num_threads) {}

  cpu::ThreadPool pool_;
  cpu::PageMemory memory_;
  int64_t next_ = 0;
  std::atomic<uint64_t> sink_{0};  // so that no compiler leaves a read out
};

}  // namespace santa::bench

#endif  // SANTA_KERNELS_BENCH_CPU_READ_H_
