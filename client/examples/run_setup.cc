#include "client/examples/run_setup.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

ABSL_FLAG(std::string, server, "server/attention_server", "The attention_server program to start.");
ABSL_FLAG(std::string, model, "model/weights", "Folder of the model's config.json and model.safetensors.");
ABSL_FLAG(std::string, heldout, "model/heldout", "Folder of the held-out texts, *.txt.");
ABSL_FLAG(std::string, sketch, "k4", "What the server keeps beside its pages, for SKETCHED: none, k4, k4v4 or k8v8.");
ABSL_FLAG(std::vector<std::string>, server_flags, {}, "More flags for the server, separated by commas.");

namespace santa {
namespace {

constexpr int64_t kPageTokens = 64;

// Pages for the prompt, and for each fork its own tokens and a copy of the prompt's last page; then some to spare.
int64_t KvBytes(const LlamaConfig& config, int64_t context, int64_t forks, int64_t fork_tokens) {
  const int64_t pages = context / kPageTokens + forks * (fork_tokens / kPageTokens + 2) + 64;
  // Of an element of K or V and of the largest sketch's; its columns' ranges are a sixteenth of a page.
  const int64_t bytes = 2 + 1;
  return pages * kPageTokens * config.num_layers * 2 * config.kv_size() * bytes * 17 / 16;
}

}  // namespace

std::string FindFile(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error)) return path;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string laid = program.string() + ".runfiles/santa/" + path;
  return std::filesystem::exists(laid, error) ? laid : path;
}

absl::StatusOr<std::vector<MethodChoice>> ParseMethods(const std::vector<std::string>& names,
                                                       const std::vector<uint32_t>& samples,
                                                       const std::vector<uint32_t>& score_draws) {
  std::vector<MethodChoice> choices;
  for (const std::string& name : names) {
    const absl::StatusOr<v1::Method> method = ParseMethod(name);
    if (!method.ok()) return method.status();
    if (*method == v1::METHOD_EXACT) {
      choices.push_back({.method = *method, .samples = 0});
      continue;
    }
    for (const uint32_t draws : score_draws) {
      if (*method == v1::METHOD_BERNOULLI_QK) {
        choices.push_back({.method = *method, .score_draws = draws});
        continue;
      }
      for (const uint32_t count : samples) {
        choices.push_back({.method = *method, .samples = count, .score_draws = draws});
      }
    }
  }
  return choices;
}

absl::StatusOr<std::vector<Passage>> LoadPassages(const std::vector<std::string>& names,
                                                  const PassageOptions& options) {
  const absl::StatusOr<std::vector<std::string>> paths = ListTexts(FindFile(absl::GetFlag(FLAGS_heldout)));
  if (!paths.ok()) return paths.status();
  std::map<std::string, Passage> passages;
  std::vector<std::string> all;
  for (const std::string& path : *paths) {
    const std::string name = std::filesystem::path(path).stem().string();
    PassageOptions own = options;
    own.seed += all.size();  // other keys in every passage, the same whichever others are chosen
    all.push_back(name);
    if (!names.empty() && std::find(names.begin(), names.end(), name) == names.end()) continue;
    const absl::StatusOr<std::string> text = ReadText(path);
    if (!text.ok()) return text.status();
    absl::StatusOr<Passage> passage = MakePassage(name, *text, own);
    if (!passage.ok()) return passage.status();
    passages.emplace(name, *std::move(passage));
  }
  std::vector<Passage> chosen;
  for (const std::string& name : names.empty() ? all : names) {
    const auto found = passages.find(name);
    if (found == passages.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("no passage \"", name, "\"; there are ", absl::StrJoin(all, ", ")));
    }
    chosen.push_back(found->second);
  }
  return chosen;
}

absl::StatusOr<std::unique_ptr<RunSetup>> RunSetup::Start(int64_t context, int64_t forks, int64_t fork_tokens) {
  const std::string folder = FindFile(absl::GetFlag(FLAGS_model));
  const absl::StatusOr<LlamaConfig> config = LlamaConfig::Load(folder + "/config.json");
  if (!config.ok()) return config.status();
  std::vector<std::string> arguments = {
      absl::StrCat("--num_layers=", config->num_layers),
      absl::StrCat("--num_query_heads=", config->num_query_heads),
      absl::StrCat("--num_kv_heads=", config->num_kv_heads),
      absl::StrCat("--head_dim=", config->head_dim),
      absl::StrCat("--page_size=", kPageTokens),
      "--dtype=bf16",
      absl::StrCat("--sketch=", absl::GetFlag(FLAGS_sketch)),
      absl::StrCat("--kv_bytes=", KvBytes(*config, context, forks, fork_tokens)),
  };
  for (const std::string& flag : absl::GetFlag(FLAGS_server_flags)) arguments.push_back(flag);

  std::unique_ptr<RunSetup> setup(new RunSetup());
  auto process = ServerProcess::Start(FindFile(absl::GetFlag(FLAGS_server)), arguments);
  if (!process.ok()) return process.status();
  setup->process_ = *std::move(process);
  setup->pool_ = std::make_unique<ThreadPool>();
  auto model = LlamaModel::Load(folder, setup->pool_.get());
  if (!model.ok()) return model.status();
  setup->model_ = std::make_unique<LlamaModel>(*std::move(model));
  auto server = ServerAttention::Connect(setup->process_->grpc_address(), *config);
  if (!server.ok()) return server.status();
  setup->server_ = *std::move(server);
  return setup;
}

absl::Status RunSetup::Stop() {
  server_.reset();
  return process_->Stop();
}

}  // namespace santa
