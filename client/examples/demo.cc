// Starts an attention server, decodes with a language model through it, and tells what each method costs and saves.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/examples/evaluation.h"
#include "client/examples/llama_model.h"
#include "client/examples/report.h"
#include "client/examples/run_setup.h"
#include "client/http_get.h"

ABSL_FLAG(int64_t, context, 4096, "Bytes of context: a prompt and the bytes that are scored after it.");
ABSL_FLAG(std::vector<std::string>, methods,
          (std::vector<std::string>{"EXACT", "SANTA", "STRATIFIED", "SYSTEMATIC", "S2ANTA_FLASH", "S2ANTA_PROP",
                                    "COORDINATED", "SKETCHED"}),
          "Methods of attention to compare, separated by commas.");
ABSL_FLAG(uint32_t, samples, 0, "Value rows drawn per query head, S. 0: context / 16.");
ABSL_FLAG(uint64_t, seed, 1, "Seed of every estimator's draws.");
ABSL_FLAG(std::vector<std::string>, passages, (std::vector<std::string>{"kjv_judges", "python_argparse"}),
          "Held-out passages: names of texts in --heldout, separated by commas. Empty: all.");
ABSL_FLAG(int32_t, pass_keys, 8, "Pass keys hidden in each passage.");
ABSL_FLAG(int64_t, score_bytes, 256, "Bytes scored after each passage's prompt.");
ABSL_FLAG(int64_t, generate, 160, "Bytes of text to write with each method. 0: none.");
ABSL_FLAG(bool, json, false, "Print one JSON object a line in place of text.");

namespace santa {
namespace {

using Clock = std::chrono::steady_clock;

void PrintText(const Evaluation& evaluation, const Passage& first, const v1::ServerInfo& info) {
  std::cout << "\nServer: " << info.backend() << " backend on " << info.device() << ", pages of "
            << info.layout().page_size() << " tokens\n";
  if (!evaluation.local().generated.empty()) {
    const std::string& prompt = first.prompt;
    const size_t tail = std::min<size_t>(prompt.size(), 300);
    std::cout << "\nPrompt (" << first.name << ", its last " << tail << " of " << prompt.size() << " bytes):\n"
              << prompt.substr(prompt.size() - tail) << "\n\nThe model goes on, at temperature 0.6:\n";
    std::vector<std::vector<std::string>> texts = {{"LOCAL", OneLine(evaluation.local().generated, 1000)}};
    for (const MethodScore& score : evaluation.methods()) texts.push_back({score.name, OneLine(score.generated, 1000)});
    std::cout << AlignedTable(texts);
  }
  std::cout << "\n"
            << AlignedTable(ScoreRows(evaluation, /*with_speed=*/true))
            << "\nLOCAL: exact attention in this process, over keys and values rounded as the server stores them.\n"
               "+/-: standard error of \"vs local\" over the scored bytes. S: value rows drawn per query head.\n"
               "tok/s: all forks of a prompt side by side, and one sequence alone.\n";
}

absl::Status Run() {
  const bool json = absl::GetFlag(FLAGS_json);
  const int64_t context = absl::GetFlag(FLAGS_context);
  const uint32_t samples =
      absl::GetFlag(FLAGS_samples) > 0 ? absl::GetFlag(FLAGS_samples) : static_cast<uint32_t>(context / 16);
  const auto methods = ParseMethods(absl::GetFlag(FLAGS_methods), {samples});
  if (!methods.ok()) return methods.status();
  const PassageOptions passage_options = {.context = context,
                                          .continuation = absl::GetFlag(FLAGS_score_bytes) + 1,
                                          .num_keys = absl::GetFlag(FLAGS_pass_keys)};
  const auto passages = LoadPassages(absl::GetFlag(FLAGS_passages), passage_options);
  if (!passages.ok()) return passages.status();

  const auto start = Clock::now();
  // The server first: it is forked off before this process has threads.
  auto setup = RunSetup::Start(context, absl::GetFlag(FLAGS_pass_keys) + 1,
                               std::max(absl::GetFlag(FLAGS_score_bytes), absl::GetFlag(FLAGS_generate)) + 64);
  if (!setup.ok()) return setup.status();
  const v1::ServerInfo& info = (*setup)->server().info();
  const auto progress = [&](const std::string& line) {
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    std::cerr << absl::StreamFormat("[%6.1f s] %s\n", seconds, line);
  };
  progress(absl::StrCat("server listens on ", (*setup)->process().grpc_address()));
  Evaluation evaluation(&(*setup)->model(), &(*setup)->server(),
                        {.methods = *methods,
                         .seed = absl::GetFlag(FLAGS_seed),
                         .generate = absl::GetFlag(FLAGS_generate),
                         .progress = progress});
  for (const Passage& passage : *passages) {
    if (absl::Status status = evaluation.AddPassage(passage); !status.ok()) return status;
  }
  const auto metrics = HttpGet((*setup)->process().http_address(), "/metrics");
  if (!metrics.ok()) return metrics.status();
  if (json) {
    std::cout << ScoreJson(evaluation, context);
  } else {
    PrintText(evaluation, passages->front(), info);
    std::cout << "\nThe server's metrics for this run:\n" << InterestingMetrics(*metrics) << std::flush;
  }
  absl::Status stopped = (*setup)->Stop();
  progress(stopped.ok() ? "server drained and gone" : stopped.ToString());
  return stopped;
}

}  // namespace
}  // namespace santa

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "Starts an attention server, decodes with a language model through it, and compares the methods.");
  absl::ParseCommandLine(argc, argv);
  if (const absl::Status status = santa::Run(); !status.ok()) {
    std::cerr << "demo: " << status << "\n";
    return 1;
  }
  return 0;
}
