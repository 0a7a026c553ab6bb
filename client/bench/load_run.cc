#include "client/bench/load_run.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/bench/load_client.h"
#include "client/bench/step_source.h"

namespace santa::bench {
namespace {

using Clients = std::vector<std::unique_ptr<LoadClient>>;

constexpr int64_t kUploads = 8;  // clients that upload at the same time
constexpr int64_t kRepeatedTokens = 512;
constexpr std::chrono::milliseconds kPoll(20);

// Runs `work` beside, calling `each_second` until it is done.
template <typename Work>
void WithProgress(const Work& work, const std::function<void()>& each_second) {
  std::atomic<bool> done = false;
  std::thread worker([&] {
    work();
    done = true;
  });
  Clock::time_point next = Clock::now() + std::chrono::seconds(1);
  while (!done) {
    std::this_thread::sleep_for(kPoll);
    if (Clock::now() < next) continue;
    each_second();
    next += std::chrono::seconds(1);
  }
  worker.join();
}

// Connects all clients and uploads their sequences, a few at a time.
absl::StatusOr<Clients> Prepare(const LoadOptions& options, std::unique_ptr<LoadClient> first,
                                const std::atomic<bool>& stop, std::ostream& progress) {
  std::mt19937_64 random(options.seed);
  const v1::KvLayout& layout = first->info().layout();
  const int64_t tokens = std::clamp<int64_t>(options.tokens, 1, kRepeatedTokens);
  const std::vector<int64_t> shape = {tokens, layout.num_kv_heads(), layout.head_dim()};
  const Tensor k = RandomTensor(shape, ElementType::kBFloat16, random);
  const Tensor v = RandomTensor(shape, ElementType::kBFloat16, random);

  Clients clients(options.clients);
  clients[0] = std::move(first);
  std::atomic<int64_t> next = 0;
  std::atomic<int64_t> ready = 0;
  std::mutex mutex;
  absl::Status status;
  const auto prepare_some = [&] {
    for (int64_t i = next++; i < options.clients; i = next++) {
      absl::Status prepared;
      if (clients[i] == nullptr) {
        absl::StatusOr<std::unique_ptr<LoadClient>> client = LoadClient::Connect(options, i);
        prepared = client.status();
        if (client.ok()) clients[i] = *std::move(client);
      }
      if (prepared.ok()) prepared = clients[i]->Prepare(k.view(), v.view(), stop);
      ++ready;
      if (prepared.ok()) continue;
      next = options.clients;  // the others need not begin
      const std::lock_guard lock(mutex);
      status = prepared;
    }
  };
  const auto prepare_all = [&] {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < std::min(kUploads, options.clients); ++i) threads.emplace_back(prepare_some);
    for (std::thread& thread : threads) thread.join();
  };
  WithProgress(prepare_all, [&] {
    progress << absl::StrFormat("upload: %d of %d clients are ready\n", ready.load(), options.clients) << std::flush;
  });
  if (!status.ok()) return status;
  return clients;
}

LoadCounts Merged(const Clients& clients) {
  LoadCounts all;
  for (const auto& client : clients) all.Merge(client->counts());
  return all;
}

// One line about the second that went by.
class ProgressLine {
 public:
  ProgressLine(const Clients& clients, const LoadWindow& window, std::ostream& out)
      : clients_(clients), window_(window), out_(out), start_(Clock::now()), last_(start_) {}

  void Print() {
    const Clock::time_point now = Clock::now();
    const auto counts = std::make_unique<LoadCounts>(Merged(clients_));
    const double rate = static_cast<double>(counts->steps_ever - steps_) / Between(last_, now);
    out_ << absl::StrFormat("%-7s %4.0f s  %8.0f steps/s  p50 %.0f us  p99 %.0f us  %d steps failed\n", Phase(now),
                            Between(start_, now), rate, static_cast<double>(counts->latency.Quantile(0.5)) / 1e3,
                            static_cast<double>(counts->latency.Quantile(0.99)) / 1e3, counts->failed_steps)
         << std::flush;
    steps_ = counts->steps_ever;
    last_ = now;
  }

 private:
  static double Between(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
  }
  const char* Phase(Clock::time_point now) const {
    if (now < window_.begin) return "warm-up";
    return window_.Contains(now) ? "measure" : "drain";
  }

  const Clients& clients_;
  const LoadWindow& window_;
  std::ostream& out_;
  const Clock::time_point start_;
  Clock::time_point last_;
  int64_t steps_ = 0;
};

// The server's counters, and when they were read.
struct Scrape {
  absl::StatusOr<ServerCounters> counters;
  Clock::time_point time;
};

Scrape ScrapeNow(const LoadOptions& options) {
  if (options.metrics.empty()) return {ServerCounters(), Clock::now()};
  const Clock::time_point before = Clock::now();
  absl::StatusOr<ServerCounters> counters = ScrapeCounters(options.metrics);
  return {std::move(counters), before + (Clock::now() - before) / 2};
}

void SleepUntil(const std::atomic<Clock::time_point>& time, const std::atomic<bool>& stop) {
  while (!stop && Clock::now() < time.load()) {
    std::this_thread::sleep_until(std::min(time.load(), Clock::now() + kPoll));
  }
}

Clock::duration Duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// Warm-up, measured time and drain.
absl::StatusOr<LoadResult> Measure(const LoadOptions& options, const Clients& clients, const std::atomic<bool>& stop,
                                   std::ostream& progress) {
  LoadWindow window;
  window.begin = Clock::now() + Duration(options.warmup_seconds);
  window.end = window.begin + Duration(options.seconds);
  ProgressLine line(clients, window, progress);
  Scrape first = {absl::CancelledError("stopped before anything was measured"), {}};
  Scrape last = first;
  const auto run = [&] {
    std::vector<std::thread> threads;
    threads.reserve(clients.size());
    for (const auto& client : clients) threads.emplace_back([&] { client->Run(window); });
    SleepUntil(window.begin, stop);
    if (!stop) first = ScrapeNow(options);
    SleepUntil(window.end, stop);
    window.end = std::min(window.end.load(), Clock::now());
    last = ScrapeNow(options);
    for (std::thread& thread : threads) thread.join();
  };
  WithProgress(run, [&] { line.Print(); });
  if (!first.counters.ok()) return first.counters.status();
  LoadResult result;
  result.server = clients[0]->info();
  result.seconds = std::chrono::duration<double>(window.end.load() - window.begin).count();
  result.counts = Merged(clients);
  if (!last.counters.ok()) {
    result.metrics_error = std::string(last.counters.status().message());
  } else if (!options.metrics.empty()) {
    result.server_counters = *last.counters - *first.counters;
    result.server_seconds = std::chrono::duration<double>(last.time - first.time).count();
  }
  return result;
}

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options, const std::atomic<bool>& stop, std::ostream& progress) {
  absl::StatusOr<std::unique_ptr<LoadClient>> first = LoadClient::Connect(options, 0);
  if (!first.ok()) return first.status();
  if (absl::Status status = CheckAgainst((*first)->info(), options); !status.ok()) return status;
  if (!options.metrics.empty()) {  // before the uploads, which may take minutes
    if (absl::Status status = ScrapeCounters(options.metrics).status(); !status.ok()) return status;
  }
  const absl::StatusOr<Clients> clients = Prepare(options, *std::move(first), stop, progress);
  if (!clients.ok()) return clients.status();
  return Measure(options, *clients, stop, progress);
}

}  // namespace santa::bench
