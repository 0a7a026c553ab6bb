#include "client/bench/load_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/wire.h"

namespace santa::bench {
namespace {

using Json = nlohmann::ordered_json;

double Ratio(double numerator, double denominator) { return denominator > 0 ? numerator / denominator : 0; }

double Microseconds(double nanoseconds) { return nanoseconds / 1e3; }

struct NamedQuantile {
  const char* name;
  double fraction;
};
constexpr NamedQuantile kQuantiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}};

std::string Shape(const LoadOptions& options) {
  std::string text = absl::StrFormat("%d clients x %d sequences x %s tokens, %d layers, %s", options.decode_clients(),
                                     options.sequences, options.tokens.text(), options.layers,
                                     std::string(MethodName(options.method)));
  if (DrawsValues(options.method)) {
    absl::StrAppend(&text, " S ", options.samples > 0 ? absl::StrCat(options.samples) : "n / 16");
  }
  if (options.score_draws > 0) absl::StrAppend(&text, " R ", options.score_draws);
  if (options.append) text += ", appending";
  if (options.in_place) text += ", in place";
  if (options.prefill_clients > 0) absl::StrAppend(&text, "; ", options.prefill_clients, " clients upload prompts");
  if (options.rate > 0) return absl::StrCat(text, "; open loop, ", options.rate, " steps/s");
  return absl::StrCat(text, "; closed loop, ", options.in_flight, " in flight a client");
}

double Quantile(const LatencyHistogram& latency, double fraction) {
  return Microseconds(static_cast<double>(latency.Quantile(fraction)));
}

std::string QuantileLine(const char* name, const LatencyHistogram& latency) {
  std::string text = name;
  for (const auto& [label, fraction] : kQuantiles) {
    absl::StrAppendFormat(&text, " %s %.1f,", label, Quantile(latency, fraction));
  }
  absl::StrAppendFormat(&text, " max %.1f, mean %.1f\n", Microseconds(static_cast<double>(latency.max())),
                        Microseconds(latency.mean()));
  return text;
}

Json QuantilesJson(const LatencyHistogram& latency) {
  Json json = {{"count", latency.count()}};
  for (const auto& [name, fraction] : kQuantiles) json[name] = Quantile(latency, fraction);
  json["max"] = Microseconds(static_cast<double>(latency.max()));
  json["mean"] = Microseconds(latency.mean());
  return json;
}

double MedianClientP99(const LoadResult& result) {
  return static_cast<double>(result.client_p99[result.client_p99.size() / 2]);
}

std::string EchoLines(const LoadOptions& options, const LoadResult& result) {
  std::string text = QuantileLine("less device ", result.counts.without_device);
  if (!result.echo) return text;
  text += QuantileLine(*options.echo == EchoKind::kRaw ? "echo, raw us" : "echo, pb us ", *result.echo);
  absl::StrAppendFormat(&text, "over echo    p50 less device is %.3f of the echo's; %d bytes there, %d back\n",
                        OverEcho(result), result.request_bytes, result.answer_bytes);
  return text;
}

std::string StageLine(const char* name, double microseconds, double total, const char* what) {
  return absl::StrFormat("  %-20s %10.1f us %5.1f %%  %s\n", name, microseconds, 100 * Ratio(microseconds, total),
                         what);
}

}  // namespace

Stages MeanStages(const LoadCounts& counts) {
  const double steps = static_cast<double>(std::max<int64_t>(1, counts.latency.count()));
  Stages stages = {.late = 1e6 * counts.late_seconds / steps,
                   .queue = 1e6 * counts.queue_seconds / steps,
                   .device = 1e6 * counts.device_seconds / steps};
  stages.transport_and_reply = Microseconds(counts.latency.mean()) - stages.late - stages.queue - stages.device;
  return stages;
}

double OverEcho(const LoadResult& result) {
  if (!result.echo) return 0;
  return Ratio(static_cast<double>(result.counts.without_device.Quantile(0.5)),
               static_cast<double>(result.echo->Quantile(0.5)));
}

double DeviceBusyShare(const LoadResult& result) {
  if (result.server_counters) return Ratio(result.server_counters->device_seconds, result.server_seconds);
  return Ratio(result.counts.device_seconds_share, result.seconds);
}

std::string LoadTable(const LoadOptions& options, const LoadResult& result) {
  const LoadCounts& counts = result.counts;
  const LatencyHistogram& latency = counts.latency;
  std::string text = absl::StrFormat("server       %s %s, %s: %s\nload         %s\nmeasured     %.2f s\n",
                                     options.server, result.server.version(), result.server.backend(),
                                     result.server.device(), Shape(options), result.seconds);
  absl::StrAppendFormat(&text, "throughput   %.1f steps/s, %.1f items/s\n",
                        Ratio(static_cast<double>(counts.steps), result.seconds),
                        Ratio(static_cast<double>(counts.items), result.seconds));
  text += QuantileLine("latency us  ", latency);
  if (result.client_p99.size() > 1) {
    absl::StrAppendFormat(&text, "clients      p99 of the median client %.1f, of the worst %.1f us: %.2f times\n",
                          Microseconds(MedianClientP99(result)),
                          Microseconds(static_cast<double>(result.client_p99.back())),
                          Ratio(static_cast<double>(result.client_p99.back()), MedianClientP99(result)));
  }
  text += EchoLines(options, result);
  if (options.prefill_clients > 0) {
    absl::StrAppendFormat(&text, "prefill      %.1f tokens/s of %d layers, %d prompts failed\n",
                          Ratio(static_cast<double>(counts.prompt_tokens), result.seconds), options.layers,
                          counts.failed_prompts);
    text += QuantileLine("prompts us  ", counts.prompts);
  }

  const Stages stages = MeanStages(counts);
  const double mean = Microseconds(latency.mean());
  text += "stages, mean of a step\n";
  if (options.rate > 0) text += StageLine("late", stages.late, mean, "from the intended start to the sending");
  text += StageLine("transport and reply", stages.transport_and_reply, mean, "library, wire and rpc layer, both ways");
  text += StageLine("queue", stages.queue, mean, "in the server, until the step's batch begins");
  text += StageLine("device", stages.device, mean, "the step's batch");
  absl::StrAppendFormat(&text,
                        "device       busy %.1f %% of the time (%s), batches of %.1f items as a step meets them\n",
                        100 * DeviceBusyShare(result), result.server_counters ? "/metrics" : "answers' statistics",
                        Ratio(counts.batch_items, static_cast<double>(latency.count())));
  if (result.server_counters) {
    const ServerCounters& server = *result.server_counters;
    absl::StrAppendFormat(&text, "             %.1f batches/s of %.2f items, %.2f GB/s of K and V while busy\n",
                          Ratio(server.batches, result.server_seconds), Ratio(server.batch_items, server.batches),
                          Ratio(server.kv_bytes_read, server.device_seconds) / 1e9);
  }
  if (!result.metrics_error.empty()) absl::StrAppend(&text, "metrics      ", result.metrics_error, "\n");
  absl::StrAppendFormat(&text, "carried by   shared memory: %d clients; gRPC: %d\n", counts.shared_streams,
                        options.decode_clients() - counts.shared_streams);
  absl::StrAppendFormat(&text, "errors       %d steps failed, %d not sent, %d sent again on %d streams\n",
                        counts.failed_steps, counts.unsent_steps, counts.requests_resent, counts.streams_opened);
  for (const auto& [code, items] : counts.failed_items) {
    absl::StrAppendFormat(&text, "  %s: %d items\n", absl::StatusCodeToString(code), items);
  }
  return text;
}

std::string LoadJson(const LoadOptions& options, const LoadResult& result) {
  const LoadCounts& counts = result.counts;
  const v1::KvLayout& layout = result.server.layout();
  Json json = {{"server",
                {{"version", result.server.version()},
                 {"backend", result.server.backend()},
                 {"device", result.server.device()},
                 {"num_query_heads", layout.num_query_heads()},
                 {"num_kv_heads", layout.num_kv_heads()},
                 {"head_dim", layout.head_dim()}}},
               {"load",
                {{"clients", options.clients},
                 {"sequences", options.sequences},
                 {"tokens", options.tokens.text()},
                 {"layers", options.layers},
                 {"method", MethodName(options.method)},
                 {"samples", options.samples},
                 {"score_draws", options.score_draws},
                 {"append", options.append},
                 {"prefill_clients", options.prefill_clients},
                 {"prefill_chunk", options.prefill_chunk},
                 {"in_flight", options.rate > 0 ? Json(nullptr) : Json(options.in_flight)},
                 {"rate", options.rate}}},
               {"seconds", result.seconds},
               {"steps", counts.steps},
               {"steps_per_second", Ratio(static_cast<double>(counts.steps), result.seconds)},
               {"items_per_second", Ratio(static_cast<double>(counts.items), result.seconds)}};
  json["latency_us"] = QuantilesJson(counts.latency);
  if (!result.client_p99.empty()) {
    json["client_p99_us"] = {{"least", Microseconds(static_cast<double>(result.client_p99.front()))},
                             {"median", Microseconds(MedianClientP99(result))},
                             {"greatest", Microseconds(static_cast<double>(result.client_p99.back()))}};
  }
  json["without_device_us"] = QuantilesJson(counts.without_device);
  if (result.echo) {
    json["echo"] = {{"kind", *options.echo == EchoKind::kRaw ? "raw" : "protobuf"},
                    {"request_bytes", result.request_bytes},
                    {"answer_bytes", result.answer_bytes},
                    {"latency_us", QuantilesJson(*result.echo)},
                    {"without_device_over_echo_p50", OverEcho(result)}};
  }
  if (options.prefill_clients > 0) {
    json["prefill"] = {{"tokens_per_second", Ratio(static_cast<double>(counts.prompt_tokens), result.seconds)},
                       {"latency_us", QuantilesJson(counts.prompts)},
                       {"failed_prompts", counts.failed_prompts}};
  }

  const Stages stages = MeanStages(counts);
  json["stages_us"] = {{"late", stages.late},
                       {"transport_and_reply", stages.transport_and_reply},
                       {"queue", stages.queue},
                       {"device", stages.device}};
  json["device_busy_share"] = DeviceBusyShare(result);
  json["device_busy_share_source"] = result.server_counters ? "metrics" : "answers";
  json["step_batch_items"] = Ratio(counts.batch_items, static_cast<double>(counts.latency.count()));
  if (result.server_counters) {
    const ServerCounters& server = *result.server_counters;
    json["server_metrics"] = {{"seconds", result.server_seconds},
                              {"device_seconds", server.device_seconds},
                              {"steps", server.steps},
                              {"queue_seconds", server.queue_seconds},
                              {"batches", server.batches},
                              {"batch_items", server.batch_items},
                              {"kv_bytes_read", server.kv_bytes_read},
                              {"tokens_appended", server.tokens_appended}};
  }
  if (!result.metrics_error.empty()) json["metrics_error"] = result.metrics_error;
  json["failed_steps"] = counts.failed_steps;
  json["unsent_steps"] = counts.unsent_steps;
  Json& errors = json["errors"] = Json::object();  // items, by code
  for (const auto& [code, items] : counts.failed_items) errors[absl::StatusCodeToString(code)] = items;
  json["streams_opened"] = counts.streams_opened;
  json["shared_streams"] = counts.shared_streams;
  json["requests_resent"] = counts.requests_resent;
  return json.dump() + "\n";
}

}  // namespace santa::bench
