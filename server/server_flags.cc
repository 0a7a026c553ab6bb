#include "server/server_flags.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <string_view>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "server/backend_choice.h"
#include "server/kv_scales.h"
#include "server/logging/log.h"
#include "server/settings.h"
#include "server/version.h"

ABSL_FLAG(std::string, listen, "127.0.0.1:50051",
          "IP address and port of the gRPC API; port 0 picks one. The default serves this machine alone; to serve a "
          "network, say 0.0.0.0:50051 and set --auth_tokens_file and --tls_cert.");
ABSL_FLAG(int32_t, http_port, 9464,
          "Port of /metrics, /healthz and /readyz, on the address of --listen; 0 picks one, -1 is none.");
ABSL_FLAG(std::string, config, "",
          "File of settings, a line \"name = value\" for each flag, without dashes; # begins a comment. What it says "
          "gives way to the environment and the command line.");
ABSL_FLAG(std::string, port_file, "",
          "File to write the ports to once the server serves: the gRPC port on the first line, the HTTP port on the "
          "second (-1: none).");
ABSL_FLAG(
    std::string, backend, "cpu",
    "What computes: cpu, cuda (a build with CUDA, attention_server_cuda), or auto: the GPU where there is one that "
    "can, else the CPU.");
ABSL_FLAG(int32_t, device, 0, "cuda: which GPU, as CUDA numbers them.");
ABSL_FLAG(int32_t, num_layers, 32, "The model's layers that have a KV cache.");
ABSL_FLAG(int32_t, num_query_heads, 32, "Query heads; a multiple of --num_kv_heads.");
ABSL_FLAG(int32_t, num_kv_heads, 8, "Key/value heads.");
ABSL_FLAG(int32_t, head_dim, 128, "Head dimension: a multiple of 8 in [8, 256].");
ABSL_FLAG(int32_t, page_size, 64, "Tokens in a page of the KV cache: a power of two in [16, 256].");
ABSL_FLAG(std::string, dtype, "bf16",
          "Storage of keys and values: fp32, bf16 or fp16; on a GPU bf16, fp16 or fp8_e4m3.");
ABSL_FLAG(
    std::string, sketch, "none",
    "What is kept of every full page beside it, for the method SKETCHED: none, k4 (keys in 4 bits a feature), k4v4 "
    "or k8v8 (values too: smaller errors). Its memory is part of --kv_bytes.");
ABSL_FLAG(std::string, key_order, "token",
          "How the keys of a page lie, token (one token after the other) or feature (one feature after the other), "
          "which BERNOULLI_QK and score draws need; not with --sketch.");
ABSL_FLAG(std::string, kv_scales, "",
          "fp8_e4m3: JSON file {\"k_scale\": [[...], ...], \"v_scale\": [[...], ...]}, a number for each layer and "
          "key/value head. x is stored as x / scale. Empty: all 1.");
ABSL_FLAG(
    std::string, kv_bytes, "",
    "Memory of the KV cache, all of it allocated at start: 512MiB, 2GiB, ... Empty: 512MiB, or on a GPU 0.8 of its "
    "memory, unless --kv_memory_fraction says otherwise.");
ABSL_FLAG(
    double, kv_memory_fraction, 0,
    "Memory of the KV cache as a share of the machine's (on a GPU, of the server as a share of the GPU's), in (0, "
    "0.95]; 0: --kv_bytes says.");
ABSL_FLAG(int64_t, max_sequences, 1024, "Sequences that may live at once.");
ABSL_FLAG(int64_t, max_tokens_per_sequence, 131072, "Tokens that a sequence may have.");
ABSL_FLAG(absl::Duration, default_lease, absl::Minutes(10),
          "Time without use after which a sequence is released, unless its maker says otherwise.");
ABSL_FLAG(absl::Duration, max_lease, absl::Hours(24), "The longest lease that may be asked for.");
ABSL_FLAG(int32_t, threads, 0, "cpu: threads that compute, in [0, 1024]; 0: one for each CPU.");
ABSL_FLAG(int64_t, max_queued_items_per_tenant, 0,
          "The same of one tenant's; 0: half of them where there are tenants (auth_tokens_file), else all of them.");
ABSL_FLAG(int64_t, max_queued_items, 4096, "Items that may wait for the device; past it RESOURCE_EXHAUSTED.");
ABSL_FLAG(int32_t, max_batch_items, 256, "Items that the device runs together.");
ABSL_FLAG(int32_t, max_items_per_request, 256, "Items of one Attend request.");
ABSL_FLAG(std::string, max_message_bytes, "64MiB", "Size of one message from a caller, in [1KiB, 2GiB).");
ABSL_FLAG(int32_t, max_inflight_per_stream, 32,
          "Unanswered requests of one Attend stream; past it the server reads on only as it answers.");
ABSL_FLAG(int32_t, max_streams, 4096, "Attend and AppendKv streams that may be open at once.");
ABSL_FLAG(
    std::string, max_shared_bytes, "1GiB",
    "Memory for steps that pass through memory shared with callers of the same machine and user (AttendShared), all "
    "together; 0: none is shared, and they come over gRPC.");
ABSL_FLAG(std::string, auth_tokens_file, "",
          "File of lines \"<token> <tenant>\". Calls of the API must then carry \"authorization: Bearer <token>\", and "
          "see their tenant's sequences only. Health, reflection and channelz stay open. Empty: everyone is the tenant "
          "\"default\".");
ABSL_FLAG(std::string, tls_cert, "", "PEM file of the server's certificate chain; with --tls_key.");
ABSL_FLAG(std::string, tls_key, "", "PEM file of the certificate's private key.");
ABSL_FLAG(absl::Duration, drain_grace, absl::Seconds(10),
          "After SIGTERM or SIGINT, the time that steps in flight have to finish.");
ABSL_FLAG(
    bool, self_test, true,
    "Whether the server attends to known tokens before it serves, and ends with code 3 when the answer is wrong.");
ABSL_FLAG(absl::Duration, slow_step_threshold, absl::Seconds(1),
          "A step of an Attend stream that takes longer is logged with its stages, one a second at most; 0: none.");
ABSL_FLAG(double, audit_share, 0.001,
          "Share of the steps with a sampled method that are run again, once exactly and once as they were, to measure "
          "speedup and error; in [0, 1], 0: none.");
ABSL_FLAG(double, audit_max_device_share, 0.01,
          "The most of the device's time that audits may take, in (0, 1]; steps picked past it are skipped.");
ABSL_FLAG(double, audit_error_bound, 0,
          "A method whose audited relative error (root mean square) passes it in a layer is answered exactly there; 0: "
          "never.");
ABSL_FLAG(absl::Duration, audit_fallback_time, absl::Minutes(10),
          "How long a method that passed --audit_error_bound is answered exactly, until it is tried again.");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning or error.");

namespace santa {
namespace {

absl::Status BadFlag(const char* name, const std::string& value, const std::string& allowed) {
  return absl::InvalidArgumentError(absl::StrCat("--", name, " is ", value, "; allowed is ", allowed));
}

// "<what> is ...", with the flag's dashes before it.
absl::Status AsFlag(const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("--", std::string(status.message())));
}

absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) return BadFlag(flag, path, "a file that can be read and is not empty");
  return text.str();
}

absl::Status ParseListen(const std::string& listen, ServerOptions* options) {
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(listen.substr(colon + 1), &options->port) ||
      options->port < 0 || options->port > 65535) {
    return BadFlag("listen", "\"" + listen + "\"", "<IP address>:<port>, as 127.0.0.1:50051 or [::1]:50051");
  }
  options->host = listen.substr(0, colon);
  if (options->host.front() == '[' && options->host.back() == ']') {
    options->host = options->host.substr(1, options->host.size() - 2);
  }
  return absl::OkStatus();
}

absl::StatusOr<KvLayout> LayoutFromFlags() {
  KvLayout layout = {.num_layers = absl::GetFlag(FLAGS_num_layers),
                     .num_query_heads = absl::GetFlag(FLAGS_num_query_heads),
                     .num_kv_heads = absl::GetFlag(FLAGS_num_kv_heads),
                     .head_dim = absl::GetFlag(FLAGS_head_dim),
                     .page_size = absl::GetFlag(FLAGS_page_size)};
  const std::string text = absl::GetFlag(FLAGS_dtype);
  bool known = false;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    if (Name(dtype) != text) continue;
    layout.dtype = dtype;
    known = true;
  }
  if (!known) return BadFlag("dtype", "\"" + text + "\"", "fp32, bf16, fp16 or fp8_e4m3");
  const std::string sketch = absl::GetFlag(FLAGS_sketch);
  const auto* const found =
      std::find_if(kAllSketches.begin(), kAllSketches.end(), [&](Sketch each) { return Name(each) == sketch; });
  if (found == kAllSketches.end()) return BadFlag("sketch", "\"" + sketch + "\"", "none, k4, k4v4 or k8v8");
  layout.sketch = *found;
  const std::string key_order = absl::GetFlag(FLAGS_key_order);
  const auto* const order =
      std::find_if(kAllKeyOrders.begin(), kAllKeyOrders.end(), [&](KeyOrder each) { return Name(each) == key_order; });
  if (order == kAllKeyOrders.end()) return BadFlag("key_order", "\"" + key_order + "\"", "token or feature");
  layout.key_order = *order;
  if (const absl::Status status = Validate(layout); !status.ok()) return AsFlag(status);
  return layout;
}

// Into kv_bytes or kv_memory_fraction, or neither.
absl::Status MemoryFromFlags(BackendChoice* choice) {
  const std::string text = absl::GetFlag(FLAGS_kv_bytes);
  const double fraction = absl::GetFlag(FLAGS_kv_memory_fraction);
  if (fraction != 0) {
    if (!text.empty()) {
      return absl::InvalidArgumentError("--kv_bytes and --kv_memory_fraction are both set; allowed is one of them");
    }
    if (!(fraction > 0 && fraction <= 0.95)) {
      return BadFlag("kv_memory_fraction", absl::StrCat(fraction), "0 (unset) or (0, 0.95]");
    }
    choice->kv_memory_fraction = fraction;
  } else if (!text.empty()) {
    const absl::StatusOr<int64_t> bytes = ParseByteSize(text);
    if (!bytes.ok()) return BadFlag("kv_bytes", "\"" + text + "\"", "a size, as 512MiB or 2GiB");
    choice->kv_bytes = *bytes;
  }
  return absl::OkStatus();
}

// By name.
std::map<std::string, const absl::CommandLineFlag*> ServerFlags() {
  std::map<std::string, const absl::CommandLineFlag*> flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (absl::EndsWith(flag->Filename(), "server_flags.cc")) flags[std::string(name)] = flag;
  }
  return flags;
}

std::string HelpText() {
  constexpr size_t kWidth = 100;
  std::string help =
      "Keeps a language model's KV cache and answers its decode attention over gRPC.\n\n"
      "  attention_server --num_layers=32 --num_query_heads=32 --num_kv_heads=8 --head_dim=128 --kv_bytes=8GiB\n\n"
      "Flags, with their defaults; --version prints the version. A flag may also come from the environment, as\n"
      "SANTA_KV_BYTES=8GiB, or from the file of --config. The command line overrides the environment, and that the\n"
      "file.\n";
  for (const auto& [name, flag] : ServerFlags()) {
    absl::StrAppend(&help, "\n  --", name, "=", flag->DefaultValue());
    size_t column = kWidth;
    const std::string text = flag->Help();
    for (const absl::string_view word : absl::StrSplit(text, ' ')) {
      const bool fits = column + 1 + word.size() <= kWidth;
      absl::StrAppend(&help, fits ? " " : "\n      ", word);
      column = (fits ? column + 1 : 6) + word.size();
    }
    help += "\n";
  }
  return help;
}

}  // namespace

absl::StatusOr<int64_t> ParseByteSize(const std::string& text) {
  constexpr std::pair<const char*, int> kUnits[] = {{"KiB", 10}, {"MiB", 20}, {"GiB", 30},
                                                    {"TiB", 40}, {"B", 0},    {"", 0}};
  for (const auto& [unit, shift] : kUnits) {
    if (!absl::EndsWith(text, unit)) continue;
    double number = 0;
    if (!absl::SimpleAtod(absl::StripSuffix(text, unit), &number)) break;
    const double bytes = std::ldexp(number, shift);
    if (!(bytes >= 1 && bytes <= std::ldexp(1.0, 62))) break;
    return static_cast<int64_t>(bytes);
  }
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is no size; allowed is, say, 512MiB or 2GiB"));
}

// Abseil's own --help ends the program with 1, and this release knows it in its parser alone.
std::optional<std::string> HelpOrVersion(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--version") return absl::StrCat("attention_server ", kServerVersion, "\n");
    if (argument == "--help" || argument == "-h") return HelpText();
  }
  return std::nullopt;
}

absl::StatusOr<std::vector<Setting>> ParseServerFlags(int argc, const char* const* argv,
                                                      const char* const* environment) {
  absl::StatusOr<std::vector<Setting>> arguments = SettingsFromArguments(argc, argv);
  if (!arguments.ok()) return arguments.status();
  std::vector<Setting> given = SettingsFromEnvironment("SANTA_", environment);
  given.insert(given.end(), arguments->begin(), arguments->end());
  if (absl::Status status = Apply(given); !status.ok()) return status;
  const std::string path = absl::GetFlag(FLAGS_config);
  if (path.empty()) return given;
  const absl::StatusOr<std::string> text = ReadFile("config", path);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::vector<Setting>> settings = SettingsFromFile(path, *text);
  if (!settings.ok()) return settings.status();
  settings->insert(settings->end(), given.begin(), given.end());  // which override it
  if (absl::Status status = Apply(*settings); !status.ok()) return status;
  return *std::move(settings);
}

void LogSettings(const std::vector<Setting>& given) {
  std::map<std::string, std::string> origins;
  for (const Setting& setting : given) origins[setting.name] = setting.origin;  // the last one counts
  std::string set;
  std::string defaults;
  for (const auto& [name, flag] : ServerFlags()) {
    const auto origin = origins.find(name);
    std::string* const line = origin == origins.end() ? &defaults : &set;
    absl::StrAppend(line, line->empty() ? "" : " ", "--", name, "=", flag->CurrentValue());
    if (origin != origins.end()) absl::StrAppend(line, " (", origin->second, ")");
  }
  Log(LogLevel::kInfo, "configuration", {{"set", set}, {"defaults", defaults}});
}

absl::StatusOr<ServerOptions> OptionsFromFlags() {
  LogLevel level = LogLevel::kInfo;
  if (!ParseLogLevel(absl::GetFlag(FLAGS_log_level), &level)) {
    return BadFlag("log_level", "\"" + absl::GetFlag(FLAGS_log_level) + "\"", "debug, info, warning or error");
  }
  SetLogLevel(level);
  ServerOptions options;
  if (absl::Status status = ParseListen(absl::GetFlag(FLAGS_listen), &options); !status.ok()) return status;
  options.http_port = absl::GetFlag(FLAGS_http_port);
  options.store = {.max_sequences = absl::GetFlag(FLAGS_max_sequences),
                   .max_tokens_per_sequence = absl::GetFlag(FLAGS_max_tokens_per_sequence),
                   .default_lease = absl::GetFlag(FLAGS_default_lease),
                   .max_lease = absl::GetFlag(FLAGS_max_lease)};
  options.engine = {.max_queued_items = absl::GetFlag(FLAGS_max_queued_items),
                    .max_queued_items_per_tenant = absl::GetFlag(FLAGS_max_queued_items_per_tenant),
                    .max_batch_items = absl::GetFlag(FLAGS_max_batch_items)};
  int64_t& of_tenant = options.engine.max_queued_items_per_tenant;
  options.audit = {.share = absl::GetFlag(FLAGS_audit_share),
                   .max_device_share = absl::GetFlag(FLAGS_audit_max_device_share),
                   .error_bound = absl::GetFlag(FLAGS_audit_error_bound),
                   .fallback_time = absl::GetFlag(FLAGS_audit_fallback_time)};
  options.rpc.max_items_per_request = absl::GetFlag(FLAGS_max_items_per_request);
  options.rpc.max_inflight_per_stream = absl::GetFlag(FLAGS_max_inflight_per_stream);
  options.rpc.max_streams = absl::GetFlag(FLAGS_max_streams);
  const absl::StatusOr<int64_t> message_bytes = ParseByteSize(absl::GetFlag(FLAGS_max_message_bytes));
  if (!message_bytes.ok()) {
    return BadFlag("max_message_bytes", "\"" + absl::GetFlag(FLAGS_max_message_bytes) + "\"", "a size, as 64MiB");
  }
  options.rpc.max_message_bytes = *message_bytes;
  const std::string shared = absl::GetFlag(FLAGS_max_shared_bytes);
  const absl::StatusOr<int64_t> shared_bytes = shared == "0" ? 0 : ParseByteSize(shared);
  if (!shared_bytes.ok()) return BadFlag("max_shared_bytes", "\"" + shared + "\"", "0 (none) or a size, as 1GiB");
  options.rpc.max_shared_bytes = *shared_bytes;
  options.drain_grace = absl::GetFlag(FLAGS_drain_grace);
  options.self_test = absl::GetFlag(FLAGS_self_test);
  options.slow_step_threshold = absl::GetFlag(FLAGS_slow_step_threshold);
  if (const std::string path = absl::GetFlag(FLAGS_auth_tokens_file); !path.empty()) {
    absl::StatusOr<Authenticator> authenticator = Authenticator::FromFile(path);
    if (!authenticator.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--auth_tokens_file: ", std::string(authenticator.status().message())));
    }
    options.authenticator = *std::move(authenticator);
    if (of_tenant == 0) of_tenant = (options.engine.max_queued_items + 1) / 2;
  }
  if (of_tenant == 0) of_tenant = options.engine.max_queued_items;
  const std::pair<const char*, std::string> files[] = {{"tls_cert", absl::GetFlag(FLAGS_tls_cert)},
                                                       {"tls_key", absl::GetFlag(FLAGS_tls_key)}};
  for (const auto& [flag, path] : files) {
    if (path.empty()) continue;
    absl::StatusOr<std::string> pem = ReadFile(flag, path);
    if (!pem.ok()) return pem.status();
    (std::string(flag) == "tls_cert" ? options.tls_certificate : options.tls_key) = *std::move(pem);
  }
  if (const absl::Status status = Validate(options); !status.ok()) return AsFlag(status);
  return options;
}

absl::StatusOr<KvScales> KvScalesFromFlags() {
  const std::string path = absl::GetFlag(FLAGS_kv_scales);
  if (path.empty()) return KvScales();
  const absl::StatusOr<KvLayout> layout = LayoutFromFlags();
  if (!layout.ok()) return layout.status();
  const absl::StatusOr<std::string> text = ReadFile("kv_scales", path);
  if (!text.ok()) return text.status();
  absl::StatusOr<KvScales> scales = ParseKvScales(*text, *layout);
  if (scales.ok()) return scales;
  return absl::InvalidArgumentError(
      absl::StrCat("--kv_scales is ", path, ": ", std::string(scales.status().message())));
}

absl::StatusOr<std::unique_ptr<Backend>> BackendFromFlags() {
  BackendChoice choice = {.backend = absl::GetFlag(FLAGS_backend),
                          .layout = {},
                          .threads = absl::GetFlag(FLAGS_threads),
                          .device = absl::GetFlag(FLAGS_device)};
  const absl::StatusOr<KvLayout> layout = LayoutFromFlags();
  if (!layout.ok()) return layout.status();
  choice.layout = *layout;
  if (absl::Status status = MemoryFromFlags(&choice); !status.ok()) return status;
  if (choice.threads < 0 || choice.threads > 1024) {
    return BadFlag("threads", absl::StrCat(choice.threads), "[0, 1024]");
  }
  absl::StatusOr<KvScales> scales = KvScalesFromFlags();
  if (!scales.ok()) return scales.status();
  choice.scales = *std::move(scales);
  return MakeBackend(choice);
}

std::string PortFileFromFlags() { return absl::GetFlag(FLAGS_port_file); }

}  // namespace santa
