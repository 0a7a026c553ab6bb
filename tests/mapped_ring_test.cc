// Shared memory that the device reads and writes itself: the real client and a whole server, over a backend that keeps
// count of what is mapped and fails when it is not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "client/attention_client.h"
#include "server/server.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"
#include "tests/raw_ring_client.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

using ::testing::HasSubstr;

constexpr int kQueryNumbers = 4 * 8;
constexpr size_t kLeastRing = size_t{512} << 10;

class MappedRingTest : public ::testing::Test {
 protected:
  MappedRingTest() {
    backend_->set_maps_memory();
    backend_->set_max_decodes_in_flight(2);
    backend_->set_hook([this](FakeBackend::Call call) {
      if (call != FakeBackend::Call::kAwaitDecode) return absl::OkStatus();
      std::unique_lock lock(mutex_);
      waiting_ = true;
      changed_.notify_all();
      changed_.wait(lock, [this] { return !blocked_; });
      waiting_ = false;
      return absl::OkStatus();
    });
    auto client = AttentionClient::Connect("127.0.0.1:" + std::to_string(server_.server->port()));
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    for (v1::SequenceHandle& handle : handles_) handle = Create(server_.stub.get()).handle();
  }
  ~MappedRingTest() override { Block(false); }

  void Block(bool blocked) {
    const std::lock_guard lock(mutex_);
    blocked_ = blocked;
    changed_.notify_all();
  }
  // Until the device has a step that it does not finish.
  void AwaitBlocked() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_; });
  }

  static v1::Tensor Tensor(int heads, const std::vector<float>& values) { return MakeTensor({1, heads, 8}, values); }
  // An item that stores token `id` of its sequence and attends to all.
  v1::AttendItem StepOf(int sequence, int64_t position, int id) const {
    v1::AttendItem item;
    *item.mutable_handle() = handles_[sequence];
    item.set_position(position);
    std::vector<float> k, v;
    for (int head = 0; head < 2; ++head) {
      for (int d = 0; d < 8; ++d) {
        k.push_back(TokenValue(id, false, head, d));
        v.push_back(TokenValue(id, true, head, d));
      }
    }
    *item.mutable_q() = Tensor(4, std::vector<float>(kQueryNumbers, 1));
    *item.mutable_k() = Tensor(2, k);
    *item.mutable_v() = Tensor(2, v);
    return item;
  }
  static void SetQ(v1::AttendItem& item, int element, float value) {
    std::vector<float> q(kQueryNumbers, 1);
    q[element] = value;
    *item.mutable_q() = Tensor(4, q);
  }
  static void ExpectMean(const v1::AttendResult& result, const std::vector<int>& ids) {
    ASSERT_EQ(result.status().code(), 0) << result.status().message();
    const std::vector<float> expected = MeanOfTokens(TestLayout(2), ids);
    const std::string bytes(reinterpret_cast<const char*>(expected.data()), expected.size() * sizeof(float));
    EXPECT_EQ(result.o().data(), bytes);
    ASSERT_EQ(result.lse_size(), 4);
    EXPECT_FLOAT_EQ(result.lse(0), std::log(static_cast<float>(ids.size())));
  }
  std::unique_ptr<AttendStream> Stream(bool shares_memory = true) const {
    return client_->OpenAttendStream({.share_memory = shares_memory});
  }
  // The rings that are mapped: what requests are copied into is mapped too, but smaller.
  int64_t rings() const { return backend_->mappings(kLeastRing); }
  bool NoRings() {
    return Eventually([this] { return rings() == 0; });
  }

  static ServerOptions Options() {
    ServerOptions options;
    options.self_test = false;  // which this backend's answers are no match for
    return options;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool blocked_ = false;
  bool waiting_ = false;                                             // the device, for that
  FakeBackend* const backend_ = new FakeBackend(TestLayout(2), 64);  // the server's
  TestServer server_{Options(), std::unique_ptr<Backend>(backend_)};
  std::unique_ptr<AttentionClient> client_;
  std::array<v1::SequenceHandle, 4> handles_;
};

// The same words whoever finds out, and nothing of what was stored is lost.
TEST_F(MappedRingTest, AQueryThatIsNotFiniteIsRefusedAlone) {
  int64_t position = 0;
  for (const bool shares_memory : {true, false}) {
    const auto stream = Stream(shares_memory);
    v1::AttendRequest request;
    for (int sequence = 0; sequence < 3; ++sequence) *request.add_items() = StepOf(sequence, position, 10 + sequence);
    SetQ(*request.mutable_items(1), 5, std::numeric_limits<float>::quiet_NaN());
    const auto answer = stream->Attend(request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(stream->statistics().shares_memory, shares_memory);
    if (shares_memory) {
      EXPECT_EQ(rings(), 1);
    } else {
      EXPECT_TRUE(NoRings());  // the first stream's goes a little after that was closed
    }
    ASSERT_EQ(answer->results_size(), 3);
    EXPECT_EQ(answer->results(1).status().code(), 3);
    EXPECT_EQ(answer->results(1).status().message(), "items[1].q.data: element 5 is nan; allowed is finite");
    ExpectMean(answer->results(0), std::vector<int>(position + 1, 10));
    ExpectMean(answer->results(2), std::vector<int>(position + 1, 12));

    SetQ(*request.mutable_items(1), 5, 1);
    const auto retry = stream->Attend(request);
    ASSERT_TRUE(retry.ok()) << retry.status();
    for (int sequence = 0; sequence < 3; ++sequence) {
      ExpectMean(retry->results(sequence), std::vector<int>(position + 1, 10 + sequence));
    }
    ++position;
  }
}

TEST_F(MappedRingTest, AnswersRefusalsAndStatisticsShareASlot) {
  const auto stream = Stream();
  for (int position = 0; position < 12; ++position) {
    v1::AttendRequest request;
    for (int sequence = 0; sequence < 4; ++sequence) {
      v1::AttendItem& item = *request.add_items() = StepOf(sequence, position, 7);
      item.mutable_options()->set_want_statistics((position + sequence) % 2 == 0);
    }
    request.mutable_items(position % 3)->set_position(100);  // refused by the engine, which has no such token
    const int unknown = position % 2 == 0 ? 3 : -1;
    if (unknown >= 0) request.mutable_items(3)->clear_q();  // before that
    const auto answer = stream->Attend(request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    ASSERT_EQ(answer->results_size(), 4);
    for (int sequence = 0; sequence < 4; ++sequence) {
      const v1::AttendResult& result = answer->results(sequence);
      if (sequence == position % 3) {
        EXPECT_EQ(result.status().code(), 11);
        EXPECT_THAT(result.status().message(), HasSubstr("position is 100"));
      } else if (sequence == unknown) {
        EXPECT_EQ(result.status().code(), 3);
        EXPECT_EQ(result.status().message(), "items[3].q is absent; allowed is a tensor");
      } else {
        ExpectMean(result, std::vector<int>(position + 1, 7));
        EXPECT_EQ(result.has_statistics(), (position + sequence) % 2 == 0);
        EXPECT_EQ(result.statistics().visible_tokens(), result.has_statistics() ? position + 1 : 0);
      }
      // Those that were refused come along the second time.
      if (result.status().code() == 0) continue;
      v1::AttendRequest alone;
      *alone.add_items() = StepOf(sequence, position, 7);
      const auto repeated = stream->Attend(alone);
      ASSERT_TRUE(repeated.ok()) << repeated.status();
      ExpectMean(repeated->results(0), std::vector<int>(position + 1, 7));
    }
  }
}

// A call that ends with steps on the device keeps its memory until they are done; the backend fails where it does not.
TEST_F(MappedRingTest, StepsInFlightKeepTheMemory) {
  for (int position = 0; position < 5; ++position) {
    {
      RawRingClient client(server_);
      ASSERT_TRUE(client.opened());
      Block(true);
      client.Publish(0, Request(0, {StepOf(0, position, 3)}).SerializeAsString());
      AwaitBlocked();
      client.Cancel();
      client.End();
    }  // the client's own mapping and its connection are gone
    EXPECT_EQ(rings(), 1);
    Block(false);
    EXPECT_TRUE(NoRings());
  }
  EXPECT_TRUE(server_.server->device_status().ok()) << server_.server->device_status();
  v1::AttendRequest request;
  *request.add_items() = StepOf(0, 5, 3);
  const auto answer = Stream()->Attend(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  ExpectMean(answer->results(0), std::vector<int>(6, 3));
}

// Whoever writes over all its slots while its steps are on the device harms nobody else.
TEST_F(MappedRingTest, ACallerThatWritesMeanwhileHarmsNobodyElse) {
  const auto stream = Stream();
  RawRingClient hostile(server_);
  ASSERT_TRUE(hostile.opened());
  for (int position = 0; position < 10; ++position) {
    Block(true);
    hostile.Publish(0, Request(0, {StepOf(0, position, 3)}).SerializeAsString());
    AwaitBlocked();
    v1::AttendRequest request;
    *request.add_items() = StepOf(1, position, 4);
    auto answer = stream->Submit(request);
    const std::span<char> slots = hostile.memory().subspan(hostile.head_bytes());
    std::fill(slots.begin(), slots.end(), '\xff');
    Block(false);
    const auto found = answer.get();
    ASSERT_TRUE(found.ok()) << found.status();
    ExpectMean(found->results(0), std::vector<int>(position + 1, 4));
    ASSERT_TRUE(Eventually([&] { return hostile.ring().Waits(); }));
    ASSERT_TRUE(hostile.ring().Take().ok());
  }
  EXPECT_TRUE(server_.server->device_status().ok());
}

}  // namespace
}  // namespace santa
