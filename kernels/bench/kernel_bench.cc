// Measures the decode-attention kernels. See --help, and docs/benchmarks.md.
#include <cstdio>
#include <exception>
#include <string_view>
#include <vector>

#include "kernels/bench/measure.h"
#include "kernels/bench/options.h"

namespace {

int Run(int argc, char** argv) {
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  const absl::StatusOr<santa::bench::Options> options = santa::bench::ParseOptions(arguments);
  if (!options.ok()) {
    std::fprintf(stderr, "kernel_bench: %s\n", std::string(options.status().message()).c_str());
    return 2;
  }
  if (options->help) {
    std::fputs(santa::bench::Usage().c_str(), stdout);
    return 0;
  }
  const absl::StatusOr<santa::bench::Report> report = santa::bench::Measure(*options);
  if (!report.ok()) {
    std::fprintf(stderr, "kernel_bench: %s\n", std::string(report.status().message()).c_str());
    // A flag's value that only the backend could judge.
    return report.status().code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
  }
  std::fputs((options->json ? JsonLines(*options, *report) : Table(*options, *report)).c_str(), stdout);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {  // out of memory, say
    std::fprintf(stderr, "kernel_bench: %s\n", error.what());
    return 1;
  }
}
