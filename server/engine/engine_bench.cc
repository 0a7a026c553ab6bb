// What a step costs between Submit and `done` beside the device: one caller, one step after the other, no transport.
//
//     engine_bench --backend=cuda --items=16 --tokens=32768 [--mapped]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "server/engine/engine.h"

ABSL_FLAG(std::string, backend, "cpu", "cpu or cuda.");
ABSL_FLAG(int32_t, items, 1, "Sequences of a step.");
ABSL_FLAG(int32_t, tokens, 32768, "Tokens of each sequence.");
ABSL_FLAG(bool, mapped, false, "The device reads and writes the tensors where they lie, as those of shared memory.");
ABSL_FLAG(int32_t, steps, 2000, "Steps that are timed; each appends a token to every sequence, which is then dropped.");

namespace santa {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kChunkTokens = 1024;
constexpr KvLayout kLayout = {.num_layers = 1, .num_query_heads = 32, .num_kv_heads = 8, .head_dim = 128};
constexpr size_t kQueryNumbers = size_t{32} * 128;
constexpr size_t kTokenNumbers = size_t{8} * 128;

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(int32_t num_pages) {
  const std::string name = absl::GetFlag(FLAGS_backend);
  if (name == "cpu") return MakeCpuBackend({.layout = kLayout, .num_pages = num_pages});
  if (name == "cuda") return MakeCudaBackend({.layout = kLayout, .num_pages = num_pages});
  return absl::InvalidArgumentError(absl::StrCat("--backend is '", name, "'; it must be cpu or cuda"));
}

// A step over all sequences, and the memory of its tensors: bf16, whose contents do not matter. Token, queries, outputs
// and lse follow one another in whole pages.
class BenchStep {
 public:
  BenchStep(const std::vector<SequenceHandle>& sequences, int64_t most_tokens)
      : token_numbers_(most_tokens * kTokenNumbers), query_numbers_(kQueryNumbers * sequences.size()) {
    const size_t numbers = token_numbers_ + 2 * query_numbers_ + 2 * kLayout.num_query_heads * sequences.size();
    bytes_ = (numbers * sizeof(uint16_t) + kPage - 1) / kPage * kPage;
    memory_.reset(static_cast<uint16_t*>(std::aligned_alloc(kPage, bytes_)));
    std::fill_n(memory_.get(), bytes_ / sizeof(uint16_t), 0x3c00);
    step_.items.resize(sequences.size());
    for (size_t i = 0; i < sequences.size(); ++i) step_.items[i].sequence = sequences[i];
  }

  // False where the backend has no mapping for it.
  bool Map(Engine& engine) {
    mapped_ = engine.MapMemory({reinterpret_cast<char*>(memory_.get()), bytes_});
    return mapped_ != nullptr;
  }

  // Appends `count` tokens from `position` on to every sequence, and where `attends` asks for the last one's output.
  // How long it took.
  absl::StatusOr<Clock::duration> Run(Engine& engine, int64_t position, int64_t count, bool attends) {
    for (size_t i = 0; i < step_.items.size(); ++i) {
      StepItem& item = step_.items[i];
      const bool mapped = attends && mapped_ != nullptr;
      uint16_t* const queries = memory_.get() + token_numbers_;
      uint16_t* const outputs = queries + query_numbers_;
      item.tokens = {.position = position,
                     .count = count,
                     .dtype = DType::kBFloat16,
                     .k = memory_.get(),
                     .v = memory_.get(),
                     .mapped = mapped};
      item.position = position + count - 1;
      item.io_dtype = DType::kBFloat16;
      item.q = attends ? queries + i * kQueryNumbers : nullptr;
      item.o = outputs + i * kQueryNumbers;
      item.lse = reinterpret_cast<float*>(outputs + query_numbers_) + i * kLayout.num_query_heads;
      item.maps_query = item.maps_answer = mapped;
    }
    std::atomic<bool> done{false};
    step_.done = [&done] { done.store(true, std::memory_order_release); };
    const auto started = Clock::now();
    if (absl::Status status = engine.Submit(&step_); !status.ok()) return status;
    while (!done.load(std::memory_order_acquire)) std::this_thread::yield();
    const auto took = Clock::now() - started;
    for (const StepItem& item : step_.items) {
      if (!item.status.ok()) return item.status;
    }
    return took;
  }

  double device_seconds() const { return absl::ToDoubleSeconds(step_.device_time); }
  double queue_seconds() const { return absl::ToDoubleSeconds(step_.queue_time); }

 private:
  static constexpr size_t kPage = 4096;
  struct Free {
    void operator()(uint16_t* memory) const { std::free(memory); }
  };

  const size_t token_numbers_, query_numbers_;
  size_t bytes_ = 0;
  std::unique_ptr<uint16_t, Free> memory_;
  std::unique_ptr<MappedMemory> mapped_;
  Step step_;
};

void Print(const char* what, std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  std::printf("%-14s p50 %8.1f  p90 %8.1f us\n", what, 1e6 * seconds[seconds.size() / 2],
              1e6 * seconds[seconds.size() * 9 / 10]);
}

absl::Status Run() {
  const int64_t items = absl::GetFlag(FLAGS_items), tokens = absl::GetFlag(FLAGS_tokens),
                steps = absl::GetFlag(FLAGS_steps);
  if (items < 1 || tokens < 1 || steps < 1) {
    return absl::InvalidArgumentError("--items, --tokens and --steps must be at least 1");
  }
  const int64_t most = tokens + 1, pages = items * (most / kLayout.page_size + 1);
  absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend(static_cast<int32_t>(pages));
  if (!backend.ok()) return backend.status();
  PagePool pool(static_cast<int32_t>(pages));
  SequenceStore store(kLayout.num_layers, kLayout.page_size,
                      {.max_sequences = items,
                       .max_tokens_per_sequence = most,
                       .default_lease = absl::Hours(1),
                       .max_lease = absl::Hours(1)},
                      &pool);
  std::vector<SequenceHandle> sequences;
  for (int64_t i = 0; i < items; ++i) {
    const absl::StatusOr<SequenceInfo> made = store.Create("", absl::ZeroDuration(), 1, absl::Now());
    if (!made.ok()) return made.status();
    sequences.push_back(made->handle);
  }
  Engine engine(backend->get(), &store, &pool, {}, nullptr);
  BenchStep step(sequences, kChunkTokens);
  if (absl::GetFlag(FLAGS_mapped) && !step.Map(engine)) {
    return absl::UnimplementedError("--mapped is set, but the backend maps no memory");
  }
  for (int64_t at = 0; at < tokens; at += kChunkTokens) {
    const auto filled = step.Run(engine, at, std::min(kChunkTokens, tokens - at), false);
    if (!filled.ok()) return filled.status();
  }
  std::vector<double> all, device, queue, rest;
  for (int64_t i = 0; i < 2 * steps; ++i) {  // the first half warms up
    const auto took = step.Run(engine, tokens, 1, true);
    if (!took.ok()) return took.status();
    for (const SequenceHandle& sequence : sequences) {
      if (const auto cut = store.Truncate("", sequence, tokens, absl::Now()); !cut.ok()) return cut.status();
    }
    if (i < steps) continue;
    all.push_back(std::chrono::duration<double>(*took).count());
    device.push_back(step.device_seconds());
    queue.push_back(step.queue_seconds());
    rest.push_back(all.back() - device.back() - queue.back());
  }
  std::printf("%s: %lld items of %lld tokens\n", (*backend)->device().c_str(), static_cast<long long>(items),
              static_cast<long long>(tokens));
  Print("step", all);
  Print("device", device);
  Print("queue", queue);
  Print("rest", rest);
  return absl::OkStatus();
}

}  // namespace
}  // namespace santa

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Measures what a step costs in the engine beside the device.");
  absl::ParseCommandLine(argc, argv);
  if (const absl::Status status = santa::Run(); !status.ok()) {
    std::cerr << "engine_bench: " << status << "\n";
    return 1;
  }
  return 0;
}
