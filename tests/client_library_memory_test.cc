// The client library over memory shared with the server: the same answers as over gRPC, bit for bit, and everything
// else as there; and what happens where the memory cannot be had.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/attention_client.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<AttentionClient> Connect(const TestServer& server, const std::string& token = "") {
  ClientOptions options;
  options.bearer_token = token;
  options.retry.initial_backoff = absl::Milliseconds(5);
  return *AttentionClient::Connect("127.0.0.1:" + std::to_string(server.server->port()), options);
}

v1::SequenceHandle Create(AttentionClient& client, uint64_t sampling_key) {
  v1::CreateSequenceRequest request;
  request.set_sampling_key(sampling_key);
  return client.CreateSequence(request)->handle();
}

// A step of `items` sequences, each with the token at `position`.
v1::AttendRequest Step(const std::vector<v1::SequenceHandle>& handles, int64_t position, v1::Method method,
                       const KvLayout& layout = SmallLayout()) {
  v1::AttendRequest request;
  for (size_t i = 0; i < handles.size(); ++i) {
    v1::AttendItem& item = *request.add_items();
    *item.mutable_handle() = handles[i];
    item.set_position(position);
    *item.mutable_q() = MakeTensor({1, layout.num_query_heads, layout.head_dim}, Query(layout, i, 0, position));
    for (const bool value : {false, true}) {
      *(value ? item.mutable_v() : item.mutable_k()) =
          MakeTensor({1, layout.num_kv_heads, layout.head_dim}, Rows(layout, i, 0, value, position, 1));
    }
    item.mutable_options()->set_method(method);
    if (method != v1::METHOD_EXACT) item.mutable_options()->set_sample_count(5);
    item.mutable_options()->set_want_statistics(true);
  }
  return request;
}

// Without what is of the moment or of the stream.
std::string Bytes(v1::AttendResponse response) {
  response.clear_request_id();
  for (v1::AttendResult& result : *response.mutable_results()) {
    EXPECT_TRUE(ToStatus(result.status()).ok()) << ToStatus(result.status());
    result.mutable_statistics()->clear_queue_seconds();
    result.mutable_statistics()->clear_device_seconds();
    result.mutable_statistics()->clear_batch_items();
  }
  return response.SerializeAsString();
}

// Decodes `steps` tokens of three sequences, up to `window` steps in flight.
std::vector<std::string> Decode(AttendStream& stream, const std::vector<v1::SequenceHandle>& handles, v1::Method method,
                                int steps, size_t window) {
  std::vector<std::future<AttendStream::Result>> answers;
  std::vector<std::string> bytes;
  const auto collect = [&](size_t most) {
    for (; answers.size() - bytes.size() > most;) {
      const AttendStream::Result answer = answers[bytes.size()].get();
      EXPECT_TRUE(answer.ok()) << answer.status();
      bytes.push_back(answer.ok() ? Bytes(*answer) : "");
    }
  };
  for (int step = 0; step < steps; ++step) {
    answers.push_back(stream.Submit(Step(handles, step, method)));
    collect(window);
  }
  collect(0);
  return bytes;
}

TEST(SharedMemoryTest, AnswersAreThoseOfGrpcBitForBit) {
  const TestServer server({}, 1024);
  const auto client = Connect(server);
  for (const v1::Method method : {v1::METHOD_EXACT, v1::METHOD_SYSTEMATIC, v1::METHOD_S2ANTA_PROP}) {
    std::vector<std::vector<std::string>> answers;
    for (const bool share_memory : {true, false}) {
      const auto stream = client->OpenAttendStream({.share_memory = share_memory});
      std::vector<v1::SequenceHandle> handles;
      for (uint64_t key = 1; key <= 3; ++key) handles.push_back(Create(*client, key));
      answers.push_back(Decode(*stream, handles, method, 100, 20));
      const AttendStreamStatistics statistics = stream->statistics();
      EXPECT_EQ(statistics.shares_memory, share_memory);
      EXPECT_EQ(statistics.streams_opened, 1);
      EXPECT_EQ(statistics.answered, 100);
      EXPECT_EQ(statistics.requests_resent, 0);
      for (const v1::SequenceHandle& handle : handles) ASSERT_TRUE(client->ReleaseSequence(handle).ok());
    }
    EXPECT_EQ(answers[0], answers[1]) << v1::Method_Name(method);
  }
}

// The request without its tensors' data.
v1::AttendRequest FormOf(v1::AttendRequest request) {
  for (v1::AttendItem& item : *request.mutable_items()) {
    for (v1::Tensor* tensor : {item.mutable_q(), item.mutable_k(), item.mutable_v()}) tensor->clear_data();
  }
  return request;
}

PlacedStep Place(AttendStream& stream, const v1::AttendRequest& request) {
  absl::StatusOr<PlacedStep> step = stream.Place(FormOf(request));
  EXPECT_TRUE(step.ok()) << step.status();
  EXPECT_EQ(step->rooms().size(), request.items_size());
  for (int i = 0; i < request.items_size(); ++i) {
    const TensorRooms& rooms = step->rooms()[i];
    const v1::AttendItem& item = request.items(i);
    for (const auto& [tensor, room] :
         {std::pair(&item.q(), rooms.q), std::pair(&item.k(), rooms.k), std::pair(&item.v(), rooms.v)}) {
      EXPECT_EQ(room.size(), tensor->data().size());
      std::copy_n(tensor->data().data(), std::min(room.size(), tensor->data().size()), room.data());
    }
  }
  return *std::move(step);
}

// With the outputs copied from where they lie.
std::future<AttendStream::Result> Submit(AttendStream& stream, PlacedStep step) {
  auto promise = std::make_shared<std::promise<AttendStream::Result>>();
  stream.Submit(std::move(step), absl::InfiniteFuture(), [promise](const absl::StatusOr<AttendAnswer>& answer) {
    if (!answer.ok()) return promise->set_value(answer.status());
    v1::AttendResponse response;
    for (int i = 0; i < answer->num_items(); ++i) {
      v1::AttendResult& result = *response.add_results();
      result = answer->result(i);
      const OutputView outputs = answer->outputs(i);
      if (!outputs.o.empty()) result.mutable_o()->set_data(outputs.o.data(), outputs.o.size());
      result.mutable_lse()->Assign(outputs.lse.begin(), outputs.lse.end());
    }
    promise->set_value(std::move(response));
  });
  return promise->get_future();
}

TEST(SharedMemoryTest, PlacedStepsAreAnsweredAsOthersAre) {
  const TestServer server({}, 1024);
  const auto client = Connect(server);
  const auto handles = [&] { return std::vector{Create(*client, 1), Create(*client, 2), Create(*client, 3)}; };
  for (const bool share_memory : {true, false}) {
    const auto stream = client->OpenAttendStream({.share_memory = share_memory});
    const std::vector<std::string> expected = Decode(*stream, handles(), v1::METHOD_SYSTEMATIC, 100, 20);
    const std::vector<v1::SequenceHandle> placed = handles();
    std::vector<std::future<AttendStream::Result>> answers;
    for (int step = 0; step < 100; ++step) {
      const v1::AttendRequest request = Step(placed, step, v1::METHOD_SYSTEMATIC);
      // Others come between them, in order.
      answers.push_back(step % 7 == 3 ? stream->Submit(request) : Submit(*stream, Place(*stream, request)));
    }
    for (int step = 0; step < 100; ++step) {
      const AttendStream::Result answer = answers[step].get();
      ASSERT_TRUE(answer.ok()) << answer.status();
      EXPECT_EQ(Bytes(*answer), expected[step]) << "step " << step;
    }
    EXPECT_EQ(stream->statistics().shares_memory, share_memory);
    EXPECT_EQ(stream->statistics().requests_resent, 0);
  }
}

// More than a ring has slots: those that are placed and not submitted leave room for the others.
TEST(SharedMemoryTest, PlacedStepsMayWaitOrBeDropped) {
  const TestServer server({}, 256);
  const auto client = Connect(server);
  const auto stream = client->OpenAttendStream();
  const std::vector<v1::SequenceHandle> handles = {Create(*client, 1)};
  ASSERT_TRUE(stream->Attend(Step(handles, 0, v1::METHOD_EXACT)).ok());
  for (int turn = 0; turn < 3; ++turn) {
    const int first = 1 + turn * 51;
    std::vector<PlacedStep> steps;
    for (int step = 0; step < 50; ++step) {
      steps.push_back(Place(*stream, Step(handles, first + 1 + step, v1::METHOD_EXACT)));
      Place(*stream, Step(handles, 0, v1::METHOD_EXACT));  // and let go
    }
    EXPECT_TRUE(stream->Attend(Step(handles, first, v1::METHOD_EXACT)).ok());
    std::vector<std::future<AttendStream::Result>> answers;
    answers.reserve(steps.size());
    for (PlacedStep& step : steps) answers.push_back(Submit(*stream, std::move(step)));
    for (auto& answer : answers) {
      const AttendStream::Result result = answer.get();
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(ToStatus(result->results(0).status()).ok()) << ToStatus(result->results(0).status());
    }
  }
  EXPECT_EQ(stream->statistics().streams_opened, 1);
  PlacedStep survivor = Place(*stream, Step(handles, 0, v1::METHOD_EXACT));
  EXPECT_FALSE(survivor.rooms()[0].q.empty());
}

TEST(SharedMemoryTest, WhatCannotBePlacedIsTold) {
  const TestServer server;
  const auto client = Connect(server);
  const auto stream = client->OpenAttendStream();
  const v1::AttendRequest form = FormOf(Step({Create(*client, 1)}, 0, v1::METHOD_EXACT));
  const auto refusal = [&](const std::function<void(v1::AttendItem*)>& change) {
    v1::AttendRequest changed = form;
    change(changed.mutable_items(0));
    const absl::Status status = stream->Place(changed).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal([](v1::AttendItem* item) { item->mutable_k()->set_data("x"); }),
              HasSubstr("items[0].k: it has data"));
  EXPECT_THAT(refusal([](v1::AttendItem* item) { item->mutable_q()->clear_dtype(); }),
              HasSubstr("items[0].q: dtype 0"));
  EXPECT_THAT(refusal([](v1::AttendItem* item) { item->mutable_v()->set_shape(0, -1); }),
              HasSubstr("items[0].v: shape"));
  for (const int64_t tokens : {int64_t{1} << 30, int64_t{1} << 57}) {
    EXPECT_THAT(refusal([tokens](v1::AttendItem* item) {
                  item->mutable_k()->set_shape(0, tokens);
                  item->mutable_v()->set_shape(0, tokens);
                }),
                HasSubstr("max_message_bytes"));
  }
}

TEST(SharedMemoryTest, MoreStepsThanSlotsWaitTheirTurn) {
  ServerOptions options;
  options.rpc.max_inflight_per_stream = 2;
  const TestServer server(options, 256);
  const auto client = Connect(server);
  const auto stream = client->OpenAttendStream();
  const std::vector<v1::SequenceHandle> handles = {Create(*client, 1)};
  EXPECT_EQ(Decode(*stream, handles, v1::METHOD_EXACT, 200, 200).size(), 200);
  EXPECT_TRUE(stream->statistics().shares_memory);
}

// What a program does that is not in a hurry: a step now and then, between which both ends fall asleep.
TEST(SharedMemoryTest, StepsAfterAPauseAreTaken) {
  const TestServer server;
  const auto client = Connect(server);
  const auto stream = client->OpenAttendStream();
  const std::vector<v1::SequenceHandle> handles = {Create(*client, 1)};
  for (int step = 0; step < 20; ++step) {
    absl::SleepFor(absl::Milliseconds(step));
    EXPECT_TRUE(stream->Attend(Step(handles, step, v1::METHOD_EXACT)).ok());
  }
  EXPECT_TRUE(stream->statistics().shares_memory);
}

KvLayout WideLayout() {
  KvLayout layout = SmallLayout();
  layout.num_query_heads = layout.num_kv_heads = 32;
  layout.head_dim = 64;
  return layout;
}

TEST(SharedMemoryTest, SlotsGrowWithTheRequests) {
  const KvLayout layout = WideLayout();
  const TestServer server({}, 64, layout);
  const auto client = Connect(server);
  const auto stream = client->OpenAttendStream();
  std::vector<v1::SequenceHandle> handles;
  for (int step = 0; step < 2; ++step) {
    while (handles.size() < (step == 0 ? 1 : 20)) handles.push_back(Create(*client, 1 + handles.size()));
    std::vector<v1::SequenceHandle> fresh(handles.begin() + step, handles.end());
    const v1::AttendRequest request = Step(fresh, 0, v1::METHOD_EXACT, layout);
    ASSERT_EQ(request.ByteSizeLong() > 64 << 10, step == 1);
    const AttendStream::Result answer = stream->Attend(request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    for (const v1::AttendResult& result : answer->results()) EXPECT_TRUE(ToStatus(result.status()).ok());
  }
  EXPECT_TRUE(stream->statistics().shares_memory);
  EXPECT_EQ(stream->statistics().streams_opened, 2);
}

// Their memory is a stream's that has ended: they go on as others do.
TEST(SharedMemoryTest, PlacedStepsOutliveTheirRing) {
  const KvLayout layout = WideLayout();
  const TestServer server({}, 64, layout);
  const auto client = Connect(server);
  auto stream = client->OpenAttendStream();
  const auto step = [&](size_t items) {
    std::vector<v1::SequenceHandle> handles;
    for (uint64_t key = 1; key <= items; ++key) handles.push_back(Create(*client, key));
    return Step(handles, 0, v1::METHOD_EXACT, layout);
  };
  const std::string expected = Bytes(*stream->Attend(step(1)));
  PlacedStep unsent = Place(*stream, step(1));
  PlacedStep sent = Place(*stream, step(1));
  PlacedStep left = Place(*stream, step(1));
  std::future<AttendStream::Result> outgrown = stream->Submit(step(20));
  std::future<AttendStream::Result> answer = Submit(*stream, std::move(sent));
  ASSERT_TRUE(outgrown.get().ok());
  EXPECT_EQ(Bytes(*answer.get()), expected);
  EXPECT_EQ(Bytes(*Submit(*stream, std::move(unsent)).get()), expected);
  EXPECT_EQ(stream->statistics().streams_opened, 2);
  stream.reset();
  std::fill(left.rooms()[0].q.begin(), left.rooms()[0].q.end(), 'q');
}

TEST(SharedMemoryTest, WhereThereIsNoneStepsGoOverGrpc) {
  ServerOptions options;
  options.rpc.max_shared_bytes = 0;
  const TestServer server(options);
  const auto client = Connect(server);
  const auto stream = client->OpenAttendStream();
  EXPECT_EQ(Decode(*stream, {Create(*client, 1)}, v1::METHOD_EXACT, 10, 5).size(), 10);
  EXPECT_FALSE(stream->statistics().shares_memory);
  EXPECT_EQ(stream->statistics().streams_opened, 1);
  EXPECT_EQ(stream->statistics().requests_resent, 0);
}

TEST(SharedMemoryTest, WhatAStreamHadAnotherMayHave) {
  ServerOptions options;
  options.rpc.max_shared_bytes = 12 << 20;  // of one stream, not of two
  const TestServer server(options);
  const auto client = Connect(server);
  const v1::SequenceHandle handle = Create(*client, 1);
  int64_t position = 0;
  const auto attend = [&](AttendStream& stream) {
    EXPECT_TRUE(stream.Attend(Step({handle}, position++, v1::METHOD_EXACT)).ok());
    return stream.statistics().shares_memory;
  };
  auto first = client->OpenAttendStream();
  EXPECT_TRUE(attend(*first));
  EXPECT_FALSE(attend(*client->OpenAttendStream()));
  first.reset();
  EXPECT_TRUE(Eventually([&] { return attend(*client->OpenAttendStream()); }));
}

TEST(SharedMemoryTest, TenantsSeeTheirOwn) {
  ServerOptions options;
  options.authenticator = *Authenticator::Parse("a-long-secret-of-red red\na-long-secret-of-blue blue\n");
  const TestServer server(options);
  const auto red = Connect(server, "a-long-secret-of-red");
  const auto blue = Connect(server, "a-long-secret-of-blue");
  const v1::SequenceHandle handle = Create(*red, 1);
  const auto of_red = red->OpenAttendStream();
  const auto of_blue = blue->OpenAttendStream();
  EXPECT_EQ(ToStatus(of_blue->Attend(Step({handle}, 0, v1::METHOD_EXACT))->results(0).status()).code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(ToStatus(of_red->Attend(Step({handle}, 0, v1::METHOD_EXACT))->results(0).status()).ok());
  EXPECT_TRUE(of_blue->statistics().shares_memory && of_red->statistics().shares_memory);
}

TEST(SharedMemoryTest, BadItemsFailAlone) {
  const TestServer server;
  const auto client = Connect(server);
  const auto stream = client->OpenAttendStream();
  v1::AttendRequest request = Step({Create(*client, 1), Create(*client, 2)}, 0, v1::METHOD_EXACT);
  request.mutable_items(1)->mutable_q()->set_data("short");
  const AttendStream::Result answer = stream->Attend(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(ToStatus(answer->results(0).status()).ok());
  EXPECT_THAT(ToStatus(answer->results(1).status()).message(), HasSubstr("items[1].q"));
  EXPECT_TRUE(stream->statistics().shares_memory);
}

// As over gRPC: a drain answers what is in flight, and the next step meets a server that is gone.
TEST(SharedMemoryTest, ADrainAnswersWhatIsInFlight) {
  const TestServer server({}, 256);
  ClientOptions options;
  options.retry.max_attempts = 2;
  options.retry.initial_backoff = absl::Milliseconds(1);
  const auto client = *AttentionClient::Connect("127.0.0.1:" + std::to_string(server.server->port()), options);
  const auto stream = client->OpenAttendStream();
  const std::vector<v1::SequenceHandle> handles = {Create(*client, 1)};
  ASSERT_TRUE(stream->Attend(Step(handles, 0, v1::METHOD_EXACT)).ok());
  std::vector<std::future<AttendStream::Result>> answers;
  for (int step = 1; step < 30; ++step) answers.push_back(stream->Submit(Step(handles, step, v1::METHOD_EXACT)));
  server.server->Drain();
  bool refused = false;
  for (auto& answer : answers) {
    const AttendStream::Result result = answer.get();
    if (!result.ok()) {
      EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
      refused = true;
    } else {
      EXPECT_FALSE(refused) << "answered after a refusal";
      EXPECT_TRUE(ToStatus(result->results(0).status()).ok());
    }
  }
  EXPECT_EQ(stream->Attend(Step(handles, 30, v1::METHOD_EXACT)).status().code(), absl::StatusCode::kUnavailable);
}

TEST(SharedMemoryTest, ADeadlinePassesInTheLibrary) {
  const TestServer server;
  const auto client = Connect(server);
  const auto stream = client->OpenAttendStream();
  const std::vector<v1::SequenceHandle> handles = {Create(*client, 1)};
  EXPECT_EQ(stream->Attend(Step(handles, 0, v1::METHOD_EXACT), absl::Now() - absl::Seconds(1)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(stream->Attend(Step(handles, 0, v1::METHOD_EXACT), absl::Now() + absl::Minutes(1)).ok());
}

}  // namespace
}  // namespace santa
