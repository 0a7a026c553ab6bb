// The binary itself: what it says of bad flags, and that SIGTERM drains it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/http_get.h"
#include "tests/server_fixture.h"

extern char** environ;  // NOLINT(readability-redundant-declaration)

namespace santa {
namespace {

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// attention_server as a child; its stderr and stdout go to a file.
class Process {
 public:
  explicit Process(const std::vector<std::string>& flags) {
    static int count = 0;
    log_ = ::testing::TempDir() + "/server_binary_test." + std::to_string(getpid()) + "." + std::to_string(count++);
    std::vector<std::string> words = {"server/attention_server"};
    words.insert(words.end(), flags.begin(), flags.end());
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    const int error = posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
    EXPECT_EQ(error, 0) << "cannot run " << argv[0];
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Process() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    Wait();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void Signal(int signal) const { kill(pid_, signal); }
  // The exit code; -1 if it did not exit by itself.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string log() const { return ReadAll(log_); }

 private:
  pid_t pid_ = 0;
  std::string log_;
};

TEST(ServerBinaryTest, ABadFlagIsRefusedWithASentence) {
  const struct {
    std::vector<std::string> flags;
    std::string sentence;
  } cases[] = {
      {{"--no_such_flag=1"}, "there is no flag --no_such_flag"},
      {{"argument"}, "\\\"argument\\\" is no flag"},
      {{"--num_layers=many"}, "--num_layers is \\\"many\\\""},
      {{"--num_layers=0"}, "--num_layers is 0"},
      {{"--num_layers"}, "--num_layers has no value"},
      {{"--num_query_heads=33"}, "--num_query_heads is 33; it must be a multiple of num_kv_heads, which is 8"},
      {{"--num_kv_heads=-8"}, "--num_kv_heads is -8"},
      {{"--head_dim=12"}, "--head_dim is 12; it must be a multiple of 8 in [8, 256]"},
      {{"--page_size=48"}, "--page_size is 48"},
      {{"--dtype=int8"}, "--dtype is \\\"int8\\\"; allowed is fp32, bf16, fp16 or fp8_e4m3"},
      {{"--backend=abacus"}, "--backend is \\\"abacus\\\""},
      {{"--backend=cuda"}, "--backend is cuda, but this build has no CUDA"},
      {{"--dtype=fp8_e4m3"}, "--dtype is fp8_e4m3; the CPU backend has"},
      {{"--key_order=sideways"}, "--key_order is \\\"sideways\\\"; allowed is token or feature"},
      {{"--key_order=feature", "--sketch=k4"}, "--sketch is k4; it must be none where key_order is feature"},
      {{"--kv_scales=/nowhere"}, "--kv_scales is /nowhere; allowed is a file"},
      {{"--kv_bytes=lots"}, "--kv_bytes is \\\"lots\\\""},
      {{"--kv_bytes=1KiB"}, "--kv_bytes is 1024; allowed is room for one page or more"},
      {{"--kv_bytes=1000TiB"}, "at most the machine's memory"},
      {{"--kv_memory_fraction=1.5"}, "--kv_memory_fraction is 1.5"},
      {{"--kv_memory_fraction=0.5", "--kv_bytes=1GiB"}, "are both set"},
      {{"--listen=nowhere"}, "--listen is \\\"nowhere\\\""},
      {{"--listen=127.0.0.1:65536"}, "--listen is"},
      {{"--http_port=70000"}, "--http_port is 70000; allowed is -1 (none) or [0, 65535]"},
      {{"--drain_grace=-1s"}, "--drain_grace is -1s; allowed is 0 or more"},
      {{"--threads=-1"}, "--threads is -1"},
      {{"--max_sequences=0"}, "max_sequences is 0"},
      {{"--default_lease=2h", "--max_lease=1h"}, "default_lease is 2h and max_lease 1h"},
      {{"--default_lease=soon"}, "--default_lease is \\\"soon\\\""},
      {{"--max_message_bytes=3GiB"}, "max_message_bytes is 3221225472"},
      {{"--auth_tokens_file=/nonexistent"}, "--auth_tokens_file: cannot read /nonexistent"},
      {{"--tls_cert=/nonexistent"}, "--tls_cert is /nonexistent"},
      {{"--log_level=loud"}, "--log_level is \\\"loud\\\""},
      {{"--audit_share=2"}, "--audit_share is 2; allowed is [0, 1]"},
      {{"--audit_fallback_time=0"}, "--audit_fallback_time is 0"},
      {{"--slow_step_threshold=-1s"}, "--slow_step_threshold is -1s; allowed is 0 (none) or more"},
      {{"--config=/nowhere"}, "--config is /nowhere; allowed is a file"},
  };
  for (const auto& c : cases) {
    // Small and on free ports, should one of them start against expectation.
    std::vector<std::string> flags = {"--listen=127.0.0.1:0", "--http_port=0", "--page_size=16"};
    flags.insert(flags.end(), c.flags.begin(), c.flags.end());
    Process process(flags);
    EXPECT_EQ(process.Wait(), 2) << c.sentence;
    EXPECT_NE(process.log().find(c.sentence), std::string::npos) << c.sentence << "\n" << process.log();
  }
}

TEST(ServerBinaryTest, HelpAndVersion) {
  Process help({"--help"});
  EXPECT_EQ(help.Wait(), 0);
  EXPECT_NE(help.log().find("--num_query_heads=32\n"), std::string::npos) << help.log();
  Process version({"--version"});
  EXPECT_EQ(version.Wait(), 0);
  EXPECT_EQ(version.log().rfind("attention_server ", 0), 0U) << version.log();
}

TEST(ServerBinaryTest, SigtermDrains) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const std::string port_file =
        ::testing::TempDir() + "/server_binary_test.ports." + std::to_string(getpid()) + "." + std::to_string(signal);
    Process process({"--listen=127.0.0.1:0", "--http_port=0", "--port_file=" + port_file, "--num_layers=2",
                     "--num_query_heads=4", "--num_kv_heads=2", "--head_dim=8", "--page_size=16", "--dtype=fp32",
                     "--kv_bytes=256KiB", "--drain_grace=60s"});
    int port = 0;
    int http_port = 0;
    ASSERT_TRUE(Eventually([&] { return static_cast<bool>(std::ifstream(port_file) >> port >> http_port); }))
        << process.log();
    EXPECT_EQ(HttpRequest(http_port, "GET", "/readyz").status, 200);
    const auto stub = v1::AttentionService::NewStub(
        grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
    v1::ServerInfo info;
    {
      Call call;
      ASSERT_TRUE(stub->GetServerInfo(&call.context, {}, &info).ok());
    }
    EXPECT_EQ(info.limits().total_pages(), 64);
    const v1::SequenceHandle handle = Create(stub.get()).handle();
    Call call;
    const auto stream = stub->Attend(&call.context);
    ASSERT_TRUE(stream->Write(Request(0, {Item(handle, 1, 0, 0, true)})));
    v1::AttendResponse response;
    ASSERT_TRUE(stream->Read(&response));
    ExpectExact(response.results(0), 1, 0, 0);

    process.Signal(signal);
    EXPECT_FALSE(stream->Read(&response));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(process.Wait(), 0) << process.log();
    EXPECT_NE(process.log().find("\"message\":\"stopped\""), std::string::npos) << process.log();
    EXPECT_EQ(HttpRequest(http_port, "GET", "/healthz").status, 0);
  }
}

const std::vector<std::string> kSmall = {"--listen=127.0.0.1:0", "--http_port=0",    "--num_layers=2",
                                         "--num_query_heads=4",  "--num_kv_heads=2", "--head_dim=8",
                                         "--page_size=16",       "--dtype=fp32",     "--kv_bytes=256KiB"};

std::vector<std::string> Small(const std::vector<std::string>& more) {
  std::vector<std::string> flags = kSmall;
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

TEST(ServerBinaryTest, TheCommandLineOverridesTheEnvironmentAndThatTheFile) {
  const std::string file = ::testing::TempDir() + "/server_binary_test.conf." + std::to_string(getpid());
  std::ofstream(file) << "# for this test\nmax_sequences = 5\nmax_streams = 6\nmax_lease = 3h\n";
  setenv("SANTA_MAX_STREAMS", "7", 1);
  setenv("SANTA_MAX_LEASE", "4h", 1);
  Process process(Small({"--config=" + file, "--max_lease=5h"}));
  unsetenv("SANTA_MAX_STREAMS");
  unsetenv("SANTA_MAX_LEASE");
  ASSERT_TRUE(Eventually([&] { return process.log().find("\"serving\"") != std::string::npos; })) << process.log();
  for (const std::string& part :
       {"--max_sequences=5 (" + file + ":2)", std::string("--max_streams=7 (SANTA_MAX_STREAMS)"),
        std::string("--max_lease=5h (command line)"), std::string("--default_lease=10m "),
        std::string("the self-test passed")}) {
    EXPECT_NE(process.log().find(part), std::string::npos) << part << " is missing of\n" << process.log();
  }

  std::ofstream(file) << "max_sequences = 5\nmax_seqences = 6\n";
  Process misspelt(Small({"--config=" + file}));
  EXPECT_EQ(misspelt.Wait(), 2);
  EXPECT_NE(misspelt.log().find(file + ":2: there is no flag --max_seqences"), std::string::npos) << misspelt.log();
}

// The one JSON line with this message; empty when there is none.
std::string LogLine(const std::string& log, const std::string& message) {
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("\"message\":\"" + message + "\"") != std::string::npos) return line;
  }
  return "";
}

TEST(ServerBinaryTest, ACallsTraceIsInItsAnswerAndInTheLog) {
  const std::string port_file = ::testing::TempDir() + "/server_binary_test.trace." + std::to_string(getpid());
  Process process(Small({"--port_file=" + port_file, "--slow_step_threshold=1ns", "--log_level=debug"}));
  int port = 0;
  ASSERT_TRUE(Eventually([&] { return static_cast<bool>(std::ifstream(port_file) >> port); })) << process.log();
  const auto stub = v1::AttentionService::NewStub(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  const v1::SequenceHandle handle = Create(stub.get()).handle();
  const std::string trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  {
    Call call;
    call.context.AddMetadata("traceparent", "00-" + trace_id + "-00f067aa0ba902b7-01");
    const auto stream = stub->Attend(&call.context);
    v1::AttendItem item = Item(handle, 1, 0, 0, true);
    item.mutable_options()->set_method(v1::METHOD_SANTA);
    item.mutable_options()->set_sample_count(4);
    item.mutable_options()->set_want_statistics(true);
    ASSERT_TRUE(stream->Write(Request(0, {item}, 77)));
    v1::AttendResponse response;
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.results(0).statistics().trace_id(), trace_id);
    EXPECT_EQ(response.results(0).statistics().method(), v1::METHOD_SANTA);
    stream->WritesDone();
    EXPECT_FALSE(stream->Read(&response));
    EXPECT_TRUE(stream->Finish().ok());
  }
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 0);
  const std::string slow = LogLine(process.log(), "slow step");
  for (const std::string& part :
       {"\"trace_id\":\"" + trace_id + "\"", std::string("\"parent_id\":\"00f067aa0ba902b7\""),
        std::string("\"request_id\":77,"), std::string("\"layer\":0,"), std::string("\"method\":\"SANTA\""),
        std::string("\"parse_seconds\":"), std::string("\"queue_seconds\":"), std::string("\"device_seconds\":"),
        std::string("\"answer_seconds\":")}) {
    EXPECT_NE(slow.find(part), std::string::npos) << part << " is missing of\n" << process.log();
  }
  std::istringstream lines(process.log());
  bool ended = false;
  for (std::string line; std::getline(lines, line);) {
    ended |= line.find("call ended") != std::string::npos && line.find("\"method\":\"Attend\"") != std::string::npos &&
             line.find(trace_id) != std::string::npos;
  }
  EXPECT_TRUE(ended) << process.log();
}

}  // namespace
}  // namespace santa
