// The client library and the server with a network between them that loses connections, at every point of a
// conversation: no token is lost or doubled, no answer is missing, and all are bit for bit those of an unbroken run.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "client/attention_client.h"
#include "tests/client_library_proxy.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

constexpr int kLayers = 2;
constexpr int64_t kSteps = 60;
constexpr size_t kInFlight = 24;

// Retries soon and often: the tests' connections break for good only when a test is broken.
std::unique_ptr<AttentionClient> MustConnect(const std::string& target) {
  ClientOptions options;
  options.retry = {.max_attempts = 200,
                   .initial_backoff = absl::Milliseconds(2),
                   .max_backoff = absl::Milliseconds(50),
                   .multiplier = 1.5};
  options.connect_timeout = absl::Seconds(60);
  absl::StatusOr<std::unique_ptr<AttentionClient>> client = AttentionClient::Connect(target, options);
  if (!client.ok()) throw std::runtime_error(client.status().ToString());
  return *std::move(client);
}

std::string DirectTarget(const TestServer& server) { return "127.0.0.1:" + std::to_string(server.server->port()); }

v1::AttentionOptions MethodOptions(v1::Method method) {
  v1::AttentionOptions options;
  options.set_method(method);
  options.set_seed(11);
  if (method != v1::METHOD_EXACT) options.set_sample_count(8);
  return options;
}

std::string Bits(const v1::AttendResult& result) {
  std::string bits = result.o().data();
  for (const float lse : result.lse()) bits.append(reinterpret_cast<const char*>(&lse), sizeof(lse));
  return bits;
}

// Two sequences that decode together, their tokens those of the fixture's sequences 1 and 2.
struct Pair {
  v1::SequenceHandle first;
  v1::SequenceHandle second;
};

Pair CreatePair(AttentionClient& client) {
  const auto create = [&client](uint64_t sampling_key) {
    v1::CreateSequenceRequest request;
    request.set_sampling_key(sampling_key);
    const absl::StatusOr<v1::Sequence> sequence = client.CreateSequence(request);
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    return sequence.ok() ? sequence->handle() : v1::SequenceHandle();
  };
  return {create(101), create(202)};
}

v1::AttendRequest Step(const Pair& pair, int layer, int64_t position, v1::Method method) {
  v1::AttendRequest request = Request(layer, {Item(pair.first, 1, layer, position, /*with_token=*/true),
                                              Item(pair.second, 2, layer, position, /*with_token=*/true)});
  for (v1::AttendItem& item : *request.mutable_items()) *item.mutable_options() = MethodOptions(method);
  return request;
}

// Answers of all steps in order of position, then layer, as they come.
class AnswerLog {
 public:
  // `on_answer` runs in the callback, with the number of answers so far.
  explicit AnswerLog(std::function<void(int64_t)> on_answer) : on_answer_(std::move(on_answer)) {}

  AttendStream::Callback Expect() {
    const std::lock_guard lock(mutex_);
    const size_t index = bits_.size();
    bits_.emplace_back();
    times_.push_back(0);
    return [this, index](AttendStream::Result result) {
      std::string bits = result.ok() ? "" : result.status().ToString();
      for (int i = 0; result.ok() && i < result->results_size(); ++i) {
        const absl::Status status = ToStatus(result->results(i).status());
        bits += status.ok() ? Bits(result->results(i)) : status.ToString();
      }
      int64_t answered = 0;
      {
        const std::lock_guard lock(mutex_);
        bits_[index] = std::move(bits);
        ++times_[index];
        answered = ++answered_;
      }
      on_answer_(answered);
      arrived_.notify_all();
    };
  }

  // False when they are not all there after a time that no test should take.
  bool Wait() {
    std::unique_lock lock(mutex_);
    return arrived_.wait_for(lock, std::chrono::seconds(120),
                             [this] { return answered_ >= static_cast<int64_t>(bits_.size()); });
  }

  // Only after the stream is gone.
  const std::vector<std::string>& bits() const { return bits_; }
  const std::vector<int>& times() const { return times_; }

 private:
  const std::function<void(int64_t)> on_answer_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<std::string> bits_;
  std::vector<int> times_;  // how often each was answered
  int64_t answered_ = 0;
};

// Decodes all steps, many at once, and gives their bits.
std::vector<std::string> Decode(
    AttentionClient& client, const Pair& pair, v1::Method method, const AttendStreamOptions& options,
    AttendStreamStatistics& statistics, std::function<void(int64_t)> on_answer = [](int64_t) {}) {
  AnswerLog answers(std::move(on_answer));
  {
    const std::unique_ptr<AttendStream> stream = client.OpenAttendStream(options);
    for (int64_t position = 0; position < kSteps; ++position) {
      for (int layer = 0; layer < kLayers; ++layer) {
        stream->Submit(Step(pair, layer, position, method), absl::InfiniteFuture(), answers.Expect());
      }
    }
    EXPECT_TRUE(answers.Wait());
    statistics = stream->statistics();
  }
  EXPECT_EQ(answers.times(), std::vector<int>(kSteps * kLayers, 1));
  return answers.bits();
}

std::vector<std::string> DecodeUnbroken(const TestServer& server, v1::Method method) {
  const std::unique_ptr<AttentionClient> client = MustConnect(DirectTarget(server));
  AttendStreamStatistics statistics;
  std::vector<std::string> bits = Decode(*client, CreatePair(*client), method, {.max_in_flight = 1}, statistics);
  EXPECT_EQ(statistics.streams_opened, 1);
  return bits;
}

// What is stored is what was sent: lengths, and exact attention over the whole of it.
void ExpectStored(const TestServer& server, const v1::SequenceHandle& handle, uint64_t sequence, int64_t tokens) {
  const std::unique_ptr<AttentionClient> client = MustConnect(DirectTarget(server));
  const absl::StatusOr<v1::Sequence> stored = client->GetSequence(handle);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->num_tokens(), tokens);
  EXPECT_EQ(std::vector<int64_t>(stored->lengths().begin(), stored->lengths().end()),
            std::vector<int64_t>(kLayers, tokens));
  const std::unique_ptr<AttendStream> stream = client->OpenAttendStream();
  for (int layer = 0; layer < kLayers; ++layer) {
    for (const int64_t position : {int64_t{0}, tokens / 3, tokens - 1}) {
      const AttendStream::Result answer =
          stream->Attend(Request(layer, {Item(handle, sequence, layer, position, /*with_token=*/false)}));
      ASSERT_TRUE(answer.ok()) << answer.status();
      ExpectExact(answer->results(0), sequence, layer, position);
    }
  }
}

class ClientLibraryFaults : public ::testing::TestWithParam<v1::Method> {};

// Through shared memory, which no connection cuts, a cut ends the call all the same.
constexpr AttendStreamOptions kOverGrpc = {.max_in_flight = kInFlight, .share_memory = false};
constexpr AttendStreamOptions kThroughMemory = {.max_in_flight = kInFlight, .share_memory = true};

// A request is some 620 bytes and an answer some 350, so that the work cannot be over before the last cut.
TEST_P(ClientLibraryFaults, ADecodeSurvivesConnectionsCutAtFixedBytes) {
  const TestServer server;
  const std::vector<CutAfter> plan = {{.to_server = 6001}, {.to_client = 2203}, {.to_server = 9001},
                                      {.to_client = 701},  {.to_server = 333},  {.to_client = 3001},
                                      {.to_client = 5003}, {.to_client = 9},    {.to_server = 12007}};
  CuttingProxy proxy(server.server->port(), plan);
  const std::unique_ptr<AttentionClient> client = MustConnect(proxy.target());
  const Pair pair = CreatePair(*client);
  AttendStreamStatistics statistics;
  EXPECT_EQ(Decode(*client, pair, GetParam(), kOverGrpc, statistics), DecodeUnbroken(server, GetParam()));
  ExpectStored(server, pair.first, 1, kSteps);
  ExpectStored(server, pair.second, 2, kSteps);

  EXPECT_EQ(proxy.cuts(), static_cast<int>(plan.size()));
  EXPECT_EQ(statistics.submitted, kSteps * kLayers);
  EXPECT_EQ(statistics.answered, kSteps * kLayers);
  EXPECT_EQ(statistics.failed, 0);
  EXPECT_GT(statistics.streams_opened, 1);
  EXPECT_GT(statistics.requests_resent, 0);
}

TEST_P(ClientLibraryFaults, ADecodeSurvivesConnectionsCutAsAnswersArrive) {
  const TestServer server;
  const std::vector<std::string> unbroken = DecodeUnbroken(server, GetParam());
  for (const AttendStreamOptions& options : {kOverGrpc, kThroughMemory}) {
    CuttingProxy proxy(server.server->port());
    const std::unique_ptr<AttentionClient> client = MustConnect(proxy.target());
    const Pair pair = CreatePair(*client);
    AttendStreamStatistics statistics;
    const auto cut_sometimes = [&proxy](int64_t answered) {
      if (answered % 10 == 0) proxy.CutAll();
    };
    EXPECT_EQ(Decode(*client, pair, GetParam(), options, statistics, cut_sometimes), unbroken);
    ExpectStored(server, pair.first, 1, kSteps);
    ExpectStored(server, pair.second, 2, kSteps);
    // Answers already received hide a cut from the next, but there are no more of them than requests in flight; through
    // memory, none: they may all be there before the client's side hears of it.
    if (!options.share_memory) {
      EXPECT_GE(proxy.cuts(), kSteps * kLayers / (10 + static_cast<int64_t>(kInFlight) + 10));
    }
    EXPECT_EQ(statistics.answered, kSteps * kLayers);
    EXPECT_EQ(statistics.failed, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, ClientLibraryFaults,
                         ::testing::Values(v1::METHOD_EXACT, v1::METHOD_SYSTEMATIC, v1::METHOD_S2ANTA_PROP),
                         [](const auto& info) {
                           std::string name;
                           for (const char c : std::string(MethodName(info.param))) name += c == '_' ? 'x' : c;
                           return name;
                         });

// A connection that dies while nothing is in flight is found out by the call that comes next.
TEST(ClientLibraryFaultsTest, IdleConnectionsMayDie) {
  constexpr int kCuts = 10;
  const TestServer server;
  for (const AttendStreamOptions& options : {kOverGrpc, kThroughMemory}) {
    CuttingProxy proxy(server.server->port());
    const std::unique_ptr<AttentionClient> client = MustConnect(proxy.target());
    const absl::StatusOr<v1::Sequence> sequence = client->CreateSequence();
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    const std::unique_ptr<AttendStream> stream = client->OpenAttendStream(options);
    for (int64_t position = 0; position < kCuts; ++position) {
      proxy.CutAll();
      // Every answer over gRPC came by a connection, so that each cut had one to cut. Through memory an answer may be
      // there before either end has heard of the cut.
      if (!options.share_memory) {
        EXPECT_EQ(proxy.cuts(), position + 1);
      }
      if (position % 2 == 1) {
        EXPECT_TRUE(client->GetSequence(sequence->handle()).ok());
      }
      const AttendStream::Result answer =
          stream->Attend(Request(0, {Item(sequence->handle(), 1, 0, position, /*with_token=*/true)}));
      ASSERT_TRUE(answer.ok()) << answer.status();
      ExpectExact(answer->results(0), 1, 0, position);
    }
    EXPECT_GT(proxy.cuts(), 0);
    EXPECT_TRUE(client->ReleaseSequence(sequence->handle()).ok());
    EXPECT_TRUE(absl::IsNotFound(client->GetSequence(sequence->handle()).status()));
  }
}

// A whole life of a sequence on connections of which the first is cut at ever another byte, in the middle of
// handshakes, headers, messages and answers. The conversation is longer than the last of those bytes.
void LiveThrough(const TestServer& server, const CutAfter& first_cut) {
  constexpr int64_t kPrefix = 20;
  CuttingProxy proxy(server.server->port(), {first_cut});
  const std::unique_ptr<AttentionClient> client = MustConnect(proxy.target());
  const absl::StatusOr<v1::Sequence> sequence = client->CreateSequence();
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  const v1::SequenceHandle& handle = sequence->handle();

  const std::vector<int64_t> shape = {kPrefix, SmallLayout().num_kv_heads, SmallLayout().head_dim};
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    const Tensor k = FromFloats(Rows(SmallLayout(), 7, layer, false, 0, kPrefix), shape, ElementType::kFloat32);
    const Tensor v = FromFloats(Rows(SmallLayout(), 7, layer, true, 0, kPrefix), shape, ElementType::kFloat32);
    const absl::StatusOr<v1::Sequence> stored =
        client->AppendKv(handle, {.layer = layer, .position = 0, .k = k.view(), .v = v.view()});
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_EQ(stored->lengths(layer), kPrefix);
  }
  const std::unique_ptr<AttendStream> stream = client->OpenAttendStream(kOverGrpc);
  for (int64_t position = kPrefix; position < kPrefix + 2; ++position) {
    for (int layer = 0; layer < kLayers; ++layer) {
      const AttendStream::Result answer =
          stream->Attend(Request(layer, {Item(handle, 7, layer, position, /*with_token=*/true)}));
      ASSERT_TRUE(answer.ok()) << answer.status();
      ExpectExact(answer->results(0), 7, layer, position);
    }
  }
  const absl::StatusOr<v1::Sequence> end = client->GetSequence(handle);
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_EQ(end->num_tokens(), kPrefix + 2);
  EXPECT_TRUE(client->ReleaseSequence(handle).ok());
  EXPECT_EQ(proxy.cuts(), 1);
}

TEST(ClientLibraryFaultsTest, AConversationMayBreakAtAnyByteToTheServer) {
  const TestServer server;
  for (int64_t bytes = 1; bytes < 7000; bytes += 229) {
    SCOPED_TRACE(bytes);
    LiveThrough(server, {.to_server = bytes});
    if (HasFatalFailure()) return;
  }
}

TEST(ClientLibraryFaultsTest, AConversationMayBreakAtAnyByteToTheClient) {
  const TestServer server;
  for (int64_t bytes = 1; bytes < 1500; bytes += 47) {
    SCOPED_TRACE(bytes);
    LiveThrough(server, {.to_client = bytes});
    if (HasFatalFailure()) return;
  }
}

// No connection carries more than a quarter of the upload, so it arrives only if each goes on where the last ended.
TEST(ClientLibraryFaultsTest, AnUploadGoesOnWhereItWasCut) {
  constexpr int64_t kTokens = 1000;
  ServerOptions options;
  options.rpc.max_message_bytes = 4096;  // some 28 tokens
  const TestServer server(options);
  CuttingProxy proxy(server.server->port(), {}, /*rest=*/{.to_server = 60'000});
  const std::unique_ptr<AttentionClient> client = MustConnect(proxy.target());
  const absl::StatusOr<v1::Sequence> sequence = client->CreateSequence();
  ASSERT_TRUE(sequence.ok()) << sequence.status();

  const std::vector<int64_t> shape = {kTokens, SmallLayout().num_kv_heads, SmallLayout().head_dim};
  std::vector<Tensor> tensors;
  for (int layer = 0; layer < kLayers; ++layer) {
    for (const bool value : {false, true}) {
      tensors.push_back(FromFloats(Rows(SmallLayout(), 4, layer, value, 0, kTokens), shape, ElementType::kFloat32));
    }
  }
  // By turns, so that the lengths to go on from differ.
  std::vector<KvChunk> chunks;
  for (int64_t position = 0; position < kTokens; position += 200) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      chunks.push_back({.layer = layer,
                        .position = position,
                        .k = Rows(tensors[2 * layer].view(), position, position + 200),
                        .v = Rows(tensors[2 * layer + 1].view(), position, position + 200)});
    }
  }
  const absl::StatusOr<v1::Sequence> stored = client->AppendKv(sequence->handle(), chunks);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->num_tokens(), kTokens);
  EXPECT_GE(proxy.cuts(), 4);
  ExpectStored(server, sequence->handle(), 4, kTokens);
  EXPECT_EQ(stored->num_pages(), (kTokens + 15) / 16);
}

}  // namespace
}  // namespace santa
