// AttendShared by hand, for tests that keep no rule.
#ifndef SANTA_TESTS_RAW_RING_CLIENT_H_
#define SANTA_TESTS_RAW_RING_CLIENT_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "ring/doorbell.h"
#include "ring/shared_memory.h"
#include "ring/step_ring.h"
#include "tests/server_fixture.h"

namespace santa {

// A client that does the library's work by hand.
class RawRingClient {
 public:
  explicit RawRingClient(const TestServer& server, int32_t slots = 4, int64_t slot_bytes = 8192) {
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

  // One step there and its answer back, in slot 0; allocates nothing.
  void Exchange(const std::string& bytes) {
    std::copy(bytes.begin(), bytes.end(), ring_->Room(0).begin());
    if (ring_->Publish(0, bytes.size())) doorbell_.Ring();
    while (!ring_->Waits()) std::this_thread::yield();
    if (!ring_->Take().ok()) ADD_FAILURE() << "the server broke a rule";
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

}  // namespace santa

#endif  // SANTA_TESTS_RAW_RING_CLIENT_H_
