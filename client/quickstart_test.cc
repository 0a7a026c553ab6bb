// The program that the README shows, run as a user would.
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/testing/fake_attention_server.h"
#include "client/testing/run_command.h"

namespace santa {
namespace {

using client_testing::CommandResult;
using client_testing::RunCommand;

TEST(QuickstartTest, DecodesAgainstAServer) {
  const client_testing::FakeAttentionServer server;
  const CommandResult result = RunCommand("client/quickstart " + server.target());
  EXPECT_EQ(result.exit_code, 0) << result.output;
  for (const char* position : {"1000", "1001", "1002", "1003"}) {
    EXPECT_NE(result.output.find(std::string("position ") + position + ": o[0][0..2] = "), std::string::npos)
        << result.output;
  }
  EXPECT_EQ(server.attend_requests(), 4);
  EXPECT_EQ(server.num_sequences(), 0);  // released
}

// In a process of its own: gRPC's threads of a server would finish the client's attempts to connect.
TEST(QuickstartTest, WaitsForAServerThatStartsLater) {
  client_testing::FakeAttentionServer server;
  server.Stop();
  std::thread late([&server] {
    absl::SleepFor(absl::Seconds(1));  // the first attempts have failed
    server.Start();
  });
  const CommandResult result = RunCommand("client/quickstart " + server.target());
  late.join();
  EXPECT_EQ(result.exit_code, 0) << result.output;
}

TEST(QuickstartTest, SaysWhatIsWrong) {
  client_testing::Faults faults;
  faults.required_bearer_token = "secret";
  const client_testing::FakeAttentionServer server(faults);
  const CommandResult result = RunCommand("client/quickstart " + server.target());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.output.find("UNAUTHENTICATED"), std::string::npos) << result.output;
}

}  // namespace
}  // namespace santa
