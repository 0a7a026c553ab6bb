#include "server/server.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/kv/lease_reaper.h"
#include "server/kv/page_pool.h"
#include "server/logging/log.h"
#include "server/metrics/http_endpoint.h"
#include "server/metrics/metrics.h"
#include "server/rpc/attention_service.h"
#include "server/rpc/stream_registry.h"
#include "server/self_test.h"
#include "server/version.h"

namespace santa {
namespace {

// gRPC keeps these for the whole process, for servers built from then on.
void InstallStandardServices() {
  static const bool installed = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::channelz::experimental::InitChannelzService();
    return true;
  }();
  static_cast<void>(installed);
}

// Those that it has with many samples over many tokens.
std::vector<Method> MethodsOf(const Backend& backend) {
  std::vector<Method> methods;
  for (const Method method : kAllMethods) {
    const AttentionOptions options = {.method = method,
                                      .sample_count = DrawsValues(method) ? kMaxSampleCount : 0,
                                      .score_draws = method == Method::kBernoulliQk ? 1u : 0u};
    if (backend.Supports(options, 2 * int64_t{kMaxSampleCount}).ok()) methods.push_back(method);
  }
  return methods;
}

std::shared_ptr<grpc::ServerCredentials> Credentials(const ServerOptions& options) {
  if (options.tls_certificate.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions tls;
  tls.pem_key_cert_pairs.push_back({options.tls_key, options.tls_certificate});
  return grpc::SslServerCredentials(tls);
}

}  // namespace

absl::Status Validate(const ServerOptions& options) {
  const auto positive = [](const char* field, int64_t value) {
    return value > 0 ? absl::OkStatus()
                     : absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; allowed is 1 or more"));
  };
  for (const absl::Status& status :
       {positive("max_sequences", options.store.max_sequences),
        positive("max_tokens_per_sequence", options.store.max_tokens_per_sequence),
        positive("max_queued_items", options.engine.max_queued_items),
        positive("max_queued_items_per_tenant", options.engine.max_queued_items_per_tenant),
        positive("max_batch_items", options.engine.max_batch_items),
        positive("max_items_per_request", options.rpc.max_items_per_request),
        positive("max_inflight_per_stream", options.rpc.max_inflight_per_stream),
        positive("max_streams", options.rpc.max_streams)}) {
    if (!status.ok()) return status;
  }
  if (options.rpc.max_shared_bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_shared_bytes is ", options.rpc.max_shared_bytes, "; allowed is 0 (none) or more"));
  }
  if (options.rpc.max_message_bytes < 1024 || options.rpc.max_message_bytes > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_message_bytes is ", options.rpc.max_message_bytes, "; allowed is [1024, 2^31)"));
  }
  if (options.store.max_lease <= absl::ZeroDuration() || options.store.default_lease <= absl::ZeroDuration() ||
      options.store.default_lease > options.store.max_lease) {
    return absl::InvalidArgumentError(
        absl::StrCat("default_lease is ", absl::FormatDuration(options.store.default_lease), " and max_lease ",
                     absl::FormatDuration(options.store.max_lease), "; allowed is 0 < default_lease <= max_lease"));
  }
  if (options.drain_grace < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("drain_grace is ", absl::FormatDuration(options.drain_grace), "; allowed is 0 or more"));
  }
  if (options.slow_step_threshold < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slow_step_threshold is ", absl::FormatDuration(options.slow_step_threshold), "; allowed is 0 (none) or more"));
  }
  if (absl::Status status = Validate(options.audit); !status.ok()) return status;
  if (options.tls_certificate.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError(options.tls_key.empty()
                                          ? "tls_cert is set without tls_key; allowed is both or none"
                                          : "tls_key is set without tls_cert; allowed is both or none");
  }
  if (options.port < 0 || options.port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("port is ", options.port, "; allowed is [0, 65535]"));
  }
  if (options.http_port < -1 || options.http_port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("http_port is ", options.http_port, "; allowed is -1 (none) or [0, 65535]"));
  }
  return absl::OkStatus();
}

// Members in the order in which they must go, last one first.
struct AttentionServer::State {
  State(const ServerOptions& server_options, std::unique_ptr<Backend> server_backend)
      : options(server_options),
        backend(std::move(server_backend)),
        pool(backend->num_pages()),
        store(backend->layout().num_layers, backend->layout().page_size, options.store, &pool),
        metrics(kServerVersion, std::string(backend->name())),
        streams(options.rpc.max_streams),
        auditor(
            backend->layout(), options.audit, [this](Step* step) { return engine.SubmitBackground(step); },
            EventsOfAudits()),
        engine(backend.get(), &store, &pool, options.engine, [this](const BatchReport& report) { OnBatch(report); }),
        slow_steps(options.slow_step_threshold),
        context{.engine = &engine,
                .auditor = &auditor,
                .store = &store,
                .pool = &pool,
                .metrics = &metrics,
                .streams = &streams,
                .slow_steps = &slow_steps,
                .authenticator = &options.authenticator,
                .asynchronous_device = backend->max_decodes_in_flight() > 1,
                .version = kServerVersion,
                .backend = std::string(backend->name()),
                .device = backend->device(),
                .layout = backend->layout(),
                .methods = MethodsOf(*backend),
                .store_limits = options.store,
                .limits = options.rpc},
        service(&context) {}

  const ServerOptions options;
  const std::unique_ptr<Backend> backend;
  PagePool pool;
  SequenceStore store;
  Metrics metrics;
  StreamRegistry streams;
  Auditor auditor;
  Engine engine;
  SlowStepLog slow_steps;
  ServiceContext context;
  AttentionService service;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
  std::atomic<grpc::HealthCheckServiceInterface*> health{nullptr};  // read on the device thread too
  std::mutex drain_mutex;
  bool drained = false;
  std::atomic<bool> started{false};
  std::unique_ptr<LeaseReaper> reaper;
  std::unique_ptr<HttpEndpoint> http;

  absl::Status StartGrpc();
  absl::Status StartHttp();
  absl::Status SelfTest();
  void OnBatch(const BatchReport& report);
  AuditEvents EventsOfAudits();
  void SetServing(bool serving) const;
  absl::Status Readiness();
  std::string RenderMetrics();
};

absl::Status AttentionServer::State::StartGrpc() {
  InstallStandardServices();
  grpc::ServerBuilder builder;
  const std::string host = absl::StrContains(options.host, ":") ? "[" + options.host + "]" : options.host;
  const std::string place = absl::StrCat(host, ":", options.port);
  builder.AddListeningPort(place, Credentials(options), &port);
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.rpc.max_message_bytes));
  builder.SetMaxSendMessageSize(-1);
  // A second server on the port is to fail, not to take every other connection.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A caller whose machine vanished without a word loses its streams within a minute.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 40'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve gRPC on ", place, ": the port is taken, or the address or the TLS key is bad"));
  }
  health = server->GetHealthCheckService();
  SetServing(true);
  return absl::OkStatus();
}

absl::Status AttentionServer::State::StartHttp() {
  if (options.http_port < 0) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<HttpEndpoint>> started = HttpEndpoint::Start(
      options.host, options.http_port,
      {{"/metrics",
        [this] {
          return HttpAnswer{.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = RenderMetrics()};
        }},
       {"/healthz", [] { return HttpAnswer{.body = "ok\n"}; }},
       {"/readyz", [this] {
          const absl::Status status = Readiness();
          if (status.ok()) return HttpAnswer{.body = "ready\n"};
          return HttpAnswer{.status = 503, .body = std::string(status.message()) + "\n"};
        }}});
  if (!started.ok()) return started.status();
  http = *std::move(started);
  return absl::OkStatus();
}

absl::Status AttentionServer::State::SelfTest() {
  if (!options.self_test) return absl::OkStatus();
  const absl::Time begin = absl::Now();
  const KvLayout& layout = backend->layout();
  absl::Status status = RunSelfTest(
      {.layout = layout,
       .scales = options.kv_scales,
       .methods = context.methods,
       .max_tokens = std::min(options.store.max_tokens_per_sequence, int64_t{backend->num_pages()} * layout.page_size)},
      &engine, &store);
  if (status.ok()) {
    Log(LogLevel::kInfo, "the self-test passed", {{"seconds", absl::ToDoubleSeconds(absl::Now() - begin)}});
  }
  return status;
}

AuditEvents AttentionServer::State::EventsOfAudits() {
  return {.on_audit =
              [this](const AuditReport& report) {
                metrics.RecordAudit(report);
                if (report.changed_answers == 0) return;
                Log(LogLevel::kError, "an audited step was answered differently when it was repeated",
                    {{"method", Name(report.method)}, {"layer", report.layer}, {"items", report.changed_answers}});
              },
          .on_skip = [this](AuditSkip reason) { metrics.RecordAuditSkip(reason); },
          .on_device_time = [this](absl::Duration device_time) { metrics.RecordAuditTime(device_time); },
          .on_fallback =
              [this](const Fallback& fallback) {
                metrics.RecordFallback(fallback);
                Log(LogLevel::kWarning, "the audited error passed its bound; answering exactly",
                    {{"method", Name(fallback.method)},
                     {"layer", fallback.layer},
                     {"relative_error", fallback.relative_error},
                     {"bound", options.audit.error_bound},
                     {"seconds", absl::ToDoubleSeconds(options.audit.fallback_time)}});
              },
          .on_fallback_item = [this](Method method) { metrics.RecordFallbackItem(method); }};
}

void AttentionServer::State::OnBatch(const BatchReport& report) {
  metrics.RecordBatch(report);
  auditor.Observe(report);
  const absl::Status device = engine.device_status();
  if (device.ok()) return;
  SetServing(false);
  Log(LogLevel::kError, "the device failed; no step will be answered until a restart",
      {{"error", std::string(device.message())}});
}

void AttentionServer::State::SetServing(bool serving) const {
  grpc::HealthCheckServiceInterface* const service_health = health;
  if (service_health == nullptr) return;
  service_health->SetServingStatus("", serving);
  service_health->SetServingStatus(v1::AttentionService::service_full_name(), serving);
}

absl::Status AttentionServer::State::Readiness() {
  if (!started) return absl::UnavailableError("the server is starting");
  if (absl::Status status = streams.CheckServing(); !status.ok()) return status;
  return engine.device_status();
}

std::string AttentionServer::State::RenderMetrics() {
  return metrics.Render({.running_items = engine.running_items(),
                         .waiting_items = engine.queued_items(),
                         .total_pages = pool.num_pages(),
                         .free_pages = pool.free_pages(),
                         .kv_bytes = static_cast<int64_t>(backend->layout().page_bytes()) * pool.num_pages(),
                         .sketch_bytes = static_cast<int64_t>(backend->layout().sketch_page_bytes()) * pool.num_pages(),
                         .sequences = store.size(),
                         .serving = Readiness().ok(),
                         .fallback_layers = [this](Method method) { return auditor.fallback_layers(method); }});
}

AttentionServer::AttentionServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<AttentionServer>> AttentionServer::Start(const ServerOptions& options,
                                                                        std::unique_ptr<Backend> backend) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  auto state = std::make_unique<State>(options, std::move(backend));
  std::unique_ptr<AttentionServer> server(new AttentionServer(std::move(state)));
  State* const s = server->state_.get();
  if (absl::Status status = s->StartHttp(); !status.ok()) return status;
  if (absl::Status status = s->SelfTest(); !status.ok()) return status;
  if (absl::Status status = s->StartGrpc(); !status.ok()) return status;
  s->started = true;
  s->reaper = std::make_unique<LeaseReaper>(&s->store, options.expiry_interval, [s](int64_t expired) {
    s->metrics.RecordExpired(expired);
    Log(LogLevel::kInfo, "leases ran out", {{"sequences", expired}});
  });
  return server;
}

AttentionServer::~AttentionServer() { Drain(); }

int AttentionServer::port() const { return state_->port; }
int AttentionServer::http_port() const { return state_->http == nullptr ? -1 : state_->http->port(); }
absl::Status AttentionServer::readiness() const { return state_->Readiness(); }
absl::Status AttentionServer::device_status() const { return state_->engine.device_status(); }

void AttentionServer::Drain() {
  State& s = *state_;
  std::lock_guard<std::mutex> lock(s.drain_mutex);
  if (s.drained) return;
  s.drained = true;
  const absl::Time end = absl::Now() + s.options.drain_grace;
  s.streams.BeginDrain();
  if (s.server != nullptr) {
    s.SetServing(false);
    const bool answered = s.streams.WaitUntilEmpty(s.options.drain_grace);
    if (!answered) Log(LogLevel::kWarning, "the drain's grace is over; cancelling what is left");
    // Unary calls take no time; what else is open (watches of health, say) has no end of its own.
    constexpr absl::Duration kForUnaryCalls = absl::Milliseconds(100);
    s.server->Shutdown(absl::ToChronoTime(std::min(end, absl::Now() + kForUnaryCalls)));
    s.server->Wait();
  }
  s.engine.Shutdown();
  if (s.reaper != nullptr) s.reaper->Stop();
}

}  // namespace santa
