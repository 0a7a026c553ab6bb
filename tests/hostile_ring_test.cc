// Clients that break the rules of the shared memory hurt their own call, and nobody else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <random>
#include <string>
#include <thread>

#include "ring/step_ring.h"
#include "tests/raw_ring_client.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

void ExpectInvalid(const grpc::Status& status, const std::string& text) {
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr(text));
}

class HostileRingTest : public ::testing::Test {
 protected:
  HostileRingTest() : handle_(Create(server_.stub.get()).handle()) {}

  std::string Step(int64_t position) { return Request(0, {Item(handle_, 7, 0, position, true)}).SerializeAsString(); }
  void ExpectAnswered(RawRingClient& client, int64_t position) {
    client.Publish(static_cast<int32_t>(position % client.shape().slots), Step(position));
    const v1::AttendResponse response = client.Receive();
    ASSERT_EQ(response.results_size(), 1);
    ExpectExact(response.results(0), 7, 0, position);
  }
  // The memory of rings is given back.
  void ExpectNothingLeft() {
    EXPECT_TRUE(Eventually([this] {
      RawRingClient all(server_, 16, kAllSlotBytes);
      return all.opened();
    }));
  }

  static constexpr int64_t kAllSlotBytes = 200'000;  // 16 of these are more than half of what there is
  static ServerOptions Options() {
    ServerOptions options;
    options.rpc.max_shared_bytes = 12 << 20;
    return options;
  }

  TestServer server_{Options(), 256};
  const v1::SequenceHandle handle_;
};

TEST_F(HostileRingTest, AnHonestOneIsAnswered) {
  RawRingClient client(server_);
  ASSERT_TRUE(client.opened());
  for (int64_t position = 0; position < 40; ++position) ExpectAnswered(client, position);
  client.Publish(0, Step(40));
  EXPECT_TRUE(client.End(true).ok());  // once that is answered
  EXPECT_EQ(client.Receive().results_size(), 1);
  ExpectNothingLeft();
}

TEST_F(HostileRingTest, WhatIsAskedForIsChecked) {
  const auto refusal = [this](int32_t slots, int64_t slot_bytes) {
    RawRingClient client(server_, slots, slot_bytes);
    EXPECT_FALSE(client.opened());
    return client.End();
  };
  ExpectInvalid(refusal(0, 8192), "slots is 0; allowed is [1, 1024]");
  ExpectInvalid(refusal(1025, 8192), "slots is 1025; allowed is [1, 1024]");
  ExpectInvalid(refusal(1, 0), "slot_bytes is 0; allowed is [1, 67108864]");
  ExpectInvalid(refusal(1, int64_t{1} << 40), "slot_bytes is 1099511627776; allowed is [1, 67108864]");
  const grpc::Status too_much = refusal(1024, 8 << 20);
  EXPECT_EQ(too_much.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(too_much.error_message(), HasSubstr("max_shared_bytes"));
  RawRingClient twice(server_);
  twice.SendOnStream();
  ExpectInvalid(twice.End(), "a second message came; allowed is one");
  ExpectNothingLeft();
}

TEST_F(HostileRingTest, BytesThatAreNoRequestEndTheCall) {
  RawRingClient client(server_);
  ExpectAnswered(client, 0);
  client.Publish(1, "\xff\xff\xff");
  ExpectInvalid(client.End(), "is not a request");
  RawRingClient empty(server_);
  empty.Publish(0, "");
  ExpectInvalid(empty.End(), "items is 0 long");
  ExpectNothingLeft();
}

TEST_F(HostileRingTest, BrokenRulesEndTheCall) {
  const auto end = [this](const std::function<RingShape(RingShape)>& change, int32_t slot, size_t length) {
    RawRingClient client(server_);
    StepRing other(client.memory(), change(client.shape()), StepRing::End::kClient);
    other.Publish(slot, length);
    client.Ring();
    return client.End();
  };
  const auto as_it_is = [](RingShape shape) { return shape; };
  ExpectInvalid(end(as_it_is, 0, 8193), "a descriptor's length is 8193; allowed is [0, 8192]");
  ExpectInvalid(end([](RingShape shape) { return ++shape.generation, shape; }, 0, 1), "of another generation");
  ExpectInvalid(end([](RingShape shape) { return shape.slots = 400, shape; }, 300, 1),
                "a descriptor's slot is 300; allowed is [0, 4)");
  RawRingClient client(server_, 4);
  client.ring().Publish(0, 8192);  // zeros
  client.ring().Publish(0, 8192);
  client.Ring();
  EXPECT_EQ(client.End().error_code(), StatusCode::INVALID_ARGUMENT);
  ExpectNothingLeft();
}

// What is read changes under the reader's eyes: each answer is of some request, or refused, and the server lives.
TEST_F(HostileRingTest, ARequestThatChangesWhileItIsRead) {
  RawRingClient honest(server_);
  for (int round = 0; round < 20; ++round) {
    RawRingClient client(server_);
    std::atomic<bool> stop = false;
    client.Publish(0, Step(round));
    std::thread scribbles([&] {
      std::mt19937 random(round);
      const std::span<char> room = client.ring().Room(0);
      while (!stop) room[random() % 600] = static_cast<char>(random());
    });
    for (int32_t slot = 1; slot < 4; ++slot) client.Publish(slot, Step(round));
    absl::SleepFor(absl::Milliseconds(2));
    stop = true;
    scribbles.join();
    client.Cancel();
    EXPECT_FALSE(client.End().ok());
  }
  RawRingClient other(server_);
  const v1::SequenceHandle handle = Create(server_.stub.get()).handle();
  other.Publish(0, Request(0, {Item(handle, 3, 0, 0, true)}).SerializeAsString());
  ExpectExact(other.Receive().results(0), 3, 0, 0);
}

// Random bytes all over the ring's head, while another client goes on.
TEST_F(HostileRingTest, AnythingInTheRing) {
  RawRingClient honest(server_);
  int64_t position = 0;
  std::mt19937 random(3);
  for (int round = 0; round < 150; ++round) {
    RawRingClient client(server_);
    ASSERT_TRUE(client.opened());
    client.ring().Publish(0, random() % 9000);
    for (int i = 0; i < 1 + round % 40; ++i) {
      client.memory()[random() % client.head_bytes()] = static_cast<char>(random() % 2 == 0 ? random() % 8 : random());
    }
    client.Ring();
    ExpectAnswered(honest, position++);
    client.Cancel();
    client.End();
  }
  ExpectNothingLeft();
}

TEST_F(HostileRingTest, ClientsThatVanishWithStepsInFlight) {
  for (int round = 0; round < 50; ++round) {
    RawRingClient client(server_);
    ASSERT_TRUE(client.opened());
    for (int32_t slot = 0; slot < 4; ++slot) client.Publish(slot, Step(round));
    if (round % 2 == 0) client.Cancel();
  }  // the connection goes with it
  ExpectNothingLeft();
  EXPECT_EQ(Create(server_.stub.get()).num_tokens(), 0);
}

TEST_F(HostileRingTest, ADrainEndsTheCall) {
  RawRingClient client(server_);
  ExpectAnswered(client, 0);
  std::thread drains([this] { server_.server->Drain(); });
  EXPECT_EQ(client.End().error_code(), StatusCode::UNAVAILABLE);
  drains.join();
  client.Publish(1, Step(1));  // into memory that nobody looks at
}

}  // namespace
}  // namespace santa
