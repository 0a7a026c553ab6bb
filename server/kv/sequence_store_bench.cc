// What the books cost: planning a decode batch over long sequences, and expiring among many.
#include <vector>

#include "absl/time/clock.h"
#include "benchmark/benchmark.h"
#include "server/kv/sequence_store.h"

namespace santa {
namespace {

constexpr StoreLimits kLimits = {.max_sequences = 200000,
                                 .max_tokens_per_sequence = 1 << 20,
                                 .default_lease = absl::Hours(1),
                                 .max_lease = absl::Hours(2)};

// One token to each of range(0) sequences of 32,768 tokens: page tables of 513 pages.
void BM_PlanDecodeBatch(benchmark::State& state) {
  constexpr int64_t kTokens = 32768;
  const int64_t sequences = state.range(0);
  PagePool pool(static_cast<int32_t>(sequences * (kTokens / 64 + 1)));
  SequenceStore store(1, 64, kLimits, &pool);
  const absl::Time now = absl::Now();
  std::vector<TokenRange> ranges;
  std::vector<AppendPlan> plans(sequences);
  for (int64_t i = 0; i < sequences; ++i) {
    const SequenceHandle handle = store.Create("a", absl::ZeroDuration(), 1, now)->handle;
    ranges.push_back({.tenant = "a", .handle = handle, .layer = 0, .position = 0, .count = kTokens + 1});
    SequenceStore::Batch batch(&store, now);
    if (!batch.Append(ranges.back(), 0, &plans[i]).ok()) state.SkipWithError("the pool is too small");
    ranges.back().position = kTokens;
    ranges.back().count = 1;
  }
  for (auto _ : state) {
    for (const TokenRange& range : ranges) {
      benchmark::DoNotOptimize(store.Truncate("a", range.handle, kTokens, now));
    }
    SequenceStore::Batch batch(&store, now);
    for (int64_t i = 0; i < sequences; ++i) {
      if (!batch.Append(ranges[i], 0, &plans[i]).ok()) state.SkipWithError("append failed");
    }
  }
  state.SetItemsProcessed(state.iterations() * sequences);
}
BENCHMARK(BM_PlanDecodeBatch)->Arg(1)->Arg(256);

// A look for expired leases among range(0) sequences of which none is due.
void BM_ExpireNothing(benchmark::State& state) {
  PagePool pool(1);
  SequenceStore store(1, 64, kLimits, &pool);
  const absl::Time now = absl::Now();
  for (int64_t i = 0; i < state.range(0); ++i) {
    if (!store.Create("a", absl::ZeroDuration(), 1, now).ok()) state.SkipWithError("create failed");
  }
  for (auto _ : state) benchmark::DoNotOptimize(store.Expire(now));
}
BENCHMARK(BM_ExpireNothing)->Arg(100000);

// Creates range(0) sequences and lets all of them expire at once.
void BM_CreateAndExpire(benchmark::State& state) {
  PagePool pool(1);
  SequenceStore store(1, 64, kLimits, &pool);
  const absl::Time now = absl::Now();
  for (auto _ : state) {
    for (int64_t i = 0; i < state.range(0); ++i) {
      benchmark::DoNotOptimize(store.Create("a", absl::ZeroDuration(), 1, now));
    }
    if (store.Expire(now + absl::Hours(1)) != state.range(0)) state.SkipWithError("expire failed");
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_CreateAndExpire)->Arg(100000)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace santa

BENCHMARK_MAIN();
