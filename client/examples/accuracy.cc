// Prints the Markdown table of docs/accuracy.md for one context: every method at several sample counts.
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/examples/evaluation.h"
#include "client/examples/report.h"
#include "client/examples/run_setup.h"

ABSL_FLAG(int64_t, context, 8192, "Bytes of context: a prompt and the bytes that are scored after it.");
ABSL_FLAG(std::vector<std::string>, methods,
          (std::vector<std::string>{"EXACT", "SANTA", "STRATIFIED", "SYSTEMATIC", "S2ANTA_FLASH", "S2ANTA_PROP",
                                    "COORDINATED", "SKETCHED"}),
          "Methods of attention to compare, separated by commas.");
ABSL_FLAG(std::vector<std::string>, divisors, (std::vector<std::string>{"8", "16", "32"}),
          "Sample counts, as divisors of the context, separated by commas.");
ABSL_FLAG(
    std::vector<std::string>, score_draws, {"0"},
    "Score draws, R, of BERNOULLI_QK and the sampled methods (0: exact scores), separated by commas; other than 0 "
    "with --sketch=none --server_flags=--key_order=feature.");
ABSL_FLAG(uint64_t, seed, 1, "Seed of every estimator's draws.");
ABSL_FLAG(std::vector<std::string>, passages, {},
          "Held-out passages: names of texts in --heldout, separated by commas. Empty: all.");
ABSL_FLAG(int32_t, pass_keys, 8, "Pass keys hidden in each passage.");
ABSL_FLAG(int64_t, score_bytes, 256, "Bytes scored after each passage's prompt.");
ABSL_FLAG(bool, json, false, "Print one JSON object a line in place of the table.");

namespace santa {
namespace {

absl::Status Run() {
  const int64_t context = absl::GetFlag(FLAGS_context);
  std::vector<uint32_t> samples;
  for (const std::string& text : absl::GetFlag(FLAGS_divisors)) {
    int64_t divisor = 0;
    if (!absl::SimpleAtoi(text, &divisor) || divisor < 1 || divisor > context) {
      return absl::InvalidArgumentError(absl::StrCat("--divisors has ", text, "; allowed: [1, ", context, "]"));
    }
    samples.push_back(static_cast<uint32_t>(context / divisor));
  }
  std::vector<uint32_t> score_draws;
  for (const std::string& text : absl::GetFlag(FLAGS_score_draws)) {
    if (!absl::SimpleAtoi(text, &score_draws.emplace_back())) {
      return absl::InvalidArgumentError(absl::StrCat("--score_draws has ", text, "; allowed: 0 to 1024"));
    }
  }
  const auto methods = ParseMethods(absl::GetFlag(FLAGS_methods), samples, score_draws);
  if (!methods.ok()) return methods.status();
  const auto passages =
      LoadPassages(absl::GetFlag(FLAGS_passages), {.context = context,
                                                   .continuation = absl::GetFlag(FLAGS_score_bytes) + 1,
                                                   .num_keys = absl::GetFlag(FLAGS_pass_keys)});
  if (!passages.ok()) return passages.status();
  auto setup = RunSetup::Start(context, absl::GetFlag(FLAGS_pass_keys) + 1, absl::GetFlag(FLAGS_score_bytes) + 64);
  if (!setup.ok()) return setup.status();
  Evaluation evaluation(&(*setup)->model(), &(*setup)->server(),
                        {.methods = *methods,
                         .seed = absl::GetFlag(FLAGS_seed),
                         .progress = [](const std::string& line) { std::cerr << line << "\n"; }});
  for (const Passage& passage : *passages) {
    if (absl::Status status = evaluation.AddPassage(passage); !status.ok()) return status;
  }
  std::cout << (absl::GetFlag(FLAGS_json) ? ScoreJson(evaluation, context)
                                          : MarkdownTable(ScoreRows(evaluation, /*with_speed=*/false)));
  return (*setup)->Stop();
}

}  // namespace
}  // namespace santa

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Measures what each method of attention does to a language model, at one context.");
  absl::ParseCommandLine(argc, argv);
  if (const absl::Status status = santa::Run(); !status.ok()) {
    std::cerr << "accuracy: " << status << "\n";
    return 1;
  }
  return 0;
}
