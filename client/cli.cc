#include "client/cli.h"

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/attention_client.h"
#include "client/concat.h"
#include "client/safetensors.h"
#include "client/tensor.h"
#include "client/wire.h"

namespace santa {
namespace {

using client_internal::Concat;

// So that the same seed draws the same rows on every run.
constexpr uint64_t kSamplingKey = 1;
constexpr int kDefaultSampleShare = 16;

// What stops a command: a message and the exit code it means.
struct Failure {
  int exit_code;
  std::string message;
};

Failure UsageFailure(std::string message) { return {kCliUsageError, std::move(message)}; }
Failure ServerFailure(const absl::Status& status) { return {kCliServerError, status.ToString()}; }

using MaybeFailure = std::optional<Failure>;

// The tensors of one layer of the file; views of it.
struct LayerInput {
  std::string prefix;  // of the tensors' names: "" or "layer.N."
  uint32_t layer = 0;
  TensorView q;  // [1, H, D]
  TensorView k;  // [tokens, H_kv, D]
  TensorView v;
  std::vector<float> sinks;

  int64_t tokens() const { return k.shape[0]; }
};

std::string Shape(const TensorView& tensor) { return Concat("[", absl::StrJoin(tensor.shape, ", "), "]"); }

absl::StatusOr<TensorView> GetFloats(const Safetensors& file, const std::string& name) {
  absl::StatusOr<TensorView> tensor = file.Get(name);
  if (tensor.ok() && !IsFloatingPoint(tensor->type)) {
    return absl::InvalidArgumentError(
        Concat("tensor \"", name, "\" is ", Name(tensor->type), ", not F32, BF16 or F16"));
  }
  return tensor;
}

absl::StatusOr<LayerInput> ReadLayer(const Safetensors& file, const std::string& prefix, uint32_t layer) {
  LayerInput input;
  input.prefix = prefix;
  input.layer = layer;
  for (const auto& [name, tensor] : {std::pair("q", &input.q), std::pair("k", &input.k), std::pair("v", &input.v)}) {
    absl::StatusOr<TensorView> found = GetFloats(file, prefix + name);
    if (!found.ok()) return found.status();
    *tensor = *std::move(found);
  }
  if (input.q.shape.size() == 2) input.q.shape.insert(input.q.shape.begin(), 1);
  if (input.q.shape.size() != 3 || input.q.shape[0] != 1) {
    return absl::InvalidArgumentError(
        Concat("tensor \"", prefix, "q\" has shape ", Shape(input.q), "; one query token is [H, D] or [1, H, D]"));
  }
  if (input.k.shape.size() != 3 || input.k.shape != input.v.shape || input.k.type != input.v.type ||
      input.k.shape[0] == 0) {
    return absl::InvalidArgumentError(Concat("tensors \"", prefix, "k\" ", Name(input.k.type), " ", Shape(input.k),
                                             " and \"", prefix, "v\" ", Name(input.v.type), " ", Shape(input.v),
                                             " must both be [tokens >= 1, H_kv, D] of one dtype"));
  }
  if (file.Contains(prefix + "sinks")) {
    absl::StatusOr<TensorView> sinks = GetFloats(file, prefix + "sinks");
    if (!sinks.ok()) return sinks.status();
    input.sinks = *ToFloats(*sinks);
  }
  return input;
}

// "layer.12.q" -> 12.
std::optional<uint32_t> LayerOfQuery(std::string_view name) {
  constexpr std::string_view kPrefix = "layer.";
  constexpr std::string_view kSuffix = ".q";
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
  const std::string digits(name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size()));
  uint32_t layer = 0;
  if (!absl::SimpleAtoi(digits, &layer) || Concat(layer) != digits) return std::nullopt;
  return layer;
}

absl::StatusOr<std::vector<LayerInput>> ReadLayers(const Safetensors& file, uint32_t default_layer) {
  std::map<uint32_t, std::string> prefixes;
  if (file.Contains("q")) prefixes[default_layer] = "";
  for (const auto& [name, tensor] : file.tensors()) {
    if (const std::optional<uint32_t> layer = LayerOfQuery(name)) prefixes[*layer] = Concat("layer.", *layer, ".");
  }
  if (prefixes.empty()) prefixes[default_layer] = "";  // whose error names the tensors that there are
  std::vector<LayerInput> layers;
  for (const auto& [layer, prefix] : prefixes) {
    absl::StatusOr<LayerInput> input = ReadLayer(file, prefix, layer);
    if (!input.ok()) return input.status();
    layers.push_back(*std::move(input));
  }
  return layers;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) return absl::NotFoundError(Concat("cannot read ", path));
  return text;
}

class Cli {
 public:
  Cli(const CliOptions& options, std::ostream& out) : options_(options), out_(out) {}

  MaybeFailure Run(std::span<const std::string> arguments) {
    if (arguments.size() != 1) return UsageFailure("one command is needed: info, sequences or attend");
    const std::string& command = arguments[0];
    if (command == "info") return Info();
    if (command == "sequences") return Sequences();
    if (command == "attend") return Attend();
    return UsageFailure(Concat("command \"", command, "\" is none of info, sequences, attend"));
  }

 private:
  MaybeFailure Connect();
  MaybeFailure Info();
  MaybeFailure Sequences();
  MaybeFailure Attend();
  MaybeFailure AttendLayer(const v1::SequenceHandle& handle, const LayerInput& input, AttendStream& stream);
  absl::StatusOr<v1::AttendResult> Ask(const v1::SequenceHandle& handle, const LayerInput& input, v1::Method method,
                                       uint32_t samples, AttendStream& stream);
  void PrintLse(const v1::AttendResult& result);
  void PrintStatistics(const v1::AttendStatistics& statistics);
  void PrintError(const std::vector<float>& o, const std::vector<float>& exact, int64_t head_dim);

  template <typename... Arguments>
  void Print(const absl::FormatSpec<Arguments...>& format, const Arguments&... arguments) {
    out_ << absl::StrFormat(format, arguments...) << '\n';
  }

  const CliOptions& options_;
  std::ostream& out_;
  absl::Time deadline_;
  v1::Method method_ = v1::METHOD_EXACT;
  std::unique_ptr<AttentionClient> client_;
  std::map<std::string, Tensor, std::less<>> results_;  // for --out
};

MaybeFailure Cli::Connect() {
  ClientOptions client_options;
  client_options.use_tls = options_.tls;
  client_options.rpc_timeout = options_.timeout;
  deadline_ = absl::Now() + options_.timeout;
  for (const auto& [path, text] : {std::pair(options_.root_certificates, &client_options.root_certificates),
                                   std::pair(options_.token_file, &client_options.bearer_token)}) {
    if (path.empty()) continue;
    absl::StatusOr<std::string> read = ReadTextFile(path);
    if (!read.ok()) return UsageFailure(std::string(read.status().message()));
    *text = *std::move(read);
  }
  absl::StripAsciiWhitespace(&client_options.bearer_token);
  absl::StatusOr<std::unique_ptr<AttentionClient>> client = AttentionClient::Connect(options_.server, client_options);
  if (!client.ok()) return ServerFailure(client.status());
  client_ = *std::move(client);
  return std::nullopt;
}

MaybeFailure Cli::Info() {
  if (MaybeFailure failure = Connect()) return failure;
  const v1::ServerInfo& info = client_->info();
  const v1::KvLayout& layout = info.layout();
  const v1::Limits& limits = info.limits();
  const std::string methods = absl::StrJoin(info.methods(), ", ", [](std::string* text, int method) {
    *text += MethodName(static_cast<v1::Method>(method));
  });
  Print("version           %s", info.version());
  Print("backend           %s (%s)", info.backend(), info.device());
  Print("layout            %d layers, %d query heads, %d KV heads, head dimension %d, %s, pages of %d tokens",
        layout.num_layers(), layout.num_query_heads(), layout.num_kv_heads(), layout.head_dim(),
        v1::DataType_Name(layout.dtype()), layout.page_size());
  Print("sketch              %s, %.1f MB beside %.1f MB of pages", v1::Sketch_Name(layout.sketch()),
        static_cast<double>(info.sketch_bytes()) / 1e6, static_cast<double>(info.kv_bytes()) / 1e6);
  Print("key order         %s", v1::KeyOrder_Name(layout.key_order()));
  Print("methods           %s", methods);
  Print("pages             %d free of %d", info.free_pages(), limits.total_pages());
  Print("sequences         %d of %d", info.num_sequences(), limits.max_sequences());
  Print("tokens            up to %d a sequence", limits.max_tokens_per_sequence());
  Print("requests          up to %d items, %d bytes, %d samples", limits.max_items_per_request(),
        limits.max_message_bytes(), limits.max_sample_count());
  Print("lease             %g s, up to %g s", limits.default_lease_seconds(), limits.max_lease_seconds());
  return std::nullopt;
}

MaybeFailure Cli::Sequences() {
  if (MaybeFailure failure = Connect()) return failure;
  const absl::StatusOr<std::vector<v1::Sequence>> sequences = client_->ListSequences();
  if (!sequences.ok()) return ServerFailure(sequences.status());
  Print("%20s %10s %10s %8s %10s", "id", "generation", "tokens", "pages", "lease (s)");
  for (const v1::Sequence& sequence : *sequences) {
    Print("%20d %10d %10d %8d %10.1f", sequence.handle().id(), sequence.handle().generation(), sequence.num_tokens(),
          sequence.num_pages(), sequence.lease_seconds());
  }
  return std::nullopt;
}

MaybeFailure Cli::Attend() {
  const absl::StatusOr<v1::Method> method = ParseMethod(options_.method);
  if (!method.ok()) return UsageFailure(Concat("--method: ", std::string(method.status().message())));
  method_ = *method;
  if (!DrawsValues(method_) && options_.samples != 0) {
    return UsageFailure(Concat("--samples: ", MethodName(method_), " draws none"));
  }
  if (method_ == v1::METHOD_EXACT && options_.score_draws != 0) return UsageFailure("--score_draws: EXACT has none");
  if (options_.samples != 0 && options_.target_relative_error != 0) {
    return UsageFailure("--samples and --target_relative_error: one of them");
  }
  if (options_.file.empty()) return UsageFailure("--file: attend needs a safetensors file with q, k and v");
  const absl::StatusOr<Safetensors> file = Safetensors::Open(options_.file);
  if (!file.ok()) return UsageFailure(Concat("--file: ", std::string(file.status().message())));
  const absl::StatusOr<std::vector<LayerInput>> layers = ReadLayers(*file, options_.layer);
  if (!layers.ok()) return UsageFailure(Concat(options_.file, ": ", std::string(layers.status().message())));

  if (MaybeFailure failure = Connect()) return failure;
  v1::CreateSequenceRequest create;
  create.set_sampling_key(kSamplingKey);
  const absl::StatusOr<OwnedSequence> sequence = OwnedSequence::Create(*client_, create);
  if (!sequence.ok()) return ServerFailure(sequence.status());
  const std::unique_ptr<AttendStream> stream = client_->OpenAttendStream();
  for (const LayerInput& input : *layers) {
    if (MaybeFailure failure = AttendLayer(sequence->handle(), input, *stream)) return failure;
  }
  if (options_.out.empty()) return std::nullopt;

  std::map<std::string, TensorView, std::less<>> views;
  for (const auto& [name, tensor] : results_) views.emplace(name, tensor.view());
  const absl::Status written = WriteSafetensors(options_.out, views);
  if (!written.ok()) return UsageFailure(Concat("--out: ", std::string(written.message())));
  return std::nullopt;
}

MaybeFailure Cli::AttendLayer(const v1::SequenceHandle& handle, const LayerInput& input, AttendStream& stream) {
  const KvChunk chunk = {.layer = input.layer, .position = 0, .k = input.k, .v = input.v};
  if (absl::Status status = client_->AppendKv(handle, chunk, deadline_).status(); !status.ok()) {
    return ServerFailure(status);
  }
  uint32_t samples = options_.samples;
  if (samples == 0 && DrawsValues(method_) && options_.target_relative_error == 0) {
    samples = static_cast<uint32_t>((input.tokens() + kDefaultSampleShare - 1) / kDefaultSampleShare);
  }
  const absl::StatusOr<v1::AttendResult> result = Ask(handle, input, method_, samples, stream);
  if (!result.ok()) return ServerFailure(result.status());

  Print("layer %d: %d tokens, %s%s%s%s", input.layer, input.tokens(), std::string(MethodName(method_)),
        samples > 0 ? absl::StrFormat(", %d samples a query head", samples) : "",
        options_.score_draws > 0 ? absl::StrFormat(", %d score draws", options_.score_draws) : "",
        samples > 0 || options_.score_draws > 0 ? absl::StrFormat(", seed %d", options_.seed) : "");
  PrintLse(*result);
  PrintStatistics(result->statistics());
  if (options_.compare) {
    const absl::StatusOr<v1::AttendResult> exact = Ask(handle, input, v1::METHOD_EXACT, 0, stream);
    if (!exact.ok()) return ServerFailure(exact.status());
    PrintError(*ToFloats(result->o()), *ToFloats(exact->o()), input.q.shape[2]);
  }
  const absl::StatusOr<TensorView> o = FromWire(result->o());
  results_[input.prefix + "o"] = {o->type, o->shape, std::string(o->data)};
  const std::vector<float> lse(result->lse().begin(), result->lse().end());
  results_[input.prefix + "lse"] = FromFloats(lse, {result->lse_size()}, ElementType::kFloat32);
  return std::nullopt;
}

// The answer, whose o is a valid tensor of q's shape.
absl::StatusOr<v1::AttendResult> Cli::Ask(const v1::SequenceHandle& handle, const LayerInput& input, v1::Method method,
                                          uint32_t samples, AttendStream& stream) {
  v1::AttendRequest request;
  request.set_layer(input.layer);
  v1::AttendItem& item = *request.add_items();
  *item.mutable_handle() = handle;
  item.set_position(input.tokens() - 1);
  *item.mutable_q() = ToWire(input.q);
  v1::AttentionOptions& attention = *item.mutable_options();
  attention.set_method(method);
  attention.set_sample_count(samples);
  if (method != v1::METHOD_EXACT) {
    attention.set_target_relative_error(options_.target_relative_error);
    attention.set_score_draws(options_.score_draws);
  }
  attention.set_seed(options_.seed);
  attention.set_scale(options_.scale);
  attention.set_window(options_.window);
  attention.set_soft_cap(options_.soft_cap);
  attention.mutable_sink_logits()->Add(input.sinks.begin(), input.sinks.end());
  attention.set_want_statistics(true);

  AttendStream::Result response = stream.Attend(std::move(request), deadline_);
  if (!response.ok()) return response.status();
  v1::AttendResult& result = *response->mutable_results(0);
  if (absl::Status status = ToStatus(result.status()); !status.ok()) return status;
  const absl::StatusOr<TensorView> o = FromWire(result.o());
  if (!o.ok()) return absl::InternalError(Concat("the answer's o: ", std::string(o.status().message())));
  if (o->shape != input.q.shape) return absl::InternalError(Concat("the answer's o has shape ", Shape(*o)));
  return std::move(result);
}

void Cli::PrintLse(const v1::AttendResult& result) {
  constexpr int kPerLine = 8;
  for (int head = 0; head < result.lse_size(); ++head) {
    if (head % kPerLine == 0) out_ << (head == 0 ? "  lse              " : "\n                   ");
    out_ << absl::StrFormat(" %10.5f", result.lse(head));
  }
  out_ << '\n';
}

void Cli::PrintStatistics(const v1::AttendStatistics& statistics) {
  const auto percent = [](int64_t part, int64_t whole) {
    return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
  };
  const int64_t dense_rows = statistics.visible_tokens() * client_->info().layout().num_kv_heads();
  Print("  visible tokens    %d", statistics.visible_tokens());
  Print("  value rows read   %d of %d (%.2f %%)", statistics.value_rows_read(), dense_rows,
        percent(statistics.value_rows_read(), dense_rows));
  Print("  KV bytes read     %d of %d (%.2f %%)", statistics.kv_bytes_read(), statistics.dense_kv_bytes(),
        percent(statistics.kv_bytes_read(), statistics.dense_kv_bytes()));
  double squares = 0;
  for (const float error : statistics.relative_standard_error()) squares += double{error} * error;
  if (statistics.relative_standard_error_size() > 0) {
    const double error = std::sqrt(squares / statistics.relative_standard_error_size());
    Print("  standard error    %s", std::isnan(error) ? std::string("not known") : absl::StrFormat("%.4f", error));
  }
  Print("  time              %.3f ms in the queue, %.3f ms on the device", statistics.queue_seconds() * 1e3,
        statistics.device_seconds() * 1e3);
}

void Cli::PrintError(const std::vector<float>& o, const std::vector<float>& exact, int64_t head_dim) {
  const auto relative = [](double difference, double norm) {
    if (difference == 0) return 0.0;
    return norm > 0 ? std::sqrt(difference / norm) : std::numeric_limits<double>::infinity();
  };
  double all_difference = 0;
  double all_norm = 0;
  double worst = 0;
  size_t worst_head = 0;
  const auto dim = static_cast<size_t>(head_dim);
  for (size_t begin = 0; begin + dim <= exact.size(); begin += dim) {
    double difference = 0;
    double norm = 0;
    for (size_t i = begin; i < begin + dim; ++i) {
      difference += (double{o[i]} - exact[i]) * (double{o[i]} - exact[i]);
      norm += double{exact[i]} * exact[i];
    }
    all_difference += difference;
    all_norm += norm;
    if (relative(difference, norm) > worst) {
      worst = relative(difference, norm);
      worst_head = begin / dim;
    }
  }
  Print("  relative error    %.3e (worst head: %d, %.3e)", relative(all_difference, all_norm), worst_head, worst);
}

}  // namespace

int RunCli(const CliOptions& options, std::span<const std::string> arguments, std::ostream& out, std::ostream& err) {
  const MaybeFailure failure = Cli(options, out).Run(arguments);
  if (!failure) return kCliOk;
  err << "attention_cli: " << failure->message << '\n';
  if (failure->exit_code == kCliUsageError) err << "Try --help.\n";
  return failure->exit_code;
}

}  // namespace santa
