#include "client/bench/load_run.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/bench/echo_client.h"
#include "client/bench/echo_server.h"
#include "client/bench/load_client.h"
#include "client/bench/step_source.h"

namespace santa::bench {
namespace {

using Clients = std::vector<std::unique_ptr<LoadClient>>;

constexpr int64_t kUploads = 8;  // clients that upload at the same time
// Random numbers of k and of v, and the tokens that they make.
constexpr int64_t kRandomNumbers = 1 << 23;
constexpr int64_t kLeastRandomTokens = 512;
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

// What all clients upload runs of.
struct Tokens {
  Tensor k;
  Tensor v;
};

Tokens MakeTokens(const LoadOptions& options, const v1::KvLayout& layout) {
  std::mt19937_64 random(options.seed);
  const int64_t numbers = int64_t{layout.num_kv_heads()} * layout.head_dim();  // of a token
  const std::vector<int64_t> shape = {std::max(kLeastRandomTokens, kRandomNumbers / numbers), layout.num_kv_heads(),
                                      layout.head_dim()};
  Tensor k = RandomTensor(shape, ElementType::kBFloat16, random);
  // Values have means, as a model's do: of none an output would be next to nothing, and its error large beside that.
  return {std::move(k), RandomTensor(shape, ElementType::kBFloat16, random, /*means=*/0.5f)};
}

// Connects all clients and uploads their sequences, a few at a time.
absl::StatusOr<Clients> Prepare(const LoadOptions& options, std::unique_ptr<LoadClient> first, const Tokens& tokens,
                                const std::atomic<bool>& stop, std::ostream& progress) {
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
      if (prepared.ok()) prepared = clients[i]->Prepare(tokens.k.view(), tokens.v.view(), stop);
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
  ProgressLine(const Clients& clients, std::ostream& out)
      : clients_(clients), out_(out), start_(Clock::now()), last_(start_) {}

  void SetPhase(const char* phase) { phase_ = phase; }  // thread safe; "warm-up", say

  void Print() {
    const Clock::time_point now = Clock::now();
    const auto counts = std::make_unique<LoadCounts>(Merged(clients_));
    const double rate = static_cast<double>(counts->steps_ever - steps_) / Between(last_, now);
    out_ << absl::StrFormat("%-7s %4.0f s  %8.0f steps/s  p50 %.0f us  p99 %.0f us  %d steps failed", phase_.load(),
                            Between(start_, now), rate, static_cast<double>(counts->latency.Quantile(0.5)) / 1e3,
                            static_cast<double>(counts->latency.Quantile(0.99)) / 1e3, counts->failed_steps);
    if (counts->prompts.count() > 0 || counts->failed_prompts > 0) {
      out_ << absl::StrFormat("  %d prompts, %d failed", counts->prompts.count(), counts->failed_prompts);
    }
    out_ << '\n' << std::flush;
    steps_ = counts->steps_ever;
    last_ = now;
  }

 private:
  static double Between(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
  }

  const Clients& clients_;
  std::ostream& out_;
  std::atomic<const char*> phase_ = "warm-up";
  const Clock::time_point start_;
  Clock::time_point last_;
  int64_t steps_ = 0;
};

// The server's counters, and when they were read.
struct Scrape {
  absl::StatusOr<ServerCounters> counters = ServerCounters();
  Clock::time_point time = {};
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

// The other half of a run with an echo.
struct Echo {
  std::unique_ptr<EchoProcess> process = {};  // null: one that was there
  std::vector<std::unique_ptr<EchoClient>> clients = {};
  int64_t request_bytes = 0;
  int64_t answer_bytes = 0;
};

absl::StatusOr<Echo> ConnectEcho(const LoadOptions& options, LoadClient& decoder) {
  const absl::StatusOr<LoadClient::Exchange> step = decoder.SendOne();
  if (!step.ok()) return step.status();
  Echo echo = {.request_bytes = static_cast<int64_t>(step->request.ByteSizeLong()),
               .answer_bytes = static_cast<int64_t>(step->response.ByteSizeLong())};
  std::string target = options.echo_server;
  if (target.empty()) {
    absl::StatusOr<std::unique_ptr<EchoProcess>> process = EchoProcess::Start();
    if (!process.ok()) return process.status();
    echo.process = *std::move(process);
    target = echo.process->target();
  }
  for (int64_t i = 0; i < options.decode_clients(); ++i) {
    absl::StatusOr<std::unique_ptr<EchoClient>> client =
        EchoClient::Connect({.target = target,
                             .kind = *options.echo,
                             .request = step->request,
                             .answer_bytes = echo.answer_bytes,
                             .in_flight = options.rate > 0 ? 1 : options.in_flight});
    if (!client.ok()) return client.status();
    echo.clients.push_back(*std::move(client));
  }
  return echo;
}

// Runs clients until the window's end, each on a thread of its own. Calls at_begin and at_end on this one.
template <typename Client, typename AtBegin, typename AtEnd>
void RunAll(const std::vector<std::unique_ptr<Client>>& clients, LoadWindow& window, const std::atomic<bool>& stop,
            const AtBegin& at_begin, const AtEnd& at_end) {
  std::vector<std::thread> threads;
  threads.reserve(clients.size());
  for (const auto& client : clients) {
    threads.emplace_back([&] { static_cast<void>(client->Run(window)); });
  }
  SleepUntil(window.begin, stop);
  if (!stop) at_begin();
  SleepUntil(window.end, stop);
  window.end = std::min(window.end.load(), Clock::now());
  at_end();
  for (std::thread& thread : threads) thread.join();
}

class Measurement {
 public:
  Measurement(const LoadOptions& options, const Clients& clients, const Echo* echo, const std::atomic<bool>& stop,
              std::ostream& progress)
      : options_(options), clients_(clients), echo_(echo), stop_(stop), line_(clients, progress) {}

  absl::StatusOr<LoadResult> Run() {
    const auto rounds = [this] {
      // The first of each kind warms up; the others follow on it after a moment.
      const int count = echo_ == nullptr ? 1 : kEchoRounds;
      for (int round = 0; round < count && !stop_; ++round) {
        const double warmup = round == 0 ? options_.warmup_seconds : std::min(options_.warmup_seconds, 0.05);
        if (echo_ != nullptr) RunEcho(warmup, options_.seconds / count);
        if (!stop_) RunLoad(warmup, options_.seconds / count);
      }
    };
    WithProgress(rounds, [this] { line_.Print(); });
    if (!measured_) return absl::CancelledError("stopped before anything was measured");
    if (!error_.ok()) return error_;
    result_.server = clients_[0]->info();
    result_.counts = Merged(clients_);
    for (const auto& client : clients_) {
      const LatencyHistogram latency = client->counts().latency;
      if (latency.count() > 0) result_.client_p99.push_back(latency.Quantile(0.99));
    }
    std::sort(result_.client_p99.begin(), result_.client_p99.end());
    if (echo_ != nullptr) {
      result_.echo.emplace();
      for (const auto& client : echo_->clients) result_.echo->Merge(client->latency());
      result_.request_bytes = echo_->request_bytes;
      result_.answer_bytes = echo_->answer_bytes;
    }
    return result_;
  }

 private:
  static constexpr int kEchoRounds = 8;

  void Open(LoadWindow& window, double warmup, double seconds, const char* phase) {
    window.begin = Clock::now() + Duration(warmup);
    window.end = window.begin + Duration(seconds);
    line_.SetPhase(warmup > 0.1 ? "warm-up" : phase);
  }

  void RunEcho(double warmup, double seconds) {
    LoadWindow window;
    Open(window, warmup, seconds, "echo");
    RunAll(
        echo_->clients, window, stop_, [this] { line_.SetPhase("echo"); }, [] {});
  }

  void RunLoad(double warmup, double seconds) {
    LoadWindow window;
    Open(window, warmup, seconds, "measure");
    Scrape first;
    const auto begin = [&] {
      first = ScrapeNow(options_);
      measured_ = true;
      line_.SetPhase("measure");
    };
    const auto end = [&] {
      if (measured_) AddCounters(first, ScrapeNow(options_));
      line_.SetPhase("drain");
    };
    RunAll(clients_, window, stop_, begin, end);
    result_.seconds += std::chrono::duration<double>(window.end.load() - window.begin).count();
  }

  void AddCounters(const Scrape& first, const Scrape& last) {
    if (options_.metrics.empty()) return;
    if (!first.counters.ok()) error_ = first.counters.status();
    if (!last.counters.ok()) result_.metrics_error = std::string(last.counters.status().message());
    if (!result_.metrics_error.empty()) result_.server_counters.reset();
    if (!error_.ok() || !result_.metrics_error.empty()) return;
    if (!result_.server_counters) result_.server_counters.emplace();
    *result_.server_counters += *last.counters - *first.counters;
    result_.server_seconds += std::chrono::duration<double>(last.time - first.time).count();
  }

  const LoadOptions& options_;
  const Clients& clients_;
  const Echo* const echo_;
  const std::atomic<bool>& stop_;
  ProgressLine line_;
  LoadResult result_;
  bool measured_ = false;
  absl::Status error_;  // /metrics did not answer in the beginning
};

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options, const std::atomic<bool>& stop, std::ostream& progress) {
  absl::StatusOr<std::unique_ptr<LoadClient>> first = LoadClient::Connect(options, 0);
  if (!first.ok()) return first.status();
  if (absl::Status status = CheckAgainst((*first)->info(), options); !status.ok()) return status;
  if (!options.metrics.empty()) {  // before the uploads, which may take minutes
    if (absl::Status status = ScrapeCounters(options.metrics).status(); !status.ok()) return status;
  }
  const Tokens tokens = MakeTokens(options, (*first)->info().layout());
  const absl::StatusOr<Clients> clients = Prepare(options, *std::move(first), tokens, stop, progress);
  if (!clients.ok()) return clients.status();
  if (!options.echo) return Measurement(options, *clients, nullptr, stop, progress).Run();
  const absl::StatusOr<Echo> echo = ConnectEcho(options, *(*clients)[0]);
  if (!echo.ok()) return echo.status();
  return Measurement(options, *clients, &*echo, stop, progress).Run();
}

}  // namespace santa::bench
