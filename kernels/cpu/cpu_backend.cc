#include "kernels/cpu/cpu_backend.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/cpu/decoder.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/thread_pool.h"

namespace santa {
namespace {

constexpr int32_t kMaxThreads = 1024;

int32_t UsableCpus() {
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return std::max(CPU_COUNT(&cpus), 1);
  return std::max(static_cast<int32_t>(std::thread::hardware_concurrency()), 1);
}

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (absl::StartsWith(line, "model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

class CpuBackend : public Backend {
 public:
  CpuBackend(std::unique_ptr<cpu::ThreadPool> pool, cpu::KvCache cache, int64_t min_shared_bytes)
      : pool_(std::move(pool)), cache_(std::move(cache)), decoder_(cache_, *pool_, min_shared_bytes) {}

  std::string_view name() const override { return "cpu"; }

  std::string device() const override {
    const int threads = pool_->num_threads();
    return absl::StrCat(CpuName(), ", ", threads, threads == 1 ? " thread, " : " threads, ",
                        absl::StripPrefix(decoder_.target(), "N_"));
  }

  const KvLayout& layout() const override { return cache_.layout(); }
  int32_t num_pages() const override { return cache_.num_pages(); }

  absl::Status Supports(const AttentionOptions& options, int64_t /*num_tokens*/) const override {
    return SupportsLayout(options, layout());
  }

  absl::Status Append(std::span<const KvAppend> appends) override {
    for (const KvAppend& append : appends) cache_.Append(append, *pool_);
    return absl::OkStatus();
  }

  absl::Status Compare(std::span<const KvAppend> appends, std::span<bool> matches) override {
    for (size_t i = 0; i < appends.size(); ++i) matches[i] = cache_.Compare(appends[i]);
    return absl::OkStatus();
  }

  absl::Status CopyPages(std::span<const PageCopy> copies) override {
    cache_.CopyPages(copies);
    return absl::OkStatus();
  }

  absl::Status Decode(std::span<const DecodeItem> items) override {
    decoder_.Decode(items);
    return absl::OkStatus();
  }

 private:
  const std::unique_ptr<cpu::ThreadPool> pool_;
  cpu::KvCache cache_;
  cpu::Decoder decoder_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options) {
  if (absl::Status status = Validate(options.layout); !status.ok()) return status;
  if (options.layout.dtype == DType::kFloat8E4M3) {
    return absl::UnimplementedError("dtype is fp8_e4m3; the CPU backend has fp32, bf16 and fp16");
  }
  if (options.num_pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat("num_pages is ", options.num_pages, "; it must be at least 1"));
  }
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", options.num_threads, "; it must be in [0, ", kMaxThreads, "]"));
  }
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("sse4.2")) {
    return absl::UnimplementedError("the CPU backend needs SSE 4.2, which this CPU has not got");
  }
#endif
  auto pool = std::make_unique<cpu::ThreadPool>(options.num_threads == 0 ? UsableCpus() : options.num_threads);
  absl::StatusOr<cpu::KvCache> cache = cpu::KvCache::Allocate(options.layout, options.num_pages, *pool);
  if (!cache.ok()) return cache.status();
  return std::make_unique<CpuBackend>(std::move(pool), *std::move(cache), options.min_shared_bytes);
}

}  // namespace santa
