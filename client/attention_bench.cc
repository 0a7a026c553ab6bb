// A load generator for an attention server; --help tells what it does.
#include <atomic>
#include <csignal>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "client/bench/echo_server.h"
#include "client/bench/load_options.h"
#include "client/bench/load_report.h"
#include "client/bench/load_run.h"

namespace {

constexpr int kFailed = 1;
constexpr int kUsageError = 2;

std::atomic<bool> stop = false;
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

void Stop(int /*signal*/) { stop = true; }

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  const absl::StatusOr<santa::bench::LoadOptions> options = santa::bench::ParseLoadOptions(arguments);
  if (!options.ok()) {
    std::cerr << "attention_bench: " << options.status().message() << "\nTry --help.\n";
    return kUsageError;
  }
  if (options->help) {
    std::cout << santa::bench::LoadUsage();
    return 0;
  }
  // The first one ends the load with what it measured, its sequences released; a second one ends the program.
  struct sigaction action = {};
  action.sa_handler = Stop;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);

  if (!options->serve_echo.empty()) {
    const absl::Status status = santa::bench::ServeEcho(options->serve_echo, stop, std::cout);
    if (status.ok()) return 0;
    std::cerr << "attention_bench: " << status.message() << '\n';
    return kFailed;
  }

  const absl::StatusOr<santa::bench::LoadResult> result = santa::bench::RunLoad(*options, stop, std::cerr);
  if (!result.ok()) {
    std::cerr << "attention_bench: " << result.status().message() << '\n';
    return absl::IsInvalidArgument(result.status()) ? kUsageError : kFailed;
  }
  std::cout << (options->json ? santa::bench::LoadJson(*options, *result) : santa::bench::LoadTable(*options, *result));
  return result->counts.steps > 0 || result->counts.prompt_tokens > 0 ? 0 : kFailed;
}
