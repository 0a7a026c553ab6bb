#include "ring/step_ring.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "ring/shared_memory.h"

namespace santa {
namespace {

using End = StepRing::End;

constexpr RingShape kShape = {.slots = 4, .request_bytes = 4096, .answer_bytes = 8192, .generation = 7};

SharedMemory Memory(const RingShape& shape = kShape) { return *SharedMemory::Create(shape.memory_bytes()); }

bool Send(StepRing& ring, int slot, std::string_view text) {
  std::copy(text.begin(), text.end(), ring.Room(slot).begin());
  return ring.Publish(slot, text.size());
}

std::string_view Text(const StepRing::Message& message) { return {message.bytes.data(), message.bytes.size()}; }

TEST(StepRingTest, ChecksShapes) {
  EXPECT_TRUE(Validate(kShape).ok());
  const auto refusal = [](RingShape shape) { return std::string(Validate(shape).message()); };
  RingShape shape = kShape;
  shape.slots = 0;
  EXPECT_EQ(refusal(shape), "slots is 0; allowed is [1, 1024]");
  shape = kShape;
  shape.answer_bytes = kMaxRingSlotBytes + 1;
  EXPECT_EQ(refusal(shape), "answer_bytes is 67108865; allowed is [1, 67108864]");
  shape = kShape;
  shape.request_bytes = 5000;
  EXPECT_EQ(refusal(shape), "request_bytes is 5000; allowed is a multiple of 4096");
}

TEST(StepRingTest, KnowsItsFormat) {
  const SharedMemory memory = Memory();
  EXPECT_EQ(StepRing(memory.bytes(), kShape, End::kClient).CheckFormat().code(), absl::StatusCode::kFailedPrecondition);
  const StepRing server(memory.bytes(), kShape, End::kServer);
  EXPECT_TRUE(StepRing(memory.bytes(), kShape, End::kClient).CheckFormat().ok());
  RingShape older = kShape;
  older.generation = 6;
  EXPECT_EQ(StepRing(memory.bytes(), older, End::kClient).CheckFormat(),
            absl::FailedPreconditionError("the ring's generation or shape is not the one agreed upon"));
}

TEST(StepRingTest, AnswersComeInAnyOrder) {
  const SharedMemory memory = Memory();
  StepRing server(memory.bytes(), kShape, End::kServer);
  StepRing client(memory.bytes(), kShape, End::kClient);
  EXPECT_FALSE(server.Waits());
  Send(client, 2, "two");
  Send(client, 0, "");
  ASSERT_TRUE(server.Waits());
  const StepRing::Message first = *server.Take();
  const StepRing::Message second = *server.Take();
  EXPECT_FALSE(server.Waits());
  EXPECT_EQ(first.slot, 2);
  EXPECT_EQ(Text(first), "two");
  EXPECT_EQ(Text(second), "");
  Send(server, 0, "answer");
  Send(server, 2, std::string(8192, 'x'));
  EXPECT_EQ(Text(*client.Take()), "answer");
  EXPECT_EQ(client.Take()->bytes.size(), 8192);
}

// Two threads, all slots on their way, answers in another order than requests.
TEST(StepRingTest, NothingIsLostOrMixed) {
  constexpr int kMessages = 100'000;
  const SharedMemory memory = Memory();
  StepRing server(memory.bytes(), kShape, End::kServer);
  StepRing client(memory.bytes(), kShape, End::kClient);
  std::thread serves([&] {
    std::mt19937 random(1);
    std::vector<std::pair<int, std::string>> held;
    for (int answered = 0; answered < kMessages;) {
      if (server.Waits()) {
        const absl::StatusOr<StepRing::Message> message = server.Take();
        ASSERT_TRUE(message.ok()) << message.status();
        held.emplace_back(message->slot, Text(*message));
      } else if (held.empty()) {
        std::this_thread::yield();
        continue;
      }
      if (held.size() < 4 && random() % 2 == 0) continue;
      std::swap(held[random() % held.size()], held.back());
      Send(server, held.back().first, "re " + held.back().second);
      held.pop_back();
      ++answered;
    }
  });
  std::vector<int> free = {0, 1, 2, 3};
  std::vector<std::string> expected(4);
  for (int sent = 0, answered = 0; answered < kMessages;) {
    if (!free.empty() && sent < kMessages) {
      expected[free.back()] = "re " + std::to_string(sent);
      Send(client, free.back(), std::to_string(sent++));
      free.pop_back();
    }
    if (!client.Waits()) {
      std::this_thread::yield();
      continue;
    }
    const absl::StatusOr<StepRing::Message> message = client.Take();
    ASSERT_TRUE(message.ok()) << message.status();
    ASSERT_EQ(Text(*message), expected[message->slot]);
    free.push_back(message->slot);
    ++answered;
  }
  serves.join();
}

TEST(StepRingTest, ASleeperIsWokenOnce) {
  const SharedMemory memory = Memory();
  StepRing server(memory.bytes(), kShape, End::kServer);
  StepRing client(memory.bytes(), kShape, End::kClient);
  EXPECT_FALSE(Send(client, 0, "a"));  // nobody sleeps
  server.BeginSleep();
  EXPECT_TRUE(server.Waits());  // so it must not
  server.EndSleep();
  EXPECT_FALSE(Send(client, 1, "b"));
  server.BeginSleep();
  EXPECT_TRUE(Send(client, 2, "c"));
  EXPECT_FALSE(Send(client, 3, "d"));
}

TEST(StepRingTest, TheClientSleepsUntilItIsWoken) {
  const SharedMemory memory = Memory();
  StepRing server(memory.bytes(), kShape, End::kServer);
  StepRing client(memory.bytes(), kShape, End::kClient);
  Send(client, 0, "request");
  const StepRing::Message message = *server.Take();
  std::thread serves([&] {
    if (Send(server, message.slot, "answer")) server.WakeClient();
  });
  while (!client.Waits()) {
    client.BeginSleep();
    if (!client.Waits()) client.SleepFor(int64_t{3600} * 1'000'000'000);
    client.EndSleep();
  }
  serves.join();
  EXPECT_EQ(Text(*client.Take()), "answer");
  client.SleepFor(int64_t{3600} * 1'000'000'000);  // EndSleep came first: not at all
}

// Clients that keep no rule, as rings of another shape are.
TEST(StepRingTest, RefusesWhatBreaksTheRules) {
  const RingShape wide = {.slots = 8, .request_bytes = 8192, .answer_bytes = 8192, .generation = 7};
  const auto refusal = [&](const RingShape& shape, const std::vector<std::pair<int, size_t>>& published) {
    const SharedMemory memory = Memory(wide);
    StepRing server(memory.bytes().first(kShape.memory_bytes()), kShape, End::kServer);
    StepRing client(memory.bytes(), shape, End::kClient);
    for (const auto& [slot, length] : published) client.Publish(slot, length);
    absl::StatusOr<StepRing::Message> message = server.Take();
    for (size_t i = 1; i < published.size() && message.ok(); ++i) message = server.Take();
    EXPECT_EQ(message.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(message.status().message());
  };
  EXPECT_EQ(refusal(wide, {{6, 1}}), "a descriptor's slot is 6; allowed is [0, 4)");
  EXPECT_EQ(refusal(wide, {{1, 4097}}), "a descriptor's length is 4097; allowed is [0, 4096]");
  EXPECT_EQ(refusal(wide, {{1, 1}, {1, 1}}), "slot 1 was published by the end that has not got it");
  EXPECT_EQ(refusal(wide, {{0, 1}, {1, 1}, {2, 1}, {3, 1}, {0, 1}}),
            "the ring counts 5 messages, of which 0 were taken; it has 4 slots");
  EXPECT_EQ(refusal(wide, {}), "the ring counts 0 messages, of which 0 were taken; it has 4 slots");
  RingShape older = wide;
  older.generation = 6;
  EXPECT_EQ(refusal(older, {{0, 1}}), "a descriptor in the ring is of another generation");
}

// Whatever lies in the memory: a message within its slot, or a refusal. Bounds are the address sanitizer's to check
// too.
TEST(StepRingTest, AnyBytesAreAMessageOrRefused) {
  std::mt19937 random(2);
  const SharedMemory memory = Memory();
  const size_t head = memory.bytes().size() - 4 * (4096 + 8192);
  int messages = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::memset(memory.bytes().data(), 0, head);
    StepRing server(memory.bytes(), kShape, End::kServer);
    StepRing client(memory.bytes(), kShape, End::kClient);
    for (int slot = 0; slot < 1 + round % 4; ++slot) client.Publish(slot, random() % 5000);
    for (int change = 0; change < round % 5; ++change) {
      memory.bytes()[random() % head] = static_cast<char>(random() % 2 == 0 ? random() % 8 : random());
    }
    while (server.Waits()) {
      const absl::StatusOr<StepRing::Message> message = server.Take();
      if (!message.ok()) break;
      ++messages;
      ASSERT_GE(message->slot, 0);
      ASSERT_LT(message->slot, 4);
      ASSERT_LE(message->bytes.size(), 4096);
      ASSERT_EQ(message->bytes.data(), memory.bytes().data() + head + message->slot * (4096 + 8192));
      std::fill(server.Room(message->slot).begin(), server.Room(message->slot).end(), 'x');
    }
  }
  EXPECT_GT(messages, 20'000);
}

}  // namespace
}  // namespace santa
