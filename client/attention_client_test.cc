// The calls other than Attend: retries, uploads in pieces, credentials.
#include "client/attention_client.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "client/backoff.h"
#include "client/testing/fake_attention_server.h"

namespace santa {
namespace {

using client_testing::FakeAttentionServer;

constexpr int kKvHeads = 2;
constexpr int kHeadDim = 8;
constexpr size_t kRowBytes = kKvHeads * kHeadDim * sizeof(float);

Tensor Rows(int64_t tokens, float start) {
  std::vector<float> values(tokens * kKvHeads * kHeadDim);
  for (size_t i = 0; i < values.size(); ++i) values[i] = start + static_cast<float>(i);
  return FromFloats(values, {tokens, kKvHeads, kHeadDim}, ElementType::kFloat32);
}

ClientOptions FastRetries() {
  ClientOptions options;
  options.retry.initial_backoff = absl::Milliseconds(1);
  options.retry.max_backoff = absl::Milliseconds(10);
  return options;
}

// What the fake must hold after k and v were appended at position 0.
std::vector<std::string> Expected(const Tensor& k, const Tensor& v) {
  std::vector<std::string> tokens;
  for (size_t at = 0; at < k.data.size(); at += kRowBytes) {
    tokens.push_back(k.data.substr(at, kRowBytes) + v.data.substr(at, kRowBytes));
  }
  return tokens;
}

class AttentionClientTest : public ::testing::Test {
 protected:
  void Connect(const ClientOptions& options = FastRetries()) {
    absl::StatusOr<std::unique_ptr<AttentionClient>> client = AttentionClient::Connect(server_.target(), options);
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  v1::SequenceHandle MakeSequence() {
    absl::StatusOr<v1::Sequence> sequence = client_->CreateSequence();
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    return sequence.ok() ? sequence->handle() : v1::SequenceHandle();
  }

  FakeAttentionServer server_;
  std::unique_ptr<AttentionClient> client_;
};

TEST_F(AttentionClientTest, KnowsTheServer) {
  Connect();
  EXPECT_EQ(client_->info().layout().head_dim(), kHeadDim);
  EXPECT_EQ(client_->info().num_sequences(), 0);
  MakeSequence();
  EXPECT_EQ(client_->GetServerInfo()->num_sequences(), 1);
}

TEST_F(AttentionClientTest, CreatesForksTruncatesListsAndReleases) {
  Connect();
  const v1::SequenceHandle parent = MakeSequence();
  const Tensor k = Rows(10, 0);
  const Tensor v = Rows(10, 5000);
  for (const uint32_t layer : {0, 1}) {
    ASSERT_TRUE(client_->AppendKv(parent, {.layer = layer, .position = 0, .k = k.view(), .v = v.view()}).ok());
  }
  v1::ForkSequenceRequest fork;
  *fork.mutable_parent() = parent;
  fork.set_num_tokens(7);
  const absl::StatusOr<v1::Sequence> child = client_->ForkSequence(fork);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(child->num_tokens(), 7);
  EXPECT_EQ(client_->TruncateSequence(child->handle(), 3)->num_tokens(), 3);
  EXPECT_EQ(client_->GetSequence(parent)->num_tokens(), 10);

  MakeSequence();
  const absl::StatusOr<std::vector<v1::Sequence>> all = client_->ListSequences();  // two pages of the fake's
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 3);
  EXPECT_EQ((*all)[1].handle().id(), child->handle().id());

  EXPECT_TRUE(client_->ReleaseSequence(parent).ok());
  EXPECT_EQ(client_->ReleaseSequence(parent).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(client_->GetSequence(parent).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(server_.num_sequences(), 2);
}

TEST_F(AttentionClientTest, OwnedSequencesAreReleasedOnce) {
  Connect();
  {
    OwnedSequence kept;
    {
      absl::StatusOr<OwnedSequence> made = OwnedSequence::Create(*client_);
      ASSERT_TRUE(made.ok()) << made.status();
      const absl::StatusOr<OwnedSequence> other = OwnedSequence::Create(*client_);
      EXPECT_EQ(server_.num_sequences(), 2);
      kept = *std::move(made);
    }
    EXPECT_EQ(server_.num_sequences(), 1);
    EXPECT_TRUE(client_->GetSequence(kept.handle()).ok());
  }
  EXPECT_EQ(server_.num_sequences(), 0);
}

TEST_F(AttentionClientTest, RetriesUnaryCalls) {
  Connect();
  server_.set_faults({.unavailable_unary_calls = 3});
  const v1::SequenceHandle handle = MakeSequence();
  EXPECT_EQ(server_.num_sequences(), 1);
  // A release whose answer is lost finds the sequence gone when it is repeated; that is success.
  server_.set_faults({.lost_unary_answers = 1});
  EXPECT_TRUE(client_->ReleaseSequence(handle).ok());
  EXPECT_EQ(server_.num_sequences(), 0);
  server_.set_faults({.unavailable_unary_calls = 1000});
  EXPECT_EQ(client_->CreateSequence().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(AttentionClientTest, CutsLongUploadsIntoMessages) {
  Connect();
  const v1::SequenceHandle handle = MakeSequence();
  const Tensor k = Rows(2000, 0);
  const Tensor v = Rows(2000, -9000);
  const absl::StatusOr<v1::Sequence> sequence =
      client_->AppendKv(handle, {.layer = 1, .position = 0, .k = k.view(), .v = v.view()});
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_EQ(sequence->lengths(1), 2000);
  EXPECT_EQ(server_.Tokens(handle, 1), Expected(k, v));
  EXPECT_LE(server_.largest_message(), client_->info().limits().max_message_bytes());
  EXPECT_GT(server_.largest_message(), client_->info().limits().max_message_bytes() * 9 / 10);
}

TEST_F(AttentionClientTest, ResumesBrokenUploadsWhereTheServerStands) {
  Connect();
  const v1::SequenceHandle handle = MakeSequence();
  const Tensor k = Rows(5000, 0);
  const Tensor v = Rows(5000, 9000);
  const std::vector<KvChunk> chunks = {
      {.layer = 0, .position = 0, .k = k.view(), .v = v.view()},
      {.layer = 1, .position = 0, .k = v.view(), .v = k.view()},
  };
  server_.set_faults({.broken_append_streams = 5, .messages_before_break = 3});
  const absl::StatusOr<v1::Sequence> sequence = client_->AppendKv(handle, chunks);
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_EQ(sequence->num_tokens(), 5000);
  EXPECT_EQ(server_.Tokens(handle, 0), Expected(k, v));
  EXPECT_EQ(server_.Tokens(handle, 1), Expected(v, k));
  EXPECT_EQ(server_.repeated_tokens(), 0);  // nothing was sent twice after it had arrived
}

TEST_F(AttentionClientTest, AnUploadWhoseAnswerIsLostIsComplete) {
  Connect();
  const v1::SequenceHandle handle = MakeSequence();
  const Tensor k = Rows(3, 0);
  const KvChunk chunk = {.layer = 0, .position = 0, .k = k.view(), .v = k.view()};
  // The second broken stream takes the message first.
  server_.set_faults({.broken_append_streams = 2});
  const absl::StatusOr<v1::Sequence> sequence = client_->AppendKv(handle, chunk);
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_EQ(sequence->lengths(0), 3);
  EXPECT_EQ(server_.Tokens(handle, 0), Expected(k, k));
}

TEST_F(AttentionClientTest, RepeatedUploadsMustCarryTheSameBytes) {
  Connect();
  const v1::SequenceHandle handle = MakeSequence();
  const Tensor k = Rows(8, 0);
  const Tensor other = Rows(8, 1);
  EXPECT_TRUE(client_->AppendKv(handle, {.layer = 0, .position = 0, .k = k.view(), .v = k.view()}).ok());
  EXPECT_TRUE(client_->AppendKv(handle, {.layer = 0, .position = 0, .k = k.view(), .v = k.view()}).ok());
  EXPECT_EQ(client_->AppendKv(handle, {.layer = 0, .position = 0, .k = k.view(), .v = other.view()}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(client_->AppendKv(handle, {.layer = 0, .position = 9, .k = k.view(), .v = k.view()}).status().code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(server_.Tokens(handle, 0), Expected(k, k));
}

TEST_F(AttentionClientTest, RefusesChunksThatCannotBeRight) {
  Connect();
  const v1::SequenceHandle handle = MakeSequence();
  const Tensor good = Rows(4, 0);
  const Tensor shorter = Rows(3, 0);
  Tensor flat = good;
  flat.shape = {4, kKvHeads * kHeadDim};
  Tensor integers = good;
  integers.type = ElementType::kInt32;
  Tensor truncated = good;
  truncated.data.pop_back();
  const Tensor empty = Rows(0, 0);
  for (const KvChunk& chunk : {
           KvChunk{.layer = 0, .position = 0, .k = good.view(), .v = shorter.view()},
           KvChunk{.layer = 0, .position = 0, .k = flat.view(), .v = flat.view()},
           KvChunk{.layer = 0, .position = 0, .k = integers.view(), .v = integers.view()},
           KvChunk{.layer = 0, .position = 0, .k = truncated.view(), .v = truncated.view()},
           KvChunk{.layer = 0, .position = 0, .k = empty.view(), .v = empty.view()},
           KvChunk{.layer = 0, .position = -1, .k = good.view(), .v = good.view()},
       }) {
    EXPECT_EQ(client_->AppendKv(handle, chunk).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(server_.append_messages(), 0);
}

TEST_F(AttentionClientTest, ShowsItsToken) {
  server_.set_faults({.required_bearer_token = "secret"});
  ClientOptions options = FastRetries();
  EXPECT_EQ(AttentionClient::Connect(server_.target(), options).status().code(), absl::StatusCode::kUnauthenticated);
  options.bearer_token = "secret";
  Connect(options);
  const v1::SequenceHandle handle = MakeSequence();
  const Tensor k = Rows(1, 0);
  EXPECT_TRUE(client_->AppendKv(handle, {.layer = 0, .position = 0, .k = k.view(), .v = k.view()}).ok());
  const auto stream = client_->OpenAttendStream();
  EXPECT_TRUE(stream->Attend(v1::AttendRequest()).ok());
}

TEST_F(AttentionClientTest, RefusesOptionsThatContradict) {
  const auto code = [this](const ClientOptions& options) {
    return AttentionClient::Connect(server_.target(), options).status().code();
  };
  ClientOptions half_identity;
  half_identity.use_tls = true;
  half_identity.client_key = "key";
  ClientOptions tls_forgotten;
  tls_forgotten.root_certificates = "roots";
  ClientOptions two_headers;
  two_headers.bearer_token = "token\r\nx: y";
  ClientOptions no_attempt;
  no_attempt.retry.max_attempts = 0;
  for (const ClientOptions& options : {half_identity, tls_forgotten, two_headers, no_attempt}) {
    EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(AttentionClientTest, ConnectSaysWhomItCouldNotReach) {
  server_.Stop();
  ClientOptions options = FastRetries();
  options.connect_timeout = absl::Milliseconds(100);
  const absl::Status status = AttentionClient::Connect(server_.target(), options).status();
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) << status;
  EXPECT_NE(std::string(status.message()).find(server_.target()), std::string::npos) << status;
}

TEST(BackoffTest, GrowsWithinItsJitterAndStartsOver) {
  const RetryPolicy policy = {.max_attempts = 5,
                              .initial_backoff = absl::Milliseconds(10),
                              .max_backoff = absl::Milliseconds(50),
                              .multiplier = 2,
                              .jitter = 0.25};
  client_internal::Backoff backoff(policy, /*seed=*/1);
  for (int round = 0; round < 100; ++round) {
    for (const double milliseconds : {10, 20, 40, 50}) {
      EXPECT_TRUE(backoff.MayRetry());
      const double delay = absl::ToDoubleMilliseconds(backoff.Delay());
      EXPECT_GE(delay, milliseconds * 0.75);
      EXPECT_LE(delay, milliseconds * 1.25);
    }
    EXPECT_FALSE(backoff.MayRetry());
    backoff.Reset();
  }
}

}  // namespace
}  // namespace santa
