// What an operator relies on: health, reflection, channelz, metrics, probes, drain, a failing device.
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "server/testing/fake_backend.h"
#include "tests/http_get.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

using grpc::StatusCode;

// HealthCheckRequest{service}, and what HealthCheckResponse{status} looks like.
std::string HealthRequest(const std::string& service) {
  if (service.empty()) return "";
  return std::string("\x0a") + static_cast<char>(service.size()) + service;
}
constexpr char kServing[] = "\x08\x01";
constexpr char kNotServing[] = "\x08\x02";
constexpr char kService[] = "santa.attention.v1.AttentionService";

std::string Health(const TestServer& server, const std::string& service) {
  const RawAnswer answer = CallRaw(server.NewChannel(), "/grpc.health.v1.Health/Check", HealthRequest(service));
  return answer.status.ok() ? answer.bytes : answer.status.error_message();
}

HttpResponse Get(const TestServer& server, const std::string& path) {
  return HttpRequest(server.server->http_port(), "GET", path);
}

// A device that stops at its first Decode until it is let go, and then does as told.
class Gate {
 public:
  explicit Gate(absl::Status status) : status_(std::move(status)) {}
  absl::Status Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    reached_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    return status_;
  }
  void AwaitReached() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return reached_; });
  }
  void Open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  const absl::Status status_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  bool open_ = false;
};

// A server on a backend that waits at `gate` in Decode.
std::unique_ptr<TestServer> GatedServer(Gate* gate, ServerOptions options) {
  options.self_test = false;  // which the fake backend does not pass
  auto server = std::make_unique<TestServer>();
  auto backend = std::make_unique<FakeBackend>(SmallLayout(), 64);
  backend->set_hook(
      [gate](FakeBackend::Call call) { return call == FakeBackend::Call::kDecode ? gate->Pass() : absl::OkStatus(); });
  auto started = AttentionServer::Start(options, std::move(backend));
  EXPECT_TRUE(started.ok()) << started.status();
  server->server = *std::move(started);
  server->stub = v1::AttentionService::NewStub(server->NewChannel());
  return server;
}

TEST(OperationsTest, StandardServicesAnswer) {
  const TestServer server;
  EXPECT_EQ(Health(server, ""), kServing);
  EXPECT_EQ(Health(server, kService), kServing);
  const RawAnswer reflection =
      CallRaw(server.NewChannel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", {"\x3a\x00", 2});
  EXPECT_TRUE(reflection.status.ok()) << reflection.status.error_message();
  EXPECT_NE(reflection.bytes.find(kService), std::string::npos);
  const RawAnswer channelz = CallRaw(server.NewChannel(), "/grpc.channelz.v1.Channelz/GetServers", "");
  EXPECT_TRUE(channelz.status.ok()) << channelz.status.error_message();
  EXPECT_FALSE(channelz.bytes.empty());
}

TEST(OperationsTest, MetricsAreThoseDocumented) {
  const TestServer server;
  const v1::SequenceHandle handle = Create(server.stub.get()).handle();
  ASSERT_TRUE(Fill(server.stub.get(), handle, 1, 0, 20).ok());
  v1::AttendItem item = Item(handle, 1, 0, 19, false);
  ASSERT_EQ(AttendOne(server.stub.get(), 0, item).status().code(), 0);
  item.set_position(-1);
  ASSERT_NE(AttendOne(server.stub.get(), 0, item).status().code(), 0);

  const HttpResponse response = Get(server, "/metrics");
  EXPECT_EQ(response.status, 200);
  EXPECT_NE(response.head.find("text/plain; version=0.0.4"), std::string::npos) << response.head;
  // Every line is a comment or "name{labels} number", and every family is one of these.
  std::set<std::string> families;
  std::istringstream lines(response.body);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("# TYPE ", 0) == 0) families.insert(line.substr(7, line.find(' ', 7) - 7));
    if (line.empty() || line[0] == '#') continue;
    const size_t space = line.rfind(' ');
    ASSERT_NE(space, std::string::npos) << line;
    size_t used = 0;
    EXPECT_GE(std::stod(line.substr(space + 1), &used), 0) << line;
    EXPECT_EQ(used, line.size() - space - 1) << line;
  }
  const std::set<std::string> documented = {"santa_requests_running",
                                            "santa_requests_waiting",
                                            "santa_request_queue_seconds",
                                            "santa_attend_seconds",
                                            "santa_device_seconds_total",
                                            "santa_kv_bytes_read_total",
                                            "santa_dense_kv_bytes_total",
                                            "santa_value_rows_read_total",
                                            "santa_attend_items_total",
                                            "santa_tokens_appended_total",
                                            "santa_kv_cache_usage_ratio",
                                            "santa_kv_pages",
                                            "santa_kv_memory_bytes",
                                            "santa_relative_standard_error",
                                            "santa_sequences",
                                            "santa_sequences_expired_total",
                                            "santa_grpc_requests_total",
                                            "santa_batch_items",
                                            "santa_build_info",
                                            "santa_serving",
                                            "santa_audit_speedup_ratio",
                                            "santa_audit_relative_error",
                                            "santa_audit_error_over_predicted_ratio",
                                            "santa_audit_squared_error_total",
                                            "santa_audit_seconds_total",
                                            "santa_audit_device_seconds_total",
                                            "santa_audit_skipped_total",
                                            "santa_audit_changed_answers_total",
                                            "santa_audit_fallback_layers",
                                            "santa_audit_fallbacks_total",
                                            "santa_audit_fallback_items_total"};
  EXPECT_EQ(families, documented);
  // 20 tokens of 2 heads, K and V, 8 floats each.
  for (const char* line :
       {"santa_tokens_appended_total 40\n", "santa_sequences 1\n", "santa_kv_pages{state=\"used\"} 2\n",
        "santa_kv_cache_usage_ratio 0.03125\n", "santa_dense_kv_bytes_total{method=\"EXACT\"} 2560\n",
        "santa_kv_bytes_read_total{method=\"EXACT\"} 2560\n", "santa_value_rows_read_total{method=\"EXACT\"} 40\n",
        "santa_attend_items_total{code=\"OK\",method=\"EXACT\"} 1\n",
        "santa_attend_items_total{code=\"INVALID_ARGUMENT\",method=\"EXACT\"} 1\n",
        "santa_grpc_requests_total{code=\"OK\",method=\"Attend\"} 2\n",
        "santa_grpc_requests_total{code=\"OK\",method=\"AppendKv\"} 1\n",
        "santa_attend_seconds_count{method=\"EXACT\"} 1\n", "backend=\"cpu\""}) {
    EXPECT_NE(response.body.find(line), std::string::npos) << line << "is missing of\n" << response.body;
  }
}

// The value of a series in /metrics; -1 where there is none.
double Value(const TestServer& server, const std::string& series) {
  std::istringstream lines(Get(server, "/metrics").body);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(series + " ", 0) == 0) return std::stod(line.substr(series.size() + 1));
  }
  return -1;
}

TEST(OperationsTest, LiveStepsAreAudited) {
  ServerOptions options;
  options.audit = {.share = 1, .max_device_share = 1};
  const TestServer server(options);
  const v1::SequenceHandle handle = Create(server.stub.get()).handle();
  ASSERT_TRUE(Fill(server.stub.get(), handle, 1, 0, 200).ok());
  v1::AttendItem item = Item(handle, 1, 0, 200, true);
  item.mutable_options()->set_method(v1::METHOD_SYSTEMATIC);
  item.mutable_options()->set_sample_count(16);
  ASSERT_EQ(AttendOne(server.stub.get(), 0, item).status().code(), 0);
  const std::string method = "{method=\"SYSTEMATIC\"}";
  ASSERT_TRUE(Eventually([&] { return Value(server, "santa_audit_speedup_ratio_count" + method) == 1; }));
  EXPECT_GT(Value(server, "santa_audit_speedup_ratio_sum" + method), 0);
  EXPECT_EQ(Value(server, "santa_audit_relative_error_count" + method), 1);
  EXPECT_GT(Value(server, "santa_audit_relative_error_sum" + method), 1e-3);
  EXPECT_EQ(Value(server, "santa_audit_changed_answers_total" + method), 0);
  EXPECT_GT(Value(server, "santa_audit_device_seconds_total"), 0);
  EXPECT_EQ(Value(server, "santa_attend_items_total{code=\"OK\",method=\"EXACT\"}"), 0);
}

TEST(OperationsTest, AnAuditedErrorPastTheBoundTurnsToExact) {
  ServerOptions options;
  options.audit = {.share = 1, .max_device_share = 1, .error_bound = 1e-6};
  const TestServer server(options);
  const v1::SequenceHandle handle = Create(server.stub.get()).handle();
  ASSERT_TRUE(Fill(server.stub.get(), handle, 1, 0, 200).ok());
  v1::AttendItem item = Item(handle, 1, 0, 199, false);
  item.mutable_options()->set_method(v1::METHOD_SANTA);
  item.mutable_options()->set_sample_count(16);
  ASSERT_TRUE(Eventually([&] {
    EXPECT_EQ(AttendOne(server.stub.get(), 0, item).status().code(), 0);
    return Value(server, "santa_audit_fallback_layers{method=\"SANTA\"}") == 1;
  }));
  ExpectExact(AttendOne(server.stub.get(), 0, item), 1, 0, 199);
  EXPECT_GT(Value(server, "santa_audit_fallback_items_total{method=\"SANTA\"}"), 0);
}

TEST(OperationsTest, ADrainAnswersWhatIsInFlightAndRefusesWhatIsNew) {
  Gate gate{absl::OkStatus()};
  ServerOptions options;
  options.drain_grace = absl::Seconds(60);
  const std::unique_ptr<TestServer> server = GatedServer(&gate, options);
  EXPECT_EQ(Get(*server, "/readyz").status, 200);
  EXPECT_EQ(Get(*server, "/healthz").status, 200);
  const v1::SequenceHandle handle = Create(server->stub.get()).handle();
  Call call;
  const auto stream = server->stub->Attend(&call.context);
  ASSERT_TRUE(stream->Write(Request(0, {Item(handle, 1, 0, 0, true)}, 5)));
  Call idle_call;
  const auto idle = server->stub->Attend(&idle_call.context);
  ASSERT_TRUE(idle->Write(Request(7, {v1::AttendItem()})));
  v1::AttendResponse response;
  ASSERT_TRUE(idle->Read(&response));
  gate.AwaitReached();

  std::thread drain([&] { server->server->Drain(); });
  // An idle stream ends at once; it also tells that the drain has begun.
  EXPECT_FALSE(idle->Read(&response));
  EXPECT_EQ(idle->Finish().error_code(), StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Eventually([&] { return Health(*server, "") == kNotServing; }));
  EXPECT_EQ(Health(*server, kService), kNotServing);
  const HttpResponse ready = Get(*server, "/readyz");
  EXPECT_EQ(ready.status, 503);
  EXPECT_NE(ready.body.find("draining"), std::string::npos);
  EXPECT_EQ(Get(*server, "/healthz").status, 200);
  v1::Sequence refused;
  {
    Call create;
    EXPECT_EQ(server->stub->CreateSequence(&create.context, {}, &refused).error_code(), StatusCode::UNAVAILABLE);
  }
  EXPECT_EQ(Attend(server->stub.get(), {Request(0, {Item(handle, 1, 0, 0, true)})}).status.error_code(),
            StatusCode::UNAVAILABLE);
  EXPECT_EQ(Fill(server->stub.get(), handle, 1, 0, 1).error_code(), StatusCode::UNAVAILABLE);

  gate.Open();
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.request_id(), 5U);
  EXPECT_EQ(response.results(0).status().code(), 0) << response.results(0).status().message();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), StatusCode::UNAVAILABLE);
  drain.join();
  EXPECT_EQ(Get(*server, "/readyz").status, 503);
  // By this the alerts tell a drain from a failed device: calls end with UNAVAILABLE, and no item does.
  const std::string metrics = Get(*server, "/metrics").body;
  EXPECT_NE(metrics.find("santa_grpc_requests_total{code=\"UNAVAILABLE\",method=\"Attend\"} 3"), std::string::npos)
      << metrics;
  EXPECT_EQ(metrics.find("santa_attend_items_total{code=\"UNAVAILABLE\""), std::string::npos) << metrics;
}

TEST(OperationsTest, AFullQueueRefusesItemsWithAHint) {
  Gate gate{absl::OkStatus()};
  ServerOptions options;
  options.engine.max_queued_items = 1;
  const std::unique_ptr<TestServer> server = GatedServer(&gate, options);
  const v1::SequenceHandle handle = Create(server->stub.get()).handle();
  Call call;
  const auto stream = server->stub->Attend(&call.context);
  ASSERT_TRUE(stream->Write(Request(0, {Item(handle, 1, 0, 0, true)}, 1)));
  gate.AwaitReached();
  ASSERT_TRUE(stream->Write(Request(1, {Item(handle, 1, 1, 0, true)}, 2)));  // waits
  ASSERT_TRUE(stream->Write(Request(0, {Item(handle, 1, 0, 1, true)}, 3)));  // one too many
  v1::AttendResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.request_id(), 3U);
  EXPECT_EQ(response.results(0).status().code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(response.results(0).status().message().find("retry"), std::string::npos);
  EXPECT_FALSE(response.results(0).has_o());
  gate.Open();
  ASSERT_TRUE(stream->Read(&response));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.results(0).status().code(), 0) << response.results(0).status().message();
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(OperationsTest, AFailedDeviceShowsInHealth) {
  Gate gate{absl::InternalError("the device is on fire")};
  gate.Open();
  const std::unique_ptr<TestServer> server = GatedServer(&gate, {});
  const v1::SequenceHandle handle = Create(server->stub.get()).handle();
  EXPECT_EQ(AttendOne(server->stub.get(), 0, Item(handle, 1, 0, 0, true)).status().code(), StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Eventually([&] { return Health(*server, "") == kNotServing; }));
  const HttpResponse ready = Get(*server, "/readyz");
  EXPECT_EQ(ready.status, 503);
  EXPECT_NE(ready.body.find("on fire"), std::string::npos) << ready.body;
  EXPECT_EQ(AttendOne(server->stub.get(), 0, Item(handle, 1, 0, 1, true)).status().code(), StatusCode::UNAVAILABLE);
  const std::string metrics = Get(*server, "/metrics").body;
  EXPECT_NE(metrics.find("santa_attend_items_total{code=\"UNAVAILABLE\",method=\"EXACT\"} 2"), std::string::npos)
      << metrics;
}

TEST(OperationsTest, APortIsTakenOnce) {
  const TestServer first;
  auto backend = std::make_unique<FakeBackend>(SmallLayout(), 4);
  ServerOptions options;
  options.port = first.server->port();
  options.http_port = -1;
  options.self_test = false;
  const auto second = AttentionServer::Start(options, std::move(backend));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace santa
