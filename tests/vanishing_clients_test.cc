// Clients that connect, create, append, attend and vanish without a word leave nothing behind.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/http_get.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

constexpr int kClients = 1000;
constexpr int kThreads = 8;
constexpr double kLeaseSeconds = 1;

// Each way to vanish leaves the stream at another point. Returns whether the upload was taken.
bool ConnectAndVanish(const TestServer& server, int client) {
  const std::shared_ptr<grpc::Channel> channel = server.NewChannel();
  const auto stub = v1::AttentionService::NewStub(channel);
  const v1::SequenceHandle handle = Create(stub.get(), kLeaseSeconds).handle();
  const uint64_t sequence = client;
  const grpc::Status filled = Fill(stub.get(), handle, sequence, 0, 1 + client % 40);
  // On a machine that is busy elsewhere the lease may be over already.
  EXPECT_TRUE(filled.ok() || filled.error_code() == grpc::StatusCode::NOT_FOUND) << filled.error_message();
  const int64_t next = 1 + client % 40;

  if (client % 4 == 3) {  // in the middle of an upload
    Call call;
    v1::AppendKvResponse response;
    const auto upload = stub->AppendKv(&call.context, &response);
    upload->Write(Chunk(handle, sequence, 0, next, 20));
    upload->Write(Chunk(handle, sequence, 1, next, 20));
    call.context.TryCancel();
    upload->Finish();
    return filled.ok();
  }
  const auto call = std::make_unique<Call>();
  const auto stream = stub->Attend(&call->context);
  for (int64_t i = 0; i < 6; ++i) stream->Write(Request(0, {Item(handle, sequence, 0, next + i, true)}));
  v1::AttendResponse response;
  if (client % 4 == 0) {  // with answers unread, by a cancel
    call->context.TryCancel();
    stream->Finish();
  } else if (client % 4 == 1) {  // after one answer; the call just goes away, and its connection with it
    stream->Read(&response);
  }
  // The rest: without reading anything.
  return filled.ok();
}

TEST(VanishingClientsTest, TheirPagesComeBack) {
  ServerOptions options;
  options.store.max_sequences = 2 * kClients;
  options.expiry_interval = absl::Milliseconds(20);
  const TestServer server(options, 8 * kClients);
  const auto info = [&server] {
    v1::ServerInfo response;
    Call call;
    EXPECT_TRUE(server.stub->GetServerInfo(&call.context, {}, &response).ok());
    return response;
  };
  const int64_t baseline = info().free_pages();
  ASSERT_EQ(baseline, 8 * kClients);

  // One client stays, so that what it stored must survive the others.
  const v1::SequenceHandle stays = Create(server.stub.get(), 600).handle();
  ASSERT_TRUE(Fill(server.stub.get(), stays, 1 << 20, 0, 50).ok());
  const int64_t kept = baseline - info().free_pages();
  EXPECT_EQ(kept, 4);

  std::atomic<int> next{0};
  std::atomic<int> filled{0};
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int client = next++; client < kClients; client = next++) {
        filled += ConnectAndVanish(server, client) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  EXPECT_GT(filled, 0);
  EXPECT_TRUE(Eventually([&] { return info().num_sequences() == 1 && info().free_pages() == baseline - kept; }))
      << info().DebugString();
  ExpectExact(AttendOne(server.stub.get(), 0, Item(stays, 1 << 20, 0, 49, false)), 1 << 20, 0, 49);
  // None was released by hand.
  const std::string metrics = HttpRequest(server.server->http_port(), "GET", "/metrics").body;
  EXPECT_NE(metrics.find("santa_sequences_expired_total " + std::to_string(kClients) + "\n"), std::string::npos);
  EXPECT_NE(metrics.find("santa_sequences 1\n"), std::string::npos);
  EXPECT_NE(metrics.find("santa_requests_waiting 0\n"), std::string::npos);
}

// A deadline in the past of a queue: the call ends, and the server goes on.
TEST(VanishingClientsTest, DeadlinesEndStreams) {
  const TestServer server;
  const v1::SequenceHandle handle = Create(server.stub.get()).handle();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  const auto stream = server.stub->Attend(&context);
  v1::AttendResponse response;
  int64_t position = 0;
  while (stream->Write(Request(0, {Item(handle, 1, 0, position, true)})) && stream->Read(&response)) {
    // The last answer may say that the deadline passed while its step was queued.
    if (response.results(0).status().code() == grpc::StatusCode::DEADLINE_EXCEEDED) break;
    ASSERT_EQ(response.results(0).status().code(), 0) << response.results(0).status().message();
    ++position;
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  if (position > 0) {
    ExpectExact(AttendOne(server.stub.get(), 0, Item(handle, 1, 0, position - 1, true)), 1, 0, position - 1);
  }
}

}  // namespace
}  // namespace santa
