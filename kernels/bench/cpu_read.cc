#include "kernels/bench/cpu_read.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

namespace santa::bench {
namespace {

constexpr int64_t kLeastMemory = int64_t{256} << 20;  // larger than any cache
constexpr int64_t kLine = 64;

uint64_t ReadAll(const uint8_t* begin, int64_t bytes) {
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + kLine <= bytes; i += kLine) {
    uint64_t words[8];
    std::memcpy(words, begin + i, sizeof(words));
    for (int w = 0; w < 8; ++w) sums[w] |= words[w];
  }
  uint64_t sum = 0;
  for (const uint64_t each : sums) sum |= each;
  return sum;
}

}  // namespace

absl::StatusOr<std::shared_ptr<CpuReader>> CpuReader::Make(int64_t most_bytes, int32_t num_threads) {
  if (num_threads == 0) num_threads = std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
  std::shared_ptr<CpuReader> reader(new CpuReader(num_threads));
  absl::StatusOr<cpu::PageMemory> memory =
      cpu::PageMemory::Allocate(std::max(2 * most_bytes, kLeastMemory), reader->pool_);
  if (!memory.ok()) return memory.status();
  reader->memory_ = *std::move(memory);
  return reader;
}

double CpuReader::Read(int64_t bytes) {
  if (next_ + bytes > static_cast<int64_t>(memory_.size())) next_ = 0;
  const uint8_t* const begin = memory_.data() + next_;
  next_ += (bytes + kLine - 1) / kLine * kLine;
  // A few shares a thread, so that one that is held up does not hold up all.
  const int64_t shares = int64_t{4} * pool_.num_threads();
  const int64_t share = (bytes / shares + kLine - 1) / kLine * kLine;
  const auto start = std::chrono::steady_clock::now();
  pool_.ParallelFor(shares, [&](int64_t index, int) {
    const int64_t offset = std::min(index * share, bytes);
    sink_.fetch_or(ReadAll(begin + offset, std::min(share, bytes - offset)), std::memory_order_relaxed);
  });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace santa::bench
