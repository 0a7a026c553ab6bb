// AttendStream against a server that breaks, delays, reorders and repeats: every token is stored exactly once, every
// request is answered exactly once, with the bytes that an undisturbed server gives.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "client/testing/fake_attention_server.h"
#include "ring/doorbell.h"
#include "ring/shared_memory.h"
#include "ring/step_ring.h"

namespace santa {
namespace {

using client_testing::FakeAttentionServer;
using client_testing::Faults;

constexpr int kQueryHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 8;

Tensor Ramp(std::vector<int64_t> shape, int64_t start) {
  int64_t size = 1;
  for (const int64_t extent : shape) size *= extent;
  std::vector<float> values(size);
  for (int64_t i = 0; i < size; ++i) values[i] = static_cast<float>((start * 31 + i * 7) % 101) / 50.0f - 1.0f;
  return FromFloats(values, std::move(shape), ElementType::kFloat32);
}

v1::AttendItem Step(const v1::SequenceHandle& handle, int64_t position) {
  v1::AttendItem item;
  *item.mutable_handle() = handle;
  item.set_position(position);
  *item.mutable_q() = ToWire(Ramp({1, kQueryHeads, kHeadDim}, position).view());
  *item.mutable_k() = ToWire(Ramp({1, kKvHeads, kHeadDim}, position + 1000).view());
  *item.mutable_v() = ToWire(Ramp({1, kKvHeads, kHeadDim}, position + 2000).view());
  return item;
}

v1::AttendRequest Request(const v1::SequenceHandle& handle, int64_t position) {
  v1::AttendRequest request;
  *request.add_items() = Step(handle, position);
  return request;
}

// What Tokens() of the fake must hold at `position`.
std::string TokenBytes(int64_t position) {
  return Ramp({1, kKvHeads, kHeadDim}, position + 1000).data + Ramp({1, kKvHeads, kHeadDim}, position + 2000).data;
}

std::unique_ptr<AttentionClient> MustConnect(const FakeAttentionServer& server, int max_attempts = 8) {
  ClientOptions options;
  options.retry.max_attempts = max_attempts;
  options.retry.initial_backoff = absl::Milliseconds(2);
  options.retry.max_backoff = absl::Milliseconds(50);
  absl::StatusOr<std::unique_ptr<AttentionClient>> client = AttentionClient::Connect(server.target(), options);
  if (!client.ok()) throw std::runtime_error(client.status().ToString());
  return *std::move(client);
}

// Decodes `steps` tokens with up to `window` requests in flight; the answers' bytes in order of position.
std::vector<std::string> Decode(AttendStream& stream, const v1::SequenceHandle& handle, int steps, int window) {
  std::vector<std::future<AttendStream::Result>> answers;
  std::vector<std::string> bytes;
  const auto collect = [&](size_t index) {
    const AttendStream::Result answer = answers[index].get();
    EXPECT_TRUE(answer.ok()) << "position " << index << ": " << answer.status();
    if (!answer.ok()) return;
    EXPECT_TRUE(ToStatus(answer->results(0).status()).ok()) << ToStatus(answer->results(0).status());
    std::string text = answer->results(0).o().data();
    for (const float lse : answer->results(0).lse()) text += std::to_string(lse);
    bytes.push_back(std::move(text));
  };
  for (int step = 0; step < steps; ++step) {
    answers.push_back(stream.Submit(Request(handle, step)));
    if (step >= window) collect(step - window);
  }
  for (size_t index = bytes.size(); index < answers.size(); ++index) collect(index);
  return bytes;
}

std::vector<std::string> UndisturbedAnswers(int steps) {
  const FakeAttentionServer server;
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream();
  return Decode(*stream, client->CreateSequence()->handle(), steps, 1);
}

void ExpectStoredOnce(const FakeAttentionServer& server, const v1::SequenceHandle& handle, int steps) {
  const std::vector<std::string> tokens = server.Tokens(handle, 0);
  ASSERT_EQ(tokens.size(), steps);
  for (int position = 0; position < steps; ++position) {
    ASSERT_EQ(tokens[position], TokenBytes(position)) << "at position " << position;
  }
}

struct FaultCase {
  const char* name;
  Faults faults;
  int window;  // requests in flight
};

class AttendStreamFaults : public ::testing::TestWithParam<FaultCase> {};

TEST_P(AttendStreamFaults, NoTokenIsLostOrDoubledAndAnswersAreTheUndisturbedOnes) {
  constexpr int kSteps = 120;
  const FakeAttentionServer server(GetParam().faults);
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream();
  const v1::SequenceHandle handle = client->CreateSequence()->handle();

  EXPECT_EQ(Decode(*stream, handle, kSteps, GetParam().window), UndisturbedAnswers(kSteps));
  ExpectStoredOnce(server, handle, kSteps);

  const AttendStreamStatistics statistics = stream->statistics();
  EXPECT_EQ(statistics.submitted, kSteps);
  EXPECT_EQ(statistics.answered, kSteps);
  EXPECT_EQ(statistics.failed, 0);
  EXPECT_EQ(statistics.streams_opened, 1 + GetParam().faults.broken_attend_streams);
  EXPECT_EQ(statistics.requests_resent > 0, GetParam().faults.broken_attend_streams > 0);
}

INSTANTIATE_TEST_SUITE_P(
    All, AttendStreamFaults,
    ::testing::Values(FaultCase{"None", {}, 16},                                  //
                      FaultCase{"Reordered", {.max_delay_milliseconds = 3}, 16},  //
                      FaultCase{"Duplicated", {.duplicate_every = 3}, 4},         //
                      FaultCase{"OneByOneBroken", {.broken_attend_streams = 5, .requests_before_break = 7}, 0},
                      FaultCase{"BrokenWithManyInFlight",
                                {.broken_attend_streams = 6, .requests_before_break = 11, .max_delay_milliseconds = 2},
                                32},
                      FaultCase{"Everything",
                                {.broken_attend_streams = 4,
                                 .requests_before_break = 13,
                                 .max_delay_milliseconds = 2,
                                 .duplicate_every = 2},
                                24},
                      FaultCase{"CancelledByTheServer",
                                {.broken_attend_streams = 3, .requests_before_break = 5, .break_code = 1},
                                8}),
    [](const auto& info) { return info.param.name; });

TEST(AttendStreamTest, SurvivesAServerThatRestarts) {
  constexpr int kSteps = 60;
  FakeAttentionServer server({.max_delay_milliseconds = 2});
  const auto client = MustConnect(server, /*max_attempts=*/1000);
  const auto stream = client->OpenAttendStream();
  const v1::SequenceHandle handle = client->CreateSequence()->handle();

  std::atomic<int> answered = 0;
  std::atomic<int> failed = 0;
  for (int step = 0; step < kSteps; ++step) {
    stream->Submit(Request(handle, step), absl::InfiniteFuture(), [&](AttendStream::Result result) {
      ++(result.ok() && result->results(0).status().code() == 0 ? answered : failed);
    });
    if (step % 20 == 10) {
      server.Stop();
      server.Start();
    }
  }
  while (answered + failed < kSteps) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(failed, 0);
  ExpectStoredOnce(server, handle, kSteps);
}

TEST(AttendStreamTest, FindsAServerThatIsBackAfterAWhile) {
  FakeAttentionServer server;
  const auto client = MustConnect(server, /*max_attempts=*/1000);
  const auto stream = client->OpenAttendStream();
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  ASSERT_TRUE(stream->Attend(Request(handle, 0)).ok());
  server.Stop();
  auto answer = stream->Submit(Request(handle, 1));
  absl::SleepFor(absl::Milliseconds(300));  // attempts fail meanwhile
  server.Start();
  const AttendStream::Result result = answer.get();
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST(AttendStreamTest, ManyThreadsShareAStream) {
  constexpr int kThreads = 4;
  constexpr int kSteps = 40;
  const FakeAttentionServer server(
      {.broken_attend_streams = 5, .requests_before_break = 9, .max_delay_milliseconds = 1});
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream({.max_in_flight = 3});
  const std::vector<std::string> expected = UndisturbedAnswers(kSteps);
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      const v1::SequenceHandle handle = client->CreateSequence()->handle();
      EXPECT_EQ(Decode(*stream, handle, kSteps, 4), expected);
      ExpectStoredOnce(server, handle, kSteps);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(stream->statistics().answered, kThreads * kSteps);
}

TEST(AttendStreamTest, ItemsFailAlone) {
  const FakeAttentionServer server;
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream();
  v1::SequenceHandle stale = client->CreateSequence()->handle();
  stale.set_generation(77);
  v1::AttendRequest request = Request(client->CreateSequence()->handle(), 0);
  *request.add_items() = Step(stale, 0);
  *request.add_items() = Step(client->CreateSequence()->handle(), 5);
  const AttendStream::Result result = stream->Attend(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(ToStatus(result->results(0).status()), absl::OkStatus());
  EXPECT_EQ(ToStatus(result->results(1).status()).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ToStatus(result->results(2).status()).code(), absl::StatusCode::kOutOfRange);
}

TEST(AttendStreamTest, DeadlinesPassLocally) {
  FakeAttentionServer server({.never_answer = true});
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream({.max_in_flight = 2});
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  auto forever = stream->Submit(Request(handle, 0));
  const absl::Time soon = absl::Now() + absl::Milliseconds(30);
  auto brief = stream->Submit(Request(handle, 1), soon);
  // No room for this one until the one before has run out of time, and then none of its own is left.
  auto blocked = stream->Submit(Request(handle, 2), soon);
  auto late = stream->Submit(Request(handle, 3), absl::InfinitePast());
  EXPECT_EQ(brief.get().status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(blocked.get().status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(late.get().status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(stream->statistics().failed, 3);

  // The stream serves on; what ran out of time can be sent again.
  server.set_faults({});
  server.Stop();  // its silent handler still holds the old rule
  server.Start();
  EXPECT_TRUE(forever.get().ok());
  EXPECT_TRUE(stream->Attend(Request(handle, 1)).ok());
}

TEST(AttendStreamTest, BoundsRequestsInFlight) {
  FakeAttentionServer server({.never_answer = true});
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream({.max_in_flight = 3});
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  std::vector<std::future<AttendStream::Result>> answers;
  std::atomic<int> accepted = 0;
  std::thread submitter([&] {
    for (int step = 0; step < 5; ++step) {
      answers.push_back(stream->Submit(Request(handle, step)));
      ++accepted;
    }
  });
  while (server.attend_requests() < 3) absl::SleepFor(absl::Milliseconds(1));
  absl::SleepFor(absl::Milliseconds(20));  // long enough to show a bound that does not hold
  EXPECT_EQ(accepted, 3);
  EXPECT_EQ(server.attend_requests(), 3);
  server.set_faults({});
  server.Stop();
  server.Start();
  submitter.join();
  for (auto& answer : answers) EXPECT_TRUE(answer.get().ok());
}

TEST(AttendStreamTest, CallbacksMaySubmit) {
  const FakeAttentionServer server;
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream({.max_in_flight = 1});
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  std::promise<int> last;
  std::function<void(int)> decode = [&](int step) {
    stream->Submit(Request(handle, step), absl::InfiniteFuture(), [&, step](const AttendStream::Result& result) {
      if (!result.ok() || step == 30) return last.set_value(step);
      decode(step + 1);
    });
  };
  decode(0);
  EXPECT_EQ(last.get_future().get(), 30);
  ExpectStoredOnce(server, handle, 31);
}

TEST(AttendStreamTest, GivesUpAfterBoundedAttemptsAndRecovers) {
  FakeAttentionServer server({.broken_attend_streams = 1000});
  const auto client = MustConnect(server, /*max_attempts=*/4);
  const auto stream = client->OpenAttendStream();
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  const AttendStream::Result result = stream->Attend(Request(handle, 0));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
  EXPECT_EQ(stream->statistics().streams_opened, 4);
  server.set_faults({});
  EXPECT_TRUE(stream->Attend(Request(handle, 0)).ok());
  EXPECT_EQ(server.repeated_tokens() > 0, true);  // the attempts whose answer was lost had stored it
}

TEST(AttendStreamTest, OtherErrorsAreNotRetried) {
  const FakeAttentionServer server({.broken_attend_streams = 1, .requests_before_break = 0, .break_code = 13});
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream();
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  EXPECT_EQ(stream->Attend(Request(handle, 0)).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(stream->statistics().streams_opened, 1);
  EXPECT_TRUE(stream->Attend(Request(handle, 0)).ok());
}

TEST(AttendStreamTest, RefusesWhatTheServerCannotTake) {
  const FakeAttentionServer server;
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream();
  v1::AttendRequest request = Request(client->CreateSequence()->handle(), 0);
  request.mutable_items(0)->mutable_q()->mutable_data()->resize(100'000);
  EXPECT_EQ(stream->Attend(request).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(server.attend_requests(), 0);
}

TEST(AttendStreamTest, AnswersThatDoNotFitTheRequestAreErrors) {
  const FakeAttentionServer server({.drop_last_result = true});
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream();
  EXPECT_EQ(stream->Attend(Request(client->CreateSequence()->handle(), 0)).status().code(),
            absl::StatusCode::kInternal);
}

TEST(AttendStreamTest, ClosingCancelsWhatIsUnanswered) {
  const FakeAttentionServer server({.never_answer = true});
  const auto client = MustConnect(server);
  auto stream = client->OpenAttendStream();
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  auto first = stream->Submit(Request(handle, 0));
  auto second = stream->Submit(Request(handle, 1));
  stream.reset();
  EXPECT_EQ(first.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(second.get().status().code(), absl::StatusCode::kCancelled);
}

TEST(AttendStreamTest, OutlivesItsClientAndMayStayUnused) {
  const FakeAttentionServer server;
  auto client = MustConnect(server);
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  const auto stream = client->OpenAttendStream();
  const auto unused = client->OpenAttendStream();
  client.reset();
  EXPECT_TRUE(stream->Attend(Request(handle, 0)).ok());
}

// What a server tells of its memory is checked, and where it does not hold, steps go over gRPC.
TEST(AttendStreamTest, MemoryThatIsNotAsToldIsNotUsed) {
  const RingShape shape = {.slots = 4, .request_bytes = 4096, .answer_bytes = 4096, .generation = 5};
  const SharedMemory memory = *SharedMemory::Create(shape.memory_bytes());
  const StepRing ring(memory.bytes(), shape, StepRing::End::kServer);
  const Doorbell doorbell = *Doorbell::Open();
  v1::AttendSharedResponse truth;
  truth.set_version(kRingVersion);
  truth.set_process(getpid());
  truth.set_fd(memory.descriptor());
  truth.set_bytes(shape.memory_bytes());
  truth.set_generation(shape.generation);
  truth.set_slots(shape.slots);
  truth.set_request_bytes(shape.request_bytes);
  truth.set_answer_bytes(shape.answer_bytes);
  truth.set_doorbell(doorbell.name());
  std::vector<v1::AttendSharedResponse> lies(8, truth);
  lies[0].set_version(kRingVersion + 1);
  lies[1].set_process(1);
  lies[2].set_fd(0);
  lies[3].set_bytes(shape.memory_bytes() + 4096);
  lies[4].set_generation(6);
  lies[5].set_slots(0);
  lies[6].set_answer_bytes(8192);
  lies[7].set_doorbell("nobody");
  for (size_t lie = 0; lie < lies.size(); ++lie) {
    const FakeAttentionServer server({.shared_memory = lies[lie]});
    const auto client = MustConnect(server);
    const auto stream = client->OpenAttendStream();
    const v1::SequenceHandle handle = client->CreateSequence()->handle();
    EXPECT_EQ(Decode(*stream, handle, 20, 4).size(), 20) << "lie " << lie;
    ExpectStoredOnce(server, handle, 20);
    EXPECT_FALSE(stream->statistics().shares_memory) << "lie " << lie;
    EXPECT_EQ(stream->statistics().streams_opened, 1);
    EXPECT_EQ(stream->statistics().requests_resent, 0);
  }
  // The truth is believed; here nobody answers.
  const FakeAttentionServer server({.shared_memory = truth});
  const auto client = MustConnect(server);
  const auto stream = client->OpenAttendStream();
  const v1::SequenceHandle handle = client->CreateSequence()->handle();
  EXPECT_EQ(stream->Attend(Request(handle, 0), absl::Now() + absl::Milliseconds(100)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(stream->statistics().shares_memory);
}

}  // namespace
}  // namespace santa
