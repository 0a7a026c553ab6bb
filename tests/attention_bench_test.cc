// The load generator, run as a user would, against the whole server.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "client/testing/run_command.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

using client_testing::CommandResult;
using client_testing::RunCommand;

CommandResult Bench(const TestServer& server, const std::string& flags) {
  return RunCommand("client/attention_bench --server=127.0.0.1:" + std::to_string(server.server->port()) +
                    " --warmup_seconds=0.1 --seconds=0.5 " + flags);
}

nlohmann::json Last(const CommandResult& result) {
  const size_t brace = result.output.find('{');
  return brace == std::string::npos ? nlohmann::json() : nlohmann::json::parse(result.output.substr(brace));
}

int64_t Sequences(const TestServer& server) {
  v1::ServerInfo info;
  Call call;
  EXPECT_TRUE(server.stub->GetServerInfo(&call.context, {}, &info).ok());
  return info.num_sequences();
}

TEST(AttentionBenchTest, ClosedLoopOfSeveralClients) {
  const TestServer server;
  const CommandResult result =
      Bench(server, "--metrics=127.0.0.1:" + std::to_string(server.server->http_port()) +
                        " --clients=3 --sequences=2 --tokens=40 --layers=2 --in_flight=3 --json");
  ASSERT_EQ(result.exit_code, 0) << result.output;
  const nlohmann::json json = Last(result);
  EXPECT_GT(json["steps"].get<int64_t>(), 0) << json;
  EXPECT_EQ(json["failed_steps"], 0) << json;
  EXPECT_EQ(json["errors"], nlohmann::json::object()) << json;
  EXPECT_NEAR(json["items_per_second"].get<double>(), 2 * json["steps_per_second"].get<double>(), 1e-6) << json;
  const nlohmann::json& latency = json["latency_us"];
  EXPECT_GT(latency["p50"], 0) << json;
  EXPECT_LE(latency["p50"], latency["p99.9"]) << json;
  EXPECT_LE(latency["p99.9"], latency["max"]) << json;
  const nlohmann::json& stages = json["stages_us"];
  EXPECT_GT(stages["device"], 0) << json;
  EXPECT_GT(stages["queue"], 0) << json;
  EXPECT_GT(stages["transport_and_reply"], 0) << json;
  EXPECT_EQ(json["device_busy_share_source"], "metrics") << json;
  EXPECT_GT(json["device_busy_share"], 0) << json;
  EXPECT_LE(json["device_busy_share"], 1.05) << json;
  EXPECT_GE(json["step_batch_items"], 2) << json;
  EXPECT_EQ(Sequences(server), 0);  // released
}

TEST(AttentionBenchTest, OpenLoopThatAppendsWithASampledMethod) {
  const TestServer server;
  const CommandResult result =
      Bench(server, "--clients=2 --tokens=30 --append --rate=100 --method=S2ANTA_FLASH --samples=8 --dtype=fp32");
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_NE(result.output.find("open loop, 100 steps/s"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("errors       0 steps failed, 0 not sent"), std::string::npos) << result.output;
  EXPECT_EQ(Sequences(server), 0);
}

TEST(AttentionBenchTest, AnEchoOfTheSameSizesInTheSameRun) {
  for (const std::string kind : {"raw", "protobuf"}) {
    const TestServer server;
    const CommandResult result =
        Bench(server, "--clients=2 --sequences=2 --tokens=uniform:10:40 --json --echo=" + kind);
    ASSERT_EQ(result.exit_code, 0) << result.output;
    const nlohmann::json json = Last(result);
    EXPECT_EQ(json["echo"]["kind"], kind) << json;
    EXPECT_GT(json["echo"]["latency_us"]["count"], 0) << json;
    EXPECT_GT(json["echo"]["request_bytes"], 0) << json;
    EXPECT_GT(json["echo"]["without_device_over_echo_p50"], 0) << json;
    EXPECT_LE(json["without_device_us"]["p50"], json["latency_us"]["p50"]) << json;
    EXPECT_EQ(json["failed_steps"], 0) << json;
    EXPECT_NEAR(json["seconds"].get<double>(), 0.5, 0.2) << json;
    EXPECT_EQ(Sequences(server), 0);
  }
}

TEST(AttentionBenchTest, PromptsBesideDecoding) {
  const TestServer server;
  const CommandResult result =
      Bench(server, "--clients=2 --prefill_clients=1 --prefill_chunk=16 --tokens=40 --layers=2 --json");
  ASSERT_EQ(result.exit_code, 0) << result.output;
  const nlohmann::json json = Last(result);
  EXPECT_GT(json["steps"], 0) << json;
  EXPECT_GT(json["prefill"]["tokens_per_second"], 0) << json;
  EXPECT_GT(json["prefill"]["latency_us"]["count"], 0) << json;
  EXPECT_EQ(json["prefill"]["failed_prompts"], 0) << json;
  EXPECT_EQ(json["errors"], nlohmann::json::object()) << json;
  EXPECT_EQ(Sequences(server), 0);
}

TEST(AttentionBenchTest, CountsWhatTheServerRefuses) {
  const TestServer server({}, /*num_pages=*/2);  // 32 tokens
  const CommandResult result = Bench(server, "--tokens=30 --append --json");
  const nlohmann::json json = Last(result);
  EXPECT_GT(json["failed_steps"], 0) << result.output;
  EXPECT_GT(json["errors"]["RESOURCE_EXHAUSTED"], 0) << json;
  EXPECT_EQ(Sequences(server), 0);
}

TEST(AttentionBenchTest, SaysWhatIsWrong) {
  const TestServer server;
  const struct {
    std::string flags;
    std::string sentence;
    int exit_code;
  } cases[] = {
      {"--rate=fast", "--rate is \"fast\"; allowed is a number in", 2},
      {"--layers=3", "--layers is 3; this server's num_layers is 2", 2},
      {"--tokens=4096", "this server has 64 free", 2},
      {"--metrics=127.0.0.1:1", "http://127.0.0.1:1/metrics", 1},
  };
  for (const auto& test : cases) {
    const CommandResult result = Bench(server, test.flags);
    EXPECT_EQ(result.exit_code, test.exit_code) << result.output;
    EXPECT_NE(result.output.find(test.sentence), std::string::npos) << result.output;
  }
  const CommandResult help = RunCommand("client/attention_bench --help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_NE(help.output.find("--in_flight=1"), std::string::npos) << help.output;
}

}  // namespace
}  // namespace santa
