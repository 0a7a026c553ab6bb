#include "kernels/bench/options.h"

#include <algorithm>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace santa::bench {
namespace {

struct IntegerFlag {
  std::string_view name;
  int64_t Options::*field;
  int64_t least;
  int64_t most;
  std::string_view help;
};

constexpr int64_t kMostBatch = 4096;
constexpr int64_t kMostTokens = int64_t{1} << 24;

constexpr IntegerFlag kIntegerFlags[] = {
    {"batch", &Options::batch, 1, kMostBatch, "sequences in a call"},
    {"tokens", &Options::tokens, 1, kMostTokens, "cached tokens of each"},
    {"query_heads", &Options::query_heads, 1, 65536, "a multiple of --kv_heads"},
    {"kv_heads", &Options::kv_heads, 1, 65536, "key/value heads"},
    {"head_dim", &Options::head_dim, 8, 256, "a multiple of 8"},
    {"page_size", &Options::page_size, 16, 256, "tokens, a power of two"},
    {"samples", &Options::samples, 1, kMaxSampleCount, "draws a query head, for the sampled methods"},
    {"score_draws", &Options::score_draws, 0, kMaxScoreDraws, "ternary queries in place of q, for all but EXACT"},
    {"window", &Options::window, 0, int64_t{1} << 24, "sliding window in tokens; 0: none"},
    {"threads", &Options::threads, 0, 1024, "CPU threads; 0: one for each CPU"},
    {"standard_errors", &Options::standard_errors, 0, 1, "1: answers tell their standard errors"},
    {"repetitions", &Options::repetitions, 1, 10000, "timed calls of each method"},
    {"seed", &Options::seed, 0, std::numeric_limits<int64_t>::max(), "of the data and the draws"},
};

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

absl::Status Refuse(std::string_view flag, std::string_view value, const std::string& wanted) {
  return absl::InvalidArgumentError(absl::StrCat("--", View(flag), " is '", View(value), "'; it must be ", wanted));
}

absl::Status SetInteger(const IntegerFlag& flag, std::string_view value, Options& options) {
  int64_t number = 0;
  if (!absl::SimpleAtoi(View(value), &number) || number < flag.least || number > flag.most) {
    return Refuse(flag.name, value, absl::StrCat("a whole number in [", flag.least, ", ", flag.most, "]"));
  }
  options.*flag.field = number;
  return absl::OkStatus();
}

std::string MethodNames() {
  return absl::StrJoin(kAllMethods, ", ", [](std::string* text, Method method) { *text += Name(method); });
}

absl::Status SetMethods(std::string_view value, Options& options) {
  options.methods.clear();
  for (const absl::string_view name : absl::StrSplit(View(value), ',')) {
    const auto* const found = std::find_if(kAllMethods.begin(), kAllMethods.end(),
                                           [name](Method method) { return View(Name(method)) == name; });
    if (found == kAllMethods.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--methods names '", name, "'; the methods are ", MethodNames(), ", separated by commas"));
    }
    options.methods.push_back(*found);
  }
  return absl::OkStatus();
}

// 15x1024,1x131072: so many sequences of so many tokens each; the count may be left out.
absl::Status SetRagged(std::string_view value, Options& options) {
  options.ragged.clear();
  for (const absl::string_view part : absl::StrSplit(View(value), ',')) {
    const std::pair<absl::string_view, absl::string_view> halves = absl::StrSplit(part, absl::MaxSplits('x', 1));
    const bool counted = part.find('x') != absl::string_view::npos;
    int64_t count = 1;
    int64_t tokens = 0;
    if ((counted && !absl::SimpleAtoi(halves.first, &count)) ||
        !absl::SimpleAtoi(counted ? halves.second : part, &tokens) || count < 1 || count > kMostBatch || tokens < 1 ||
        tokens > kMostTokens || static_cast<int64_t>(options.ragged.size()) + count > kMostBatch) {
      return Refuse(
          "ragged", value,
          absl::StrCat("like 15x1024,131072: at most ", kMostBatch, " sequences of 1 to ", kMostTokens, " tokens"));
    }
    options.ragged.insert(options.ragged.end(), static_cast<size_t>(count), tokens);
  }
  return absl::OkStatus();
}

absl::Status SetOther(std::string_view name, std::string_view value, Options& options) {
  if (name == "backend") {
    options.backend = std::string(value);
    return absl::OkStatus();
  }
  if (name == "methods") return SetMethods(value, options);
  if (name == "ragged") return SetRagged(value, options);
  if (name == "dtype") {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
      if (Name(dtype) != value) continue;
      options.dtype = dtype;
      return absl::OkStatus();
    }
    return Refuse(name, value, "fp32, bf16, fp16 or fp8_e4m3");
  }
  if (name == "sketch") {
    for (const Sketch sketch : kAllSketches) {
      if (Name(sketch) != value) continue;
      options.sketch = sketch;
      return absl::OkStatus();
    }
    return Refuse(name, value, "none, k4, k4v4 or k8v8");
  }
  if (name == "key_order") {
    for (const KeyOrder order : kAllKeyOrders) {
      if (Name(order) != value) continue;
      options.key_order = order;
      return absl::OkStatus();
    }
    return Refuse(name, value, "token or feature");
  }
  if (name == "data") {
    if (value != "normal" && value != "attention") return Refuse(name, value, "normal or attention");
    options.data = value == "normal" ? Data::kNormal : Data::kAttention;
    return absl::OkStatus();
  }
  if (name == "input") {
    options.input = std::string(value);
    return absl::OkStatus();
  }
  if (name == "sigma") {
    if (!absl::SimpleAtod(View(value), &options.sigma) || !(options.sigma > 0 && options.sigma <= 100)) {
      return Refuse(name, value, "a number in (0, 100]");
    }
    return absl::OkStatus();
  }
  if (name == "target_relative_error") {
    if (!absl::SimpleAtod(View(value), &options.target_relative_error) ||
        !(options.target_relative_error > 0 && options.target_relative_error < 1)) {
      return Refuse(name, value, "a number in (0, 1)");
    }
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("there is no flag --", View(name), "; --help lists them"));
}

constexpr struct Switch {
  std::string_view name;
  bool Options::*field;
} kSwitches[] = {
    {"--pages_in_order", &Options::pages_in_order}, {"--json", &Options::json}, {"--help", &Options::help}};

absl::Status SetFlag(std::string_view argument, Options& options) {
  for (const Switch& flag : kSwitches) {
    if (flag.name != argument) continue;
    options.*flag.field = true;
    return absl::OkStatus();
  }
  absl::string_view text = View(argument);
  const size_t equals = argument.find('=');
  if (!absl::ConsumePrefix(&text, "--") || equals == std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", View(argument), "' is not an argument; flags are written --name=value"));
  }
  const std::string_view name = argument.substr(2, equals - 2);
  const std::string_view value = argument.substr(equals + 1);
  for (const IntegerFlag& flag : kIntegerFlags) {
    if (flag.name == name) return SetInteger(flag, value, options);
  }
  return SetOther(name, value, options);
}

}  // namespace

std::vector<int64_t> Options::sequence_tokens() const {
  return ragged.empty() ? std::vector<int64_t>(static_cast<size_t>(batch), tokens) : ragged;
}

KvLayout Options::layout() const {
  return {.num_layers = 1,
          .num_query_heads = static_cast<int32_t>(query_heads),
          .num_kv_heads = static_cast<int32_t>(kv_heads),
          .head_dim = static_cast<int32_t>(head_dim),
          .page_size = static_cast<int32_t>(page_size),
          .dtype = dtype,
          .sketch = sketch,
          .key_order = key_order};
}

AttentionOptions Options::attention(Method method, uint64_t draw_seed) const {
  const bool has_target = target_relative_error > 0 && method != Method::kExact;
  return {.method = method,
          .sample_count = DrawsValues(method) && !has_target ? static_cast<uint32_t>(samples) : 0,
          .seed = draw_seed,
          .window = static_cast<uint32_t>(window),
          .target_relative_error = has_target ? static_cast<float>(target_relative_error) : 0,
          .score_draws = method == Method::kExact ? 0 : static_cast<uint32_t>(score_draws)};
}

absl::StatusOr<Options> ParseOptions(std::span<const std::string_view> arguments) {
  Options options;
  for (const std::string_view argument : arguments) {
    if (absl::Status status = SetFlag(argument, options); !status.ok()) return status;
  }
  if (options.methods.empty()) {
    for (const Method method : kAllMethods) {
      if (method == Method::kSketched && options.sketch == Sketch::kNone) continue;
      if (method == Method::kBernoulliQk && options.score_draws == 0) continue;
      // Most take no target.
      if (options.target_relative_error > 0 && !Validate(options.attention(method, 0)).ok()) continue;
      options.methods.push_back(method);
    }
  }
  if (!options.ragged.empty()) {
    options.batch = static_cast<int64_t>(options.ragged.size());
    options.tokens = *std::max_element(options.ragged.begin(), options.ragged.end());
  }
  if (absl::Status status = Validate(options.layout()); !status.ok()) return status;
  for (const Method method : options.methods) {
    if (absl::Status status = Validate(options.attention(method, 0)); !status.ok()) return status;
  }
  return options;
}

std::string Usage() {
  std::string usage =
      "Measures decode attention: every method beside EXACT and beside a loop that only reads memory, in turns.\n\n"
      "  --backend=NAME      cpu (default); cuda, in a build with CUDA, which times the device's kernels alone\n"
      "  --methods=A,B       some of the methods; all that there are by default\n"
      "  --sketch=KIND       of full pages, for SKETCHED: none (default), k4, k4v4 or k8v8\n"
      "  --key_order=ORDER   how the keys of a page lie: token (default) or feature, which --score_draws need\n"
      "  --dtype=TYPE        of the cache: fp32, bf16 (default), fp16 or fp8_e4m3, as far as the backend has it\n"
      "  --ragged=AxN,BxM    a batch of A sequences of N tokens, B of M, ..., in place of --batch and --tokens\n"
      "  --data=KIND         normal (default): independent normal numbers, whose mean output is small; attention: "
      "keys\n"
      "                      with outlier channels, correlated heads, a sink, a local window, values around a mean\n"
      "  --sigma=X           standard deviation of the logits (2)\n"
      "  --target_relative_error=X\n"
      "                      in (0, 1), in place of --samples: for COORDINATED and SKETCHED\n"
      "  --input=FILE        safetensors with q [sources, G, D], k and v [sources, tokens, D] in place of random\n"
      "                      numbers (//client/examples:capture writes one); sources are repeated for heads and\n"
      "                      sequences, features and tokens for larger shapes\n"
      "  --pages_in_order    a page table in order, not shuffled\n"
      "  --json              one JSON object a line\n";
  const Options defaults;
  for (const IntegerFlag& flag : kIntegerFlags) {
    std::string name = absl::StrCat("  --", View(flag.name), "=N");
    name.resize(std::max<size_t>(name.size() + 1, 22), ' ');
    absl::StrAppend(&usage, name, View(flag.help), " (", defaults.*flag.field, ")\n");
  }
  return usage;
}

}  // namespace santa::bench
