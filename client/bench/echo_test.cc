// The bare transport, server and client in one process.
#include <gtest/gtest.h>

#include "client/bench/echo_client.h"
#include "client/bench/echo_server.h"

namespace santa::bench {
namespace {

attention::v1::AttendRequest Request() {
  attention::v1::AttendRequest request;
  attention::v1::Tensor& q = *request.add_items()->mutable_q();
  q.add_shape(1);
  q.add_shape(4);
  q.add_shape(8);
  q.set_data(std::string(64, 'q'));
  return request;
}

class EchoTest : public testing::TestWithParam<EchoKind> {};

TEST_P(EchoTest, MeasuresWhatBeganInItsWindows) {
  const auto server = EchoServer::Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  auto client = EchoClient::Connect({.target = "127.0.0.1:" + std::to_string((*server)->port()),
                                     .kind = GetParam(),
                                     .request = Request(),
                                     .answer_bytes = 100000,
                                     .in_flight = 3});
  ASSERT_TRUE(client.ok()) << client.status();
  int64_t count = 0;
  for (int i = 0; i < 2; ++i) {
    LoadWindow window;
    window.begin = Clock::now();
    window.end = window.begin + std::chrono::milliseconds(100);
    const absl::Status status = (*client)->Run(window);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_GT((*client)->latency().count(), count);
    count = (*client)->latency().count();
  }
  LoadWindow past;  // nothing that is sent belongs to it
  past.begin = Clock::now() - std::chrono::seconds(2);
  past.end = Clock::now() - std::chrono::seconds(1);
  EXPECT_TRUE((*client)->Run(past).ok());
  EXPECT_EQ((*client)->latency().count(), count);
}

INSTANTIATE_TEST_SUITE_P(Kinds, EchoTest, testing::Values(EchoKind::kRaw, EchoKind::kProtobuf));

TEST(EchoServerTest, ABrokenStreamIsAnError) {
  auto server = EchoServer::Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  auto client = EchoClient::Connect(
      {.target = "127.0.0.1:" + std::to_string((*server)->port()), .request = Request(), .answer_bytes = -1});
  ASSERT_TRUE(client.ok()) << client.status();
  LoadWindow window;
  window.begin = Clock::now();
  window.end = window.begin + std::chrono::seconds(60);
  EXPECT_EQ((*client)->Run(window).code(), absl::StatusCode::kInternal);
}

TEST(EchoServerTest, SaysWhereItCannotServe) {
  EXPECT_EQ(EchoServer::Start("256.0.0.1:0").status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace santa::bench
