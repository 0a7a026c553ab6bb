// Who may talk to the server: tokens and tenants, and TLS, as a program that uses the client library meets them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/attention_client.h"
#include "tests/client_library_certificates.h"
#include "tests/client_library_proxy.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kRedToken[] = "a-long-secret-of-red";
constexpr char kBlueToken[] = "a-long-secret-of-blue";

using Connected = absl::StatusOr<std::unique_ptr<AttentionClient>>;

std::string Target(const TestServer& server) { return "127.0.0.1:" + std::to_string(server.server->port()); }

ServerOptions WithTokens() {
  ServerOptions options;
  options.authenticator = *Authenticator::Parse(std::string(kRedToken) + " red\n# others\n" + kBlueToken + " blue\n");
  return options;
}

Connected ConnectWithToken(const TestServer& server, const std::string& token) {
  ClientOptions options;
  options.bearer_token = token;
  return AttentionClient::Connect(Target(server), options);
}

absl::Status Upload(AttentionClient& client, const v1::SequenceHandle& handle, uint64_t sequence, int64_t tokens) {
  const KvLayout layout = SmallLayout();
  std::vector<Tensor> tensors;
  for (int layer = 0; layer < layout.num_layers; ++layer) {
    for (const bool value : {false, true}) {
      tensors.push_back(FromFloats(Rows(layout, sequence, layer, value, 0, tokens),
                                   {tokens, layout.num_kv_heads, layout.head_dim}, ElementType::kFloat32));
    }
  }
  std::vector<KvChunk> chunks;
  for (uint32_t layer = 0; layer < 2; ++layer) {
    chunks.push_back(
        {.layer = layer, .position = 0, .k = tensors[2 * layer].view(), .v = tensors[2 * layer + 1].view()});
  }
  return client.AppendKv(handle, chunks).status();
}

// The status of the one item, or of the request.
absl::Status ItemStatusOf(const AttendStream::Result& answer) {
  return answer.ok() ? ToStatus(answer->results(0).status()) : answer.status();
}

// Uploads, then decodes with everything in flight at once; every answer is exact attention.
void ExpectServed(AttentionClient& client, uint64_t sequence) {
  constexpr int64_t kPrefix = 30;
  const absl::StatusOr<OwnedSequence> owned = OwnedSequence::Create(client);
  ASSERT_TRUE(owned.ok()) << owned.status();
  const absl::Status uploaded = Upload(client, owned->handle(), sequence, kPrefix);
  ASSERT_TRUE(uploaded.ok()) << uploaded;
  const std::unique_ptr<AttendStream> stream = client.OpenAttendStream();
  std::vector<std::future<AttendStream::Result>> answers;
  for (int64_t position = kPrefix; position < kPrefix + 20; ++position) {
    for (int layer = 0; layer < 2; ++layer) {
      answers.push_back(
          stream->Submit(Request(layer, {Item(owned->handle(), sequence, layer, position, /*with_token=*/true)})));
    }
  }
  for (size_t i = 0; i < answers.size(); ++i) {
    const AttendStream::Result answer = answers[i].get();
    ASSERT_TRUE(answer.ok()) << answer.status();
    ExpectExact(answer->results(0), sequence, static_cast<int>(i % 2), kPrefix + static_cast<int64_t>(i / 2));
  }
}

TEST(ClientLibrarySecurityTest, TheRightTokenIsServed) {
  const TestServer server(WithTokens());
  for (const char* token : {kRedToken, kBlueToken}) {
    const Connected client = ConnectWithToken(server, token);
    ASSERT_TRUE(client.ok()) << client.status();
    ExpectServed(**client, 1);
  }
}

TEST(ClientLibrarySecurityTest, OtherTokensAreNot) {
  const TestServer server(WithTokens());
  const std::string red(kRedToken);
  for (const std::string& token : {std::string(), std::string("guess"), red.substr(1), red + "x", "Bearer" + red}) {
    SCOPED_TRACE(token);
    const Connected client = ConnectWithToken(server, token);
    ASSERT_EQ(client.status().code(), absl::StatusCode::kUnauthenticated) << client.status();
    const std::string message(client.status().message());
    EXPECT_THAT(message, HasSubstr(token.empty() ? "no authorization" : "token is unknown"));
    EXPECT_THAT(message, Not(HasSubstr(red)));
  }
}

TEST(ClientLibrarySecurityTest, AnotherTenantsSequenceIsNotFound) {
  const TestServer server(WithTokens());
  const Connected red = ConnectWithToken(server, kRedToken);
  const Connected blue = ConnectWithToken(server, kBlueToken);
  ASSERT_TRUE(red.ok() && blue.ok());
  const absl::StatusOr<v1::Sequence> sequence = (*red)->CreateSequence();
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  const v1::SequenceHandle& handle = sequence->handle();
  ASSERT_TRUE(Upload(**red, handle, 1, 20).ok());

  v1::ForkSequenceRequest fork;
  *fork.mutable_parent() = handle;
  const std::unique_ptr<AttendStream> blue_stream = (*blue)->OpenAttendStream();
  for (const auto& [call, status] :
       {std::pair("get", (*blue)->GetSequence(handle).status()),
        std::pair("fork", (*blue)->ForkSequence(fork).status()),
        std::pair("truncate", (*blue)->TruncateSequence(handle, 0).status()),
        std::pair("append", Upload(**blue, handle, 1, 21)),
        std::pair("attend", ItemStatusOf(blue_stream->Attend(Request(0, {Item(handle, 1, 0, 19, false)})))),
        std::pair("decode", ItemStatusOf(blue_stream->Attend(Request(0, {Item(handle, 1, 0, 20, true)})))),
        std::pair("release", (*blue)->ReleaseSequence(handle))}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << call << ": " << status;
  }
  const absl::StatusOr<std::vector<v1::Sequence>> blues = (*blue)->ListSequences();
  ASSERT_TRUE(blues.ok()) << blues.status();
  EXPECT_TRUE(blues->empty());

  // None of it left a trace.
  const absl::StatusOr<std::vector<v1::Sequence>> reds = (*red)->ListSequences();
  ASSERT_TRUE(reds.ok()) << reds.status();
  ASSERT_EQ(reds->size(), 1U);
  EXPECT_EQ((*reds)[0].lengths(0), 20);
  EXPECT_EQ((*reds)[0].lengths(1), 20);
  const AttendStream::Result answer =
      (*red)->OpenAttendStream()->Attend(Request(0, {Item(handle, 1, 0, 20, /*with_token=*/true)}));
  ASSERT_TRUE(answer.ok()) << answer.status();
  ExpectExact(answer->results(0), 1, 0, 20);
}

// Servers and clients with certificates: for the address, for a name, and of a stranger.
class ClientLibraryTlsTest : public ::testing::Test {
 protected:
  static ServerOptions WithTls(const Certificate& certificate, ServerOptions options = {}) {
    options.tls_certificate = certificate.certificate;
    options.tls_key = certificate.key;
    return options;
  }

  static ClientOptions Trusting(const Certificate& root, const std::string& token = "") {
    ClientOptions options;
    options.connect_timeout = absl::Seconds(60);
    options.bearer_token = token;
    options.use_tls = true;
    options.root_certificates = root.certificate;
    return options;
  }

  const Certificate for_address_ = MakeCertificate("IP:127.0.0.1");
  const Certificate for_name_ = MakeCertificate("DNS:attention.test");
};

TEST_F(ClientLibraryTlsTest, ServesOverTls) {
  const TestServer server(WithTls(for_address_));
  const Connected client = AttentionClient::Connect(Target(server), Trusting(for_address_));
  ASSERT_TRUE(client.ok()) << client.status();
  ExpectServed(**client, 3);
}

TEST_F(ClientLibraryTlsTest, TokensTravelOverTls) {
  const TestServer server(WithTls(for_address_, WithTokens()));
  const Connected client = AttentionClient::Connect(Target(server), Trusting(for_address_, kRedToken));
  ASSERT_TRUE(client.ok()) << client.status();
  ExpectServed(**client, 4);
  EXPECT_EQ(AttentionClient::Connect(Target(server), Trusting(for_address_)).status().code(),
            absl::StatusCode::kUnauthenticated);
}

TEST_F(ClientLibraryTlsTest, SurvivesCutsInTheMiddleOfRecords) {
  ServerOptions over_tls;
  over_tls.rpc.max_shared_bytes = 0;
  const TestServer server(WithTls(for_address_, over_tls));
  CuttingProxy proxy(server.server->port(),
                     {{.to_server = 300}, {.to_client = 500}, {.to_server = 5001}, {.to_client = 4003}});
  ClientOptions options = Trusting(for_address_);
  options.retry = {
      .max_attempts = 200, .initial_backoff = absl::Milliseconds(2), .max_backoff = absl::Milliseconds(50)};
  const Connected client = AttentionClient::Connect(proxy.target(), options);
  ASSERT_TRUE(client.ok()) << client.status();
  ExpectServed(**client, 5);
  EXPECT_EQ(proxy.cuts(), 4);
}

TEST_F(ClientLibraryTlsTest, ANameMayStandForTheAddress) {
  const TestServer server(WithTls(for_name_));
  ClientOptions options = Trusting(for_name_);
  options.server_name = "attention.test";
  const Connected client = AttentionClient::Connect(Target(server), options);
  ASSERT_TRUE(client.ok()) << client.status();
  ExpectServed(**client, 6);
}

// All at once, as each is tried until connect_timeout: a server that is only just starting refuses too.
TEST_F(ClientLibraryTlsTest, RefusesWhatIsNotTheServer) {
  const TestServer with_address(WithTls(for_address_));
  const TestServer with_name(WithTls(for_name_));
  const TestServer plaintext;
  struct Refusal {
    std::string what;
    std::string target;
    ClientOptions options;
    std::string message;
    std::future<absl::Status> status;
  };
  ClientOptions other_name = Trusting(for_name_);
  other_name.server_name = "other.test";
  std::vector<Refusal> refusals;
  refusals.push_back({"another address", Target(with_name), Trusting(for_name_), "not in peer certificate", {}});
  refusals.push_back({"another name", Target(with_name), other_name, "not in peer certificate", {}});
  refusals.push_back({"a stranger's signature",
                      Target(with_address),
                      Trusting(MakeCertificate("IP:127.0.0.1")),
                      "certificate verify failed",
                      {}});
  refusals.push_back({"plaintext to TLS", Target(with_address), ClientOptions(), "without TLS", {}});
  refusals.push_back({"TLS to plaintext", Target(plaintext), Trusting(for_address_), "with TLS", {}});
  for (Refusal& refusal : refusals) {
    refusal.options.connect_timeout = absl::Seconds(4);
    refusal.status = std::async(
        std::launch::async, [&refusal] { return AttentionClient::Connect(refusal.target, refusal.options).status(); });
  }
  for (Refusal& refusal : refusals) {
    const absl::Status status = refusal.status.get();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << refusal.what << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("cannot connect to " + refusal.target)) << refusal.what;
    EXPECT_THAT(std::string(status.message()), HasSubstr(refusal.message)) << refusal.what;
  }
}

}  // namespace
}  // namespace santa
