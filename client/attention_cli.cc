// The command-line tool; kCliUsage tells what it does.
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/time/time.h"
#include "client/cli.h"
#include "client/concat.h"

ABSL_FLAG(std::string, server, "127.0.0.1:50051", "The server's address, HOST:PORT or another gRPC target.");
ABSL_FLAG(bool, tls, false, "Connect with TLS.");
ABSL_FLAG(std::string, root_certificates, "", "With --tls: a PEM file of root certificates. Empty: the system's.");
ABSL_FLAG(std::string, token_file, "", "A file that holds the bearer token to send with every call. Empty: none.");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(60), "How long the command may take in all, such as 30s or 2m.");
ABSL_FLAG(std::string, file, "", "attend: the safetensors file with q, k and v.");
ABSL_FLAG(std::string, out, "", "attend: a safetensors file to write o and lse to.");
ABSL_FLAG(uint32_t, layer, 0, "attend: the server's layer that plain `q`, `k` and `v` go to.");
ABSL_FLAG(std::string, method, "EXACT",
          "attend: EXACT, SANTA, STRATIFIED, SYSTEMATIC, S2ANTA_FLASH, S2ANTA_PROP, COORDINATED, SKETCHED or "
          "BERNOULLI_QK.");
ABSL_FLAG(float, target_relative_error, 0,
          "attend: the error that COORDINATED or SKETCHED may make, in (0, 1), in place of --samples.");
ABSL_FLAG(uint32_t, samples, 0,
          "attend: value rows drawn for each query head, S. 0 with a sampled method: a sixteenth of the tokens.");
ABSL_FLAG(uint32_t, score_draws, 0,
          "attend: ternary queries that stand for q, of BERNOULLI_QK and, where it is not 0, of the sampled methods.");
ABSL_FLAG(uint64_t, seed, 0, "attend: of the random draws; the same seed gives the same answer.");
ABSL_FLAG(float, scale, 0, "attend: multiplies dot(q, k). 0: 1 / sqrt(D).");
ABSL_FLAG(uint32_t, window, 0, "attend: only the last so many tokens are visible. 0: all.");
ABSL_FLAG(float, soft_cap, 0, "attend: c replaces a score s by c * tanh(s / c). 0: no cap.");
ABSL_FLAG(bool, compare, false, "attend: also ask for the exact answer, and print the relative error.");

namespace {

using santa::client_internal::Concat;

// Abseil ends the process with 1 on a bad flag; ours is 2. So look at the flags first, the way it will. Empty: fine.
std::string FirstFlagError(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::string_view text = argv[i];
    if (text == "--") break;
    if (!text.starts_with('-') || text == "-") continue;
    text.remove_prefix(text.starts_with("--") ? 2 : 1);
    const size_t equals = text.find('=');
    const std::string name(text.substr(0, equals));
    if (name.starts_with("help") || name == "version") continue;  // Abseil's own
    absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
    if (flag == nullptr && name.starts_with("no")) flag = absl::FindCommandLineFlag(name.substr(2));
    if (flag == nullptr) return Concat("flag --", name, " is not known");
    std::string value;
    if (equals != std::string_view::npos) {
      value = text.substr(equals + 1);
    } else if (flag->IsOfType<bool>()) {
      continue;
    } else if (++i < argc) {
      value = argv[i];
    } else {
      return Concat("flag --", name, " needs a value");
    }
    if (std::string error; !flag->ParseFrom(value, &error)) {
      return Concat("flag --", name, " cannot be \"", value, "\": ", error);
    }
  }
  return "";
}

bool WantsHelp(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--help" || std::string_view(argv[i]) == "-h") return true;
  }
  return false;
}

// Abseil's --help would end the process with 1.
void PrintHelp() {
  std::cout << santa::kCliUsage << "\n\nFlags:\n";
  std::map<std::string, const absl::CommandLineFlag*> flags;  // by name
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (flag->Filename().find("attention_cli") != std::string::npos) flags[std::string(name)] = flag;
  }
  for (const auto& [name, flag] : flags) {
    std::cout << "  --" << name << " (default \"" << flag->DefaultValue() << "\")\n      " << flag->Help() << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  // `bazel run` starts programs elsewhere and says where it was called: file names are meant from there.
  if (const char* directory = std::getenv("BUILD_WORKING_DIRECTORY"); directory != nullptr && chdir(directory) != 0) {
    std::cerr << "attention_cli: cannot enter " << directory << '\n';
    return santa::kCliUsageError;
  }
  absl::SetProgramUsageMessage(santa::kCliUsage);
  if (WantsHelp(argc, argv)) {
    PrintHelp();
    return santa::kCliOk;
  }
  if (const std::string error = FirstFlagError(argc, argv); !error.empty()) {
    std::cerr << "attention_cli: " << error << "\nTry --help.\n";
    return santa::kCliUsageError;
  }
  const std::vector<char*> words = absl::ParseCommandLine(argc, argv);
  const std::vector<std::string> arguments(words.begin() + 1, words.end());
  const santa::CliOptions options = {
      .server = absl::GetFlag(FLAGS_server),
      .tls = absl::GetFlag(FLAGS_tls),
      .root_certificates = absl::GetFlag(FLAGS_root_certificates),
      .token_file = absl::GetFlag(FLAGS_token_file),
      .timeout = absl::GetFlag(FLAGS_timeout),
      .file = absl::GetFlag(FLAGS_file),
      .out = absl::GetFlag(FLAGS_out),
      .layer = absl::GetFlag(FLAGS_layer),
      .method = absl::GetFlag(FLAGS_method),
      .samples = absl::GetFlag(FLAGS_samples),
      .target_relative_error = absl::GetFlag(FLAGS_target_relative_error),
      .score_draws = absl::GetFlag(FLAGS_score_draws),
      .seed = absl::GetFlag(FLAGS_seed),
      .scale = absl::GetFlag(FLAGS_scale),
      .window = absl::GetFlag(FLAGS_window),
      .soft_cap = absl::GetFlag(FLAGS_soft_cap),
      .compare = absl::GetFlag(FLAGS_compare),
  };
  return santa::RunCli(options, arguments, std::cout, std::cerr);
}
