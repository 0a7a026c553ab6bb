// Clients that break the rules of the shared memory hurt their own call, and nobody else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "ring/doorbell.h"
#include "ring/shared_memory.h"
#include "ring/step_ring.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

// A client that does the library's work by hand.
class RawClient {
 public:
  explicit RawClient(const TestServer& server, int32_t slots = 4, int64_t slot_bytes = 8192) {
    stub_ = v1::AttentionService::NewStub(server.NewChannel());
    stream_ = stub_->AttendShared(&call_.context);
    v1::AttendSharedRequest request;
    request.set_slots(slots);
    request.set_slot_bytes(slot_bytes);
    stream_->Write(request);
    if (!stream_->Read(&told_)) return;
    memory_ = *SharedMemory::Open(told_.process(), told_.fd(), told_.bytes());
    doorbell_ = *Doorbell::Find(told_.doorbell());
    ring_.emplace(memory_.bytes(), shape(), StepRing::End::kClient);
    EXPECT_TRUE(ring_->CheckFormat().ok());
  }

  bool opened() const { return ring_.has_value(); }
  const v1::AttendSharedResponse& told() const { return told_; }
  RingShape shape() const {
    return {.slots = told_.slots(),
            .request_bytes = told_.request_bytes(),
            .answer_bytes = told_.answer_bytes(),
            .generation = told_.generation()};
  }
  StepRing& ring() { return *ring_; }
  std::span<char> memory() const { return memory_.bytes(); }
  size_t head_bytes() const {
    return memory_.bytes().size() - told_.slots() * (told_.request_bytes() + told_.answer_bytes());
  }

  void Publish(int32_t slot, const std::string& bytes) {
    std::copy(bytes.begin(), bytes.end(), ring_->Room(slot).begin());
    ring_->Publish(slot, bytes.size());
    doorbell_.Ring();  // whether or not it sleeps
  }
  void Ring() const { doorbell_.Ring(); }
  v1::AttendResponse Receive() {
    EXPECT_TRUE(Eventually([this] { return ring_->Waits(); }));
    const StepRing::Message message = *ring_->Take();
    v1::AttendResponse response;
    EXPECT_TRUE(response.ParseFromArray(message.bytes.data(), static_cast<int>(message.bytes.size())));
    return response;
  }

  bool SendOnStream() { return stream_->Write(v1::AttendSharedRequest()); }
  void Cancel() { call_.context.TryCancel(); }
  // The status with which the server ends the call; after `end_writes`, once all is answered.
  grpc::Status End(bool end_writes = false) {
    if (end_writes) stream_->WritesDone();
    v1::AttendSharedResponse more;
    while (stream_->Read(&more)) ADD_FAILURE() << "told twice";
    return stream_->Finish();
  }

 private:
  Call call_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::AttendSharedRequest, v1::AttendSharedResponse>> stream_;
  v1::AttendSharedResponse told_;
  SharedMemory memory_;
  Doorbell doorbell_;
  std::optional<StepRing> ring_;
};

void ExpectInvalid(const grpc::Status& status, const std::string& text) {
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr(text));
}

class HostileRingTest : public ::testing::Test {
 protected:
  HostileRingTest() : handle_(Create(server_.stub.get()).handle()) {}

  std::string Step(int64_t position) { return Request(0, {Item(handle_, 7, 0, position, true)}).SerializeAsString(); }
  void ExpectAnswered(RawClient& client, int64_t position) {
    client.Publish(static_cast<int32_t>(position % client.shape().slots), Step(position));
    const v1::AttendResponse response = client.Receive();
    ASSERT_EQ(response.results_size(), 1);
    ExpectExact(response.results(0), 7, 0, position);
  }
  // The memory of rings is given back.
  void ExpectNothingLeft() {
    EXPECT_TRUE(Eventually([this] {
      RawClient all(server_, 16, kAllSlotBytes);
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
  RawClient client(server_);
  ASSERT_TRUE(client.opened());
  for (int64_t position = 0; position < 40; ++position) ExpectAnswered(client, position);
  client.Publish(0, Step(40));
  EXPECT_TRUE(client.End(true).ok());  // once that is answered
  EXPECT_EQ(client.Receive().results_size(), 1);
  ExpectNothingLeft();
}

TEST_F(HostileRingTest, WhatIsAskedForIsChecked) {
  const auto refusal = [this](int32_t slots, int64_t slot_bytes) {
    RawClient client(server_, slots, slot_bytes);
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
  RawClient twice(server_);
  twice.SendOnStream();
  ExpectInvalid(twice.End(), "a second message came; allowed is one");
  ExpectNothingLeft();
}

TEST_F(HostileRingTest, BytesThatAreNoRequestEndTheCall) {
  RawClient client(server_);
  ExpectAnswered(client, 0);
  client.Publish(1, "\xff\xff\xff");
  ExpectInvalid(client.End(), "is not a request");
  RawClient empty(server_);
  empty.Publish(0, "");
  ExpectInvalid(empty.End(), "items is 0 long");
  ExpectNothingLeft();
}

TEST_F(HostileRingTest, BrokenRulesEndTheCall) {
  const auto end = [this](const std::function<RingShape(RingShape)>& change, int32_t slot, size_t length) {
    RawClient client(server_);
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
  RawClient client(server_, 4);
  client.ring().Publish(0, 8192);  // zeros
  client.ring().Publish(0, 8192);
  client.Ring();
  EXPECT_EQ(client.End().error_code(), StatusCode::INVALID_ARGUMENT);
  ExpectNothingLeft();
}

// What is read changes under the reader's eyes: each answer is of some request, or refused, and the server lives.
TEST_F(HostileRingTest, ARequestThatChangesWhileItIsRead) {
  RawClient honest(server_);
  for (int round = 0; round < 20; ++round) {
    RawClient client(server_);
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
  RawClient other(server_);
  const v1::SequenceHandle handle = Create(server_.stub.get()).handle();
  other.Publish(0, Request(0, {Item(handle, 3, 0, 0, true)}).SerializeAsString());
  ExpectExact(other.Receive().results(0), 3, 0, 0);
}

// Random bytes all over the ring's head, while another client goes on.
TEST_F(HostileRingTest, AnythingInTheRing) {
  RawClient honest(server_);
  int64_t position = 0;
  std::mt19937 random(3);
  for (int round = 0; round < 150; ++round) {
    RawClient client(server_);
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
    RawClient client(server_);
    ASSERT_TRUE(client.opened());
    for (int32_t slot = 0; slot < 4; ++slot) client.Publish(slot, Step(round));
    if (round % 2 == 0) client.Cancel();
  }  // the connection goes with it
  ExpectNothingLeft();
  EXPECT_EQ(Create(server_.stub.get()).num_tokens(), 0);
}

TEST_F(HostileRingTest, ADrainEndsTheCall) {
  RawClient client(server_);
  ExpectAnswered(client, 0);
  std::thread drains([this] { server_.server->Drain(); });
  EXPECT_EQ(client.End().error_code(), StatusCode::UNAVAILABLE);
  drains.join();
  client.Publish(1, Step(1));  // into memory that nobody looks at
}

}  // namespace
}  // namespace santa
