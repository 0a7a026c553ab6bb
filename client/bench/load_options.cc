#include "client/bench/load_options.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "client/concat.h"

namespace santa::bench {
namespace {

using client_internal::Concat;
using client_internal::ForAbseil;

struct IntegerFlag {
  std::string_view name;
  int64_t LoadOptions::*field;
  int64_t least;
  int64_t most;
  std::string_view help;
};

constexpr IntegerFlag kIntegerFlags[] = {
    {"clients", &LoadOptions::clients, 1, 4096, "connections, each with a stream and sequences of its own"},
    {"sequences", &LoadOptions::sequences, 1, 65536, "of each client; all attend in one message a step: the batch"},
    {"layers", &LoadOptions::layers, 1, 65536, "of the server's layers; steps go through them in turn"},
    {"samples", &LoadOptions::samples, 0, int64_t{1} << 30,
     "value rows drawn for each query head; 0 with a sampled method: a sixteenth of the tokens"},
    {"score_draws", &LoadOptions::score_draws, 0, 1024,
     "ternary queries that stand for q, of BERNOULLI_QK and, where it is not 0, of the sampled methods"},
    {"in_flight", &LoadOptions::in_flight, 1, 4096, "closed loop: unanswered steps of each client"},
    {"prefill_clients", &LoadOptions::prefill_clients, 0, 4096,
     "of the clients: these upload prompts of --tokens, one after another, instead of decoding"},
    {"prefill_chunk", &LoadOptions::prefill_chunk, 1, 65536, "tokens of a prompt in one message, of one layer"},
    {"seed", &LoadOptions::seed, 0, std::numeric_limits<int64_t>::max(), "of the tensors, draws and arrivals"},
};

struct NumberFlag {
  std::string_view name;
  double LoadOptions::*field;
  double least;
  double most;
  std::string_view help;
};

constexpr NumberFlag kNumberFlags[] = {
    {"rate", &LoadOptions::rate, 0, 1e7,
     "open loop: steps a second over all clients, Poisson arrivals, latency from the intended start; 0: closed loop"},
    {"warmup_seconds", &LoadOptions::warmup_seconds, 0, 86400, "of load before the measured time"},
    {"seconds", &LoadOptions::seconds, 0.001, 86400, "measured"},
};

struct BooleanFlag {
  std::string_view name;
  bool LoadOptions::*field;
  std::string_view help;
};

constexpr BooleanFlag kBooleanFlags[] = {
    {"append", &LoadOptions::append, "every step also appends its token's k and v"},
    {"share_memory", &LoadOptions::share_memory,
     "steps pass through memory shared with the server, where it runs on this machine as this user; false: over gRPC"},
    {"in_place", &LoadOptions::in_place,
     "tensors are written where they are sent from and answers read where they came; latency counts neither"},
    {"json", &LoadOptions::json, "print one JSON object"},
    {"help", &LoadOptions::help, "print this"},
};

constexpr std::pair<std::string_view, ElementType> kTypes[] = {
    {"bf16", ElementType::kBFloat16}, {"fp16", ElementType::kFloat16}, {"fp32", ElementType::kFloat32}};

absl::Status Refuse(std::string_view flag, std::string_view value, std::string_view allowed) {
  return absl::InvalidArgumentError(Concat("--", flag, " is \"", value, "\"; allowed is ", allowed));
}

absl::Status SetEcho(std::string_view value, LoadOptions& options) {
  if (value == "none")
    options.echo.reset();
  else if (value == "raw")
    options.echo = EchoKind::kRaw;
  else if (value == "protobuf")
    options.echo = EchoKind::kProtobuf;
  else
    return Refuse("echo", value, "none, raw or protobuf");
  return absl::OkStatus();
}

absl::Status SetNamed(std::string_view name, std::string_view value, LoadOptions& options) {
  if (name == "server" || name == "metrics") {
    if (name == "server" && value.empty()) return Refuse(name, value, "HOST:PORT");
    if (name == "metrics" && !value.empty() && value.find(':') == std::string_view::npos) {
      return Refuse(name, value, "HOST:PORT, or nothing");
    }
    (name == "server" ? options.server : options.metrics) = std::string(value);
    return absl::OkStatus();
  }
  if (name == "echo") return SetEcho(value, options);
  if (name == "echo_server" || name == "serve_echo") {
    if (!value.empty() && value.find(':') == std::string_view::npos)
      return Refuse(name, value, "HOST:PORT, or nothing");
    (name == "echo_server" ? options.echo_server : options.serve_echo) = std::string(value);
    return absl::OkStatus();
  }
  if (name == "tokens") {
    absl::StatusOr<Lengths> lengths = Lengths::Parse(value);
    if (!lengths.ok()) return absl::InvalidArgumentError(lengths.status().message());
    options.tokens = *std::move(lengths);
    return absl::OkStatus();
  }
  if (name == "method") {
    const absl::StatusOr<v1::Method> method = ParseMethod(value);
    if (!method.ok()) return absl::InvalidArgumentError(Concat("--method: ", method.status().message()));
    options.method = *method;
    return absl::OkStatus();
  }
  if (name == "dtype") {
    for (const auto& [text, type] : kTypes) {
      if (text != value) continue;
      options.dtype = type;
      return absl::OkStatus();
    }
    return Refuse(name, value, "bf16, fp16 or fp32");
  }
  return absl::InvalidArgumentError(Concat("there is no flag --", name, "; --help lists those there are"));
}

absl::Status SetFlag(std::string_view name, std::string_view value, LoadOptions& options) {
  for (const IntegerFlag& flag : kIntegerFlags) {
    if (flag.name != name) continue;
    int64_t number = 0;
    if (!absl::SimpleAtoi(ForAbseil(value), &number) || number < flag.least || number > flag.most) {
      return Refuse(name, value, Concat("a whole number in [", flag.least, ", ", flag.most, "]"));
    }
    options.*flag.field = number;
    return absl::OkStatus();
  }
  for (const NumberFlag& flag : kNumberFlags) {
    if (flag.name != name) continue;
    double number = 0;
    if (!absl::SimpleAtod(ForAbseil(value), &number) || !(number >= flag.least && number <= flag.most)) {
      return Refuse(name, value, Concat("a number in [", flag.least, ", ", flag.most, "]"));
    }
    options.*flag.field = number;
    return absl::OkStatus();
  }
  return SetNamed(name, value, options);
}

const BooleanFlag* FindBoolean(std::string_view name) {
  const auto* const flag =
      std::find_if(std::begin(kBooleanFlags), std::end(kBooleanFlags), [name](auto& f) { return f.name == name; });
  return flag == std::end(kBooleanFlags) ? nullptr : flag;
}

absl::Status SetBoolean(const BooleanFlag& flag, std::string_view value, LoadOptions& options) {
  if (value != "true" && value != "false") return Refuse(flag.name, value, "true or false");
  options.*flag.field = value == "true";
  return absl::OkStatus();
}

absl::Status CheckTogether(const LoadOptions& options) {
  if (!DrawsValues(options.method) && options.samples > 0) {
    return absl::InvalidArgumentError(Concat(
        "--samples is ", options.samples, ", but --method=", MethodName(options.method), " draws none; allowed is 0"));
  }
  if (options.method == v1::METHOD_EXACT && options.score_draws > 0) {
    return absl::InvalidArgumentError(
        Concat("--score_draws is ", options.score_draws, ", but --method=EXACT has none; allowed is 0"));
  }
  if (options.method == v1::METHOD_BERNOULLI_QK && options.score_draws == 0) {
    return absl::InvalidArgumentError("--score_draws is 0; --method=BERNOULLI_QK needs 1 to 1024");
  }
  if (options.TokensOf(0) == 0 && (!options.append || options.prefill_clients > 0)) {
    return absl::InvalidArgumentError("--tokens is 0; a prompt, and without --append a step, needs at least 1 token");
  }
  if (options.prefill_clients > options.clients) {
    return absl::InvalidArgumentError(
        Concat("--prefill_clients is ", options.prefill_clients, "; allowed is up to --clients, ", options.clients));
  }
  if (options.echo && options.decode_clients() == 0) {
    return absl::InvalidArgumentError("--echo needs a client that decodes; --prefill_clients takes them all");
  }
  return absl::OkStatus();
}

void AppendHelp(std::string_view name, std::string_view value, std::string_view help, std::string& text) {
  text += Concat("  --", name, "=", value, "\n      ", help, "\n");
}

}  // namespace

uint32_t LoadOptions::SampleCountOf(int64_t tokens_stored) const {
  if (!DrawsValues(method)) return 0;
  return static_cast<uint32_t>(samples > 0 ? samples : std::max<int64_t>(1, tokens_stored / 16));
}

absl::StatusOr<LoadOptions> ParseLoadOptions(std::span<const std::string_view> arguments) {
  LoadOptions options;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "-h") {
      options.help = true;
      continue;
    }
    if (!argument.starts_with("--") || argument == "--") {
      return absl::InvalidArgumentError(Concat("the argument \"", argument, "\" is no flag; see --help"));
    }
    const size_t equals = argument.find('=');
    const bool has_value = equals != std::string_view::npos;
    const std::string_view name = argument.substr(2, has_value ? equals - 2 : equals);
    absl::Status status;
    if (name == "echo" && !has_value) {
      status = SetEcho("raw", options);
    } else if (const BooleanFlag* boolean = FindBoolean(name)) {
      status = SetBoolean(*boolean, has_value ? argument.substr(equals + 1) : "true", options);
    } else if (has_value) {
      status = SetFlag(name, argument.substr(equals + 1), options);
    } else if (i + 1 < arguments.size()) {
      status = SetFlag(name, arguments[++i], options);
    } else {
      status = absl::InvalidArgumentError(Concat("--", name, " has no value"));
    }
    if (!status.ok()) return status;
  }
  if (options.help) return options;
  if (absl::Status status = CheckTogether(options); !status.ok()) return status;
  return options;
}

absl::Status CheckAgainst(const v1::ServerInfo& server, const LoadOptions& options) {
  const v1::Limits& limits = server.limits();
  const auto check = [](std::string_view flag, int64_t value, int64_t most, std::string_view what) {
    if (value <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(Concat("--", flag, " is ", value, "; this server's ", what, " is ", most));
  };
  const int64_t page = std::max(1, server.layout().page_size());
  const int64_t all = options.clients * options.sequences;
  int64_t longest = 0;
  int64_t pages = 0;
  for (int64_t i = 0; i < all; ++i) {
    const int64_t tokens = options.TokensOf(i);
    longest = std::max(longest, tokens);
    pages += (tokens + page - 1) / page;
  }
  for (const absl::Status& status : {
           check("layers", options.layers, server.layout().num_layers(), "num_layers"),
           check("sequences", options.sequences, limits.max_items_per_request(), "max_items_per_request"),
           check("tokens", longest, limits.max_tokens_per_sequence(), "max_tokens_per_sequence"),
           check("samples", options.SampleCountOf(longest), limits.max_sample_count(), "max_sample_count"),
       }) {
    if (!status.ok()) return status;
  }
  const auto& methods = server.methods();
  if (std::find(methods.begin(), methods.end(), options.method) == methods.end()) {
    return absl::InvalidArgumentError(
        Concat("--method is ", MethodName(options.method), ", which this server has not"));
  }
  if (all > limits.max_sequences() - server.num_sequences()) {
    return absl::InvalidArgumentError(Concat("--clients times --sequences is ", all, "; this server has room for ",
                                             limits.max_sequences() - server.num_sequences(), " more sequences"));
  }
  if (pages > server.free_pages()) {
    return absl::InvalidArgumentError(Concat("--clients times --sequences times --tokens takes ", pages, " pages of ",
                                             page, " tokens; this server has ", server.free_pages(), " free"));
  }
  return absl::OkStatus();
}

std::string LoadUsage() {
  const LoadOptions defaults;
  std::string text =
      "Loads an attention server with decode steps and prints rates, latencies and where the time goes.\n\n"
      "  attention_bench --server=127.0.0.1:50051 --metrics=127.0.0.1:9464 --clients=4 --sequences=4 --tokens=8192\n\n"
      "Flags, with their defaults:\n";
  AppendHelp("server", defaults.server, "the server's address, or another gRPC target", text);
  AppendHelp("metrics", "", "HOST:PORT of the server's /metrics: device time is then the device's own count", text);
  AppendHelp("method", "EXACT",
             "EXACT, SANTA, STRATIFIED, SYSTEMATIC, S2ANTA_FLASH, S2ANTA_PROP, COORDINATED, SKETCHED or BERNOULLI_QK",
             text);
  AppendHelp("dtype", "bf16", "of q, and of appended k and v: bf16, fp16 or fp32", text);
  AppendHelp("tokens", defaults.tokens.text(),
             "uploaded to each sequence and layer before the load: N, or by sequence uniform:LEAST:MOST,\n"
             "      loguniform:LEAST:MOST, lognormal:MEDIAN:SIGMA:MOST or file:PATH, whose numbers are taken in turn",
             text);
  AppendHelp("echo", "none",
             "raw or protobuf: in turn with the load, send messages of the same size to a process that only\n"
             "      answers them: raw by reference (just --echo is that), or as a naive program would, by protobuf",
             text);
  AppendHelp("echo_server", "", "HOST:PORT of one that --serve_echo started, on the server's machine say", text);
  AppendHelp("serve_echo", "", "HOST:PORT: be an echo server there, and nothing else, until a signal", text);
  for (const IntegerFlag& flag : kIntegerFlags) {
    AppendHelp(flag.name, Concat(defaults.*flag.field), flag.help, text);
  }
  for (const NumberFlag& flag : kNumberFlags) AppendHelp(flag.name, Concat(defaults.*flag.field), flag.help, text);
  for (const BooleanFlag& flag : kBooleanFlags) {
    AppendHelp(flag.name, defaults.*flag.field ? "true" : "false", flag.help, text);
  }
  text += "\nEnds with 0, 1 when it could not run or no step was answered, 2 for flags that cannot be.\n";
  return text;
}

}  // namespace santa::bench
