// Speculative decoding through the client library: forks that part from their parent, drafts that are rolled back, and
// every answer exact attention over the tokens that the sequence then holds.
#include <gtest/gtest.h>

#include <cstddef>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/attention_client.h"
#include "kernels/reference/estimators.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

// Which of the fixture's sequences each position's token comes from, position by position.
using Tokens = std::vector<uint64_t>;

Tokens operator+(Tokens tokens, const Tokens& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

// Keys or values of all tokens: [tokens][H_kv][D].
std::vector<float> RowsOf(const Tokens& tokens, int layer, bool value) {
  std::vector<float> rows;
  for (size_t position = 0; position < tokens.size(); ++position) {
    const std::vector<float> row =
        Rows(SmallLayout(), tokens[position], layer, value, static_cast<int64_t>(position), 1);
    rows.insert(rows.end(), row.begin(), row.end());
  }
  return rows;
}

// Fails the test unless the result is exact attention of the last token's query over all of `tokens`.
void ExpectAttention(const v1::AttendResult& result, const Tokens& tokens, int layer) {
  ASSERT_EQ(result.status().code(), 0) << result.status().message();
  const auto to_doubles = [](const std::vector<float>& values) {
    return std::vector<double>(values.begin(), values.end());
  };
  const auto last = static_cast<int64_t>(tokens.size()) - 1;
  const reference::Output expected =
      reference::Exact({.num_query_heads = SmallLayout().num_query_heads,
                        .num_kv_heads = SmallLayout().num_kv_heads,
                        .head_dim = SmallLayout().head_dim,
                        .num_tokens = last + 1,
                        .q = to_doubles(Query(SmallLayout(), tokens.back(), layer, last)),
                        .k = to_doubles(RowsOf(tokens, layer, false)),
                        .v = to_doubles(RowsOf(tokens, layer, true)),
                        .sink_logits = {},
                        .options = {}});
  const absl::StatusOr<std::vector<float>> o = ToFloats(result.o());
  ASSERT_TRUE(o.ok()) << o.status();
  ASSERT_EQ(o->size(), expected.o.size());
  for (size_t i = 0; i < o->size(); ++i) ASSERT_NEAR((*o)[i], expected.o[i], 2e-5) << "element " << i;
  ASSERT_EQ(result.lse_size(), static_cast<int>(expected.lse.size()));
  for (int h = 0; h < result.lse_size(); ++h) ASSERT_NEAR(result.lse(h), expected.lse[h], 2e-5) << "head " << h;
}

class ClientLibrarySpeculation : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<AttentionClient>> client =
        AttentionClient::Connect("127.0.0.1:" + std::to_string(server_.server->port()));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    stream_ = client_->OpenAttendStream();
  }

  v1::SequenceHandle Create(const Tokens& tokens) {
    const absl::StatusOr<v1::Sequence> sequence = client_->CreateSequence();
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    std::vector<Tensor> tensors;
    std::vector<KvChunk> chunks;
    for (int layer = 0; layer < SmallLayout().num_layers; ++layer) {
      for (const bool value : {false, true}) {
        tensors.push_back(
            FromFloats(RowsOf(tokens, layer, value),
                       {static_cast<int64_t>(tokens.size()), SmallLayout().num_kv_heads, SmallLayout().head_dim},
                       ElementType::kFloat32));
      }
    }
    for (uint32_t layer = 0; layer < tensors.size() / 2; ++layer) {
      chunks.push_back(
          {.layer = layer, .position = 0, .k = tensors[2 * layer].view(), .v = tensors[2 * layer + 1].view()});
    }
    const absl::StatusOr<v1::Sequence> stored = client_->AppendKv(sequence->handle(), chunks);
    EXPECT_TRUE(stored.ok()) << stored.status();
    return sequence->handle();
  }

  v1::Sequence Fork(const v1::SequenceHandle& parent, int64_t num_tokens) {
    v1::ForkSequenceRequest request;
    *request.mutable_parent() = parent;
    request.set_num_tokens(num_tokens);
    const absl::StatusOr<v1::Sequence> child = client_->ForkSequence(request);
    EXPECT_TRUE(child.ok()) << child.status();
    return child.ok() ? *child : v1::Sequence();
  }

  // Appends tokens [begin, tokens.size()), all in flight at once, and checks each answer.
  void Decode(const v1::SequenceHandle& handle, const Tokens& tokens, int64_t begin) {
    SendAndCheck(handle, tokens, begin, /*with_token=*/true);
  }

  // Looks at the whole sequence again, without a change.
  void Recheck(const v1::SequenceHandle& handle, const Tokens& tokens) {
    const absl::StatusOr<v1::Sequence> sequence = client_->GetSequence(handle);
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    EXPECT_EQ(sequence->num_tokens(), static_cast<int64_t>(tokens.size()));
    SendAndCheck(handle, tokens, 0, /*with_token=*/false);
  }

  int64_t free_pages() {
    const absl::StatusOr<v1::ServerInfo> info = client_->GetServerInfo();
    EXPECT_TRUE(info.ok()) << info.status();
    return info.ok() ? info->free_pages() : -1;
  }

  const TestServer server_;
  std::unique_ptr<AttentionClient> client_;
  std::unique_ptr<AttendStream> stream_;

 private:
  void SendAndCheck(const v1::SequenceHandle& handle, const Tokens& tokens, int64_t begin, bool with_token) {
    std::vector<std::future<AttendStream::Result>> answers;
    for (auto position = static_cast<size_t>(begin); position < tokens.size(); ++position) {
      for (int layer = 0; layer < SmallLayout().num_layers; ++layer) {
        answers.push_back(stream_->Submit(
            Request(layer, {Item(handle, tokens[position], layer, static_cast<int64_t>(position), with_token)})));
      }
    }
    for (size_t i = 0; i < answers.size(); ++i) {
      const AttendStream::Result answer = answers[i].get();
      ASSERT_TRUE(answer.ok()) << answer.status();
      const auto end = static_cast<std::ptrdiff_t>(begin + i / SmallLayout().num_layers + 1);
      ExpectAttention(answer->results(0), Tokens(tokens.begin(), tokens.begin() + end),
                      static_cast<int>(i % SmallLayout().num_layers));
    }
  }
};

// Pages hold 16 tokens, so that 40 end in the middle of one, which a side that writes must copy.
TEST_F(ClientLibrarySpeculation, AForkPartsWithoutTouchingItsParent) {
  const int64_t all_pages = free_pages();
  const Tokens common(40, 1);
  const v1::SequenceHandle parent = Create(common);
  EXPECT_EQ(free_pages(), all_pages - 3);
  const v1::Sequence child = Fork(parent, 40);
  const v1::Sequence earlier = Fork(parent, 23);
  EXPECT_EQ(child.num_tokens(), 40);
  EXPECT_EQ(earlier.num_tokens(), 23);
  EXPECT_EQ(free_pages(), all_pages - 3) << "forks share pages";

  const Tokens of_child = common + Tokens(20, 2);
  const Tokens of_earlier = Tokens(23, 1) + Tokens(30, 3);
  const Tokens of_parent = common + Tokens(12, 4);
  Decode(child.handle(), of_child, 40);
  Recheck(parent, common);
  Decode(earlier.handle(), of_earlier, 23);
  Decode(parent, of_parent, 40);
  Recheck(child.handle(), of_child);
  Recheck(earlier.handle(), of_earlier);
  Recheck(parent, of_parent);

  // A parent may go first.
  ASSERT_TRUE(client_->ReleaseSequence(parent).ok());
  Recheck(child.handle(), of_child);
  Recheck(earlier.handle(), of_earlier);
  ASSERT_TRUE(client_->ReleaseSequence(child.handle()).ok());
  ASSERT_TRUE(client_->ReleaseSequence(earlier.handle()).ok());
  EXPECT_EQ(free_pages(), all_pages);
}

TEST_F(ClientLibrarySpeculation, ADraftIsRolledBackAndAnotherTakesItsPlace) {
  const int64_t all_pages = free_pages();
  Tokens accepted(30, 1);
  const v1::SequenceHandle handle = Create(accepted);
  // Round by round: draft 8 tokens, accept the first few, replace the rest; 30 + 3 + 4 crosses a page's end.
  uint64_t draft = 10;
  for (const int64_t accept : {3, 0, 4, 8, 1}) {
    const Tokens drafted = accepted + Tokens(8, draft++);
    Decode(handle, drafted, static_cast<int64_t>(accepted.size()));
    accepted.assign(drafted.begin(), drafted.begin() + static_cast<std::ptrdiff_t>(accepted.size()) + accept);
    const absl::StatusOr<v1::Sequence> truncated =
        client_->TruncateSequence(handle, static_cast<int64_t>(accepted.size()));
    ASSERT_TRUE(truncated.ok()) << truncated.status();
    EXPECT_EQ(truncated->num_tokens(), static_cast<int64_t>(accepted.size()));
    Recheck(handle, accepted);
  }
  EXPECT_EQ(accepted.size(), 46U);
  EXPECT_EQ(free_pages(), all_pages - 3) << "rolled back drafts give their pages back";
  const absl::StatusOr<v1::Sequence> too_long = client_->TruncateSequence(handle, 47);
  EXPECT_EQ(too_long.status().code(), absl::StatusCode::kOutOfRange) << too_long.status();
}

// Several drafts at once, each on a fork; the winner lives on, its siblings and the trunk go.
TEST_F(ClientLibrarySpeculation, ForksRaceAndTheWinnerRollsBack) {
  const Tokens common(18, 1);
  const v1::SequenceHandle trunk = Create(common);
  std::vector<v1::SequenceHandle> drafts;
  for (uint64_t i = 0; i < 4; ++i) {
    drafts.push_back(Fork(trunk, 18).handle());
    Decode(drafts.back(), common + Tokens(20, 20 + i), 18);
  }
  // Back below the fork, on pages that are shared again: the trunk keeps its tokens.
  const absl::StatusOr<v1::Sequence> truncated = client_->TruncateSequence(drafts[2], 5);
  ASSERT_TRUE(truncated.ok()) << truncated.status();
  const Tokens winner = Tokens(5, 1) + Tokens(30, 40);
  Decode(drafts[2], winner, 5);
  Recheck(trunk, common);
  for (const uint64_t i : {0, 1, 3}) Recheck(drafts[i], common + Tokens(20, 20 + i));
  for (const v1::SequenceHandle& gone : {trunk, drafts[0], drafts[1], drafts[3]}) {
    ASSERT_TRUE(client_->ReleaseSequence(gone).ok());
  }
  Recheck(drafts[2], winner);
}

}  // namespace
}  // namespace santa
