#include "client/bench/load_options.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace santa::bench {
namespace {

absl::StatusOr<LoadOptions> Parse(const std::vector<std::string_view>& arguments) {
  return ParseLoadOptions(arguments);
}

v1::ServerInfo Server() {
  v1::ServerInfo server;
  server.mutable_layout()->set_num_layers(2);
  server.mutable_layout()->set_page_size(16);
  server.add_methods(v1::METHOD_EXACT);
  server.add_methods(v1::METHOD_SANTA);
  server.mutable_limits()->set_max_sequences(10);
  server.mutable_limits()->set_max_tokens_per_sequence(4096);
  server.mutable_limits()->set_max_items_per_request(8);
  server.mutable_limits()->set_max_sample_count(100);
  server.set_free_pages(100);
  server.set_num_sequences(1);
  return server;
}

TEST(LoadOptionsTest, ReadsEveryFlag) {
  const auto options = Parse({"--server=[::1]:7",
                              "--metrics",
                              "host:8",
                              "--clients=2",
                              "--sequences=3",
                              "--tokens=64",
                              "--layers=2",
                              "--method=s2anta_flash",
                              "--samples=9",
                              "--score_draws=11",
                              "--dtype=fp16",
                              "--append",
                              "--in_flight=4",
                              "--rate=1.5",
                              "--warmup_seconds=0",
                              "--seconds=0.5",
                              "--seed=6",
                              "--json=true",
                              "--echo",
                              "--echo_server=host:9",
                              "--serve_echo=host:0",
                              "--prefill_clients=1",
                              "--prefill_chunk=7"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->server, "[::1]:7");
  EXPECT_EQ(options->metrics, "host:8");
  EXPECT_EQ(options->clients, 2);
  EXPECT_EQ(options->sequences, 3);
  EXPECT_EQ(options->TokensOf(5), 64);
  EXPECT_EQ(options->layers, 2);
  EXPECT_EQ(options->method, v1::METHOD_S2ANTA_FLASH);
  EXPECT_EQ(options->score_draws, 11);
  EXPECT_EQ(options->SampleCountOf(64), 9);
  EXPECT_EQ(options->dtype, ElementType::kFloat16);
  EXPECT_TRUE(options->append);
  EXPECT_EQ(options->in_flight, 4);
  EXPECT_EQ(options->rate, 1.5);
  EXPECT_EQ(options->warmup_seconds, 0);
  EXPECT_EQ(options->seconds, 0.5);
  EXPECT_EQ(options->seed, 6);
  EXPECT_TRUE(options->json);
  EXPECT_EQ(options->echo, EchoKind::kRaw);
  EXPECT_EQ(options->echo_server, "host:9");
  EXPECT_EQ(options->serve_echo, "host:0");
  EXPECT_EQ(options->prefill_clients, 1);
  EXPECT_EQ(options->decode_clients(), 1);
  EXPECT_EQ(options->prefill_chunk, 7);
  EXPECT_EQ(Parse({"--echo=protobuf"})->echo, EchoKind::kProtobuf);
  EXPECT_EQ(Parse({"--echo=none"})->echo, std::nullopt);
}

TEST(LoadOptionsTest, SampleCountFollowsTheMethod) {
  EXPECT_EQ(Parse({})->SampleCountOf(4096), 0);
  EXPECT_EQ(Parse({"--method=SANTA"})->SampleCountOf(4096), 256);
  EXPECT_EQ(Parse({"--method=SANTA"})->SampleCountOf(4), 1);
}

TEST(LoadOptionsTest, RefusesWithASentence) {
  const struct {
    std::vector<std::string_view> arguments;
    std::string sentence;
  } cases[] = {
      {{"--no_such_flag=1"}, "there is no flag --no_such_flag"},
      {{"word"}, "the argument \"word\" is no flag"},
      {{"--clients"}, "--clients has no value"},
      {{"--clients=0"}, "--clients is \"0\"; allowed is a whole number in [1, 4096]"},
      {{"--clients=many"}, "--clients is \"many\""},
      {{"--rate=-1"}, "--rate is \"-1\"; allowed is a number in [0, "},
      {{"--rate=nan"}, "--rate is \"nan\""},
      {{"--seconds=0"}, "--seconds is \"0\""},
      {{"--json=yes"}, "--json is \"yes\"; allowed is true or false"},
      {{"--dtype=int8"}, "--dtype is \"int8\"; allowed is bf16, fp16 or fp32"},
      {{"--method=GUESS"}, "--method: "},
      {{"--server="}, "--server is \"\""},
      {{"--metrics=9464"}, "--metrics is \"9464\"; allowed is HOST:PORT"},
      {{"--samples=4"}, "--samples is 4, but --method=EXACT draws none"},
      {{"--samples=4", "--method=BERNOULLI_QK"}, "--samples is 4, but --method=BERNOULLI_QK draws none"},
      {{"--score_draws=4"}, "--score_draws is 4, but --method=EXACT has none"},
      {{"--score_draws=1025"}, "--score_draws is \"1025\"; allowed is a whole number in [0, 1024]"},
      {{"--method=BERNOULLI_QK"}, "--score_draws is 0; --method=BERNOULLI_QK needs 1 to 1024"},
      {{"--tokens=0"}, "--tokens is 0; a prompt, and without --append a step, needs at least 1 token"},
      {{"--tokens=uniform:9:1"}, "--tokens is \"uniform:9:1\"; allowed is N, uniform:LEAST:MOST"},
      {{"--echo=loud"}, "--echo is \"loud\"; allowed is none, raw or protobuf"},
      {{"--echo_server=9"}, "--echo_server is \"9\"; allowed is HOST:PORT"},
      {{"--prefill_clients=2"}, "--prefill_clients is 2; allowed is up to --clients, 1"},
      {{"--prefill_clients=1", "--echo"}, "--echo needs a client that decodes"},
  };
  for (const auto& test : cases) {
    const auto options = Parse(test.arguments);
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument) << test.sentence;
    EXPECT_NE(std::string(options.status().message()).find(test.sentence), std::string::npos) << options.status();
  }
}

TEST(LoadOptionsTest, HelpNamesEveryFlag) {
  EXPECT_TRUE(Parse({"--help"})->help);
  EXPECT_TRUE(Parse({"-h"})->help);
  const std::string usage = LoadUsage();
  for (const char* flag :
       {"server",         "metrics",         "clients",       "sequences",  "tokens",    "layers",
        "method",         "samples",         "dtype",         "append",     "in_flight", "rate",
        "warmup_seconds", "seconds",         "seed",          "json",       "echo",      "echo_server",
        "serve_echo",     "prefill_clients", "prefill_chunk", "score_draws"}) {
    EXPECT_NE(usage.find(std::string("  --") + flag + "="), std::string::npos) << flag;
  }
}

TEST(LoadOptionsTest, TakesWhatTheServerCan) {
  LoadOptions fits = {
      .clients = 3, .sequences = 3, .tokens = Lengths::Fixed(176), .layers = 2};  // 9 sequences, 99 pages
  EXPECT_TRUE(CheckAgainst(Server(), fits).ok()) << CheckAgainst(Server(), fits);
  const struct {
    LoadOptions options;
    std::string sentence;
  } cases[] = {
      {{.layers = 3}, "--layers is 3; this server's num_layers is 2"},
      {{.sequences = 9}, "--sequences is 9; this server's max_items_per_request is 8"},
      {{.tokens = Lengths::Fixed(5000)}, "--tokens is 5000; this server's max_tokens_per_sequence is 4096"},
      {{.method = v1::METHOD_SANTA, .samples = 101}, "--samples is 101; this server's max_sample_count is 100"},
      {{.method = v1::METHOD_S2ANTA_PROP}, "--method is S2ANTA_PROP, which this server has not"},
      {{.clients = 2, .sequences = 5, .tokens = Lengths::Fixed(16)},
       "is 10; this server has room for 9 more sequences"},
      {{.clients = 3, .sequences = 3, .tokens = Lengths::Fixed(177)},
       "takes 108 pages of 16 tokens; this server has 100 free"},
  };
  for (const auto& test : cases) {
    const absl::Status status = CheckAgainst(Server(), test.options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test.sentence;
    EXPECT_NE(std::string(status.message()).find(test.sentence), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace santa::bench
