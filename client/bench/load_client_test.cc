// A client of the load against a server that misbehaves on demand.
#include "client/bench/load_client.h"

#include <gtest/gtest.h>

#include "client/testing/fake_attention_server.h"

namespace santa::bench {
namespace {

using client_testing::FakeAttentionServer;
using client_testing::Faults;

// A short load, without warm-up; the counts after it.
LoadCounts RunOne(const FakeAttentionServer& server, LoadOptions options) {
  options.server = server.target();
  auto client = LoadClient::Connect(options, 0);
  EXPECT_TRUE(client.ok()) << client.status();
  if (!client.ok()) return {};
  std::mt19937_64 random(1);
  const Tensor k = RandomTensor({4, 2, 8}, ElementType::kBFloat16, random);
  const std::atomic<bool> stop = false;
  const absl::Status prepared = (*client)->Prepare(k.view(), k.view(), stop);
  EXPECT_TRUE(prepared.ok()) << prepared;
  LoadWindow window;
  window.begin = Clock::now();
  window.end = window.begin + std::chrono::milliseconds(300);
  (*client)->Run(window);
  return (*client)->counts();
}

void AppendsEveryTokenOnce(bool in_place) {
  const FakeAttentionServer server;
  const LoadCounts counts = RunOne(server, {.sequences = 2,
                                            .tokens = Lengths::Fixed(10),
                                            .layers = 2,
                                            .append = true,
                                            .in_place = in_place,
                                            .in_flight = 5});
  EXPECT_GT(counts.steps, 0);
  EXPECT_EQ(counts.items, 2 * counts.steps);
  EXPECT_EQ(counts.failed_steps, 0);
  // All began in the window, but for those that a last answer within it let go.
  EXPECT_LE(counts.latency.count(), counts.steps_ever);
  EXPECT_GE(counts.latency.count(), counts.steps_ever - 5);
  EXPECT_EQ(counts.steps_ever, server.attend_requests());
  EXPECT_EQ(server.repeated_tokens(), 0);
  EXPECT_EQ(server.num_sequences(), 0);  // released
}

TEST(LoadClientTest, ClosedLoopAppendsEveryTokenOnce) { AppendsEveryTokenOnce(/*in_place=*/false); }

TEST(LoadClientTest, PlacedStepsDoToo) { AppendsEveryTokenOnce(/*in_place=*/true); }

TEST(LoadClientTest, OpenLoopSendsAtItsRateWhateverTheAnswersTake) {
  Faults faults;
  faults.max_delay_milliseconds = 40;
  const FakeAttentionServer server(faults);
  const LoadCounts counts = RunOne(server, {.tokens = Lengths::Fixed(3), .rate = 400});
  // 120 arrivals in the mean, with a standard deviation of 11; the seed is fixed.
  EXPECT_GT(server.attend_requests(), 60);
  EXPECT_LT(server.attend_requests(), 200);
  EXPECT_EQ(counts.latency.count(), server.attend_requests());
  EXPECT_EQ(counts.unsent_steps, 0);
  EXPECT_GE(counts.late_seconds, 0);
}

TEST(LoadClientTest, AStreamThatFailsIsCountedAndTheLoadGoesOn) {
  Faults faults;
  faults.broken_attend_streams = 3;
  faults.requests_before_break = 2;
  faults.break_code = 13;  // INTERNAL: the library does not try again
  const FakeAttentionServer server(faults);
  const LoadCounts counts =
      RunOne(server, {.sequences = 2, .tokens = Lengths::Fixed(10), .append = true, .in_flight = 2});
  EXPECT_GE(counts.failed_steps, 3);
  EXPECT_GE(counts.failed_items.at(absl::StatusCode::kInternal), 6);
  EXPECT_GT(counts.steps, counts.failed_steps);  // it got over them
  EXPECT_EQ(server.num_sequences(), 0);
}

TEST(LoadClientTest, UploadsPromptAfterPrompt) {
  const FakeAttentionServer server;
  const LoadCounts counts =
      RunOne(server, {.tokens = Lengths::Fixed(10), .layers = 2, .prefill_clients = 1, .prefill_chunk = 3});
  EXPECT_GT(counts.prompts.count(), 1);
  EXPECT_EQ(counts.failed_prompts, 0);
  EXPECT_GE(counts.prompt_tokens, 10);
  EXPECT_EQ(counts.prompt_tokens % 10, 0);
  EXPECT_EQ(counts.steps_ever, 0);
  EXPECT_EQ(server.num_sequences(), 0);  // each was released
}

TEST(LoadClientTest, StopsInTheMiddleOfUploads) {
  const FakeAttentionServer server;
  LoadOptions options = {.server = server.target(), .tokens = Lengths::Fixed(4)};
  auto client = LoadClient::Connect(options, 0);
  ASSERT_TRUE(client.ok()) << client.status();
  std::mt19937_64 random(1);
  const Tensor k = RandomTensor({4, 2, 8}, ElementType::kBFloat16, random);
  const std::atomic<bool> stop = true;
  EXPECT_EQ((*client)->Prepare(k.view(), k.view(), stop).code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace santa::bench
