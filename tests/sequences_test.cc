// What a caller may rely on about its sequences: exactly-once appends, isolation, exact answers whatever else goes on.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "tests/server_fixture.h"

namespace santa {
namespace {

using grpc::StatusCode;

// With each order of the keys of a page.
class SequencesByKeyOrderTest : public ::testing::TestWithParam<KeyOrder> {
 protected:
  static KvLayout Layout() {
    KvLayout layout = SmallLayout();
    layout.key_order = GetParam();
    return layout;
  }
};
INSTANTIATE_TEST_SUITE_P(KeyOrders, SequencesByKeyOrderTest, ::testing::ValuesIn(kAllKeyOrders),
                         [](const auto& info) { return std::string(Name(info.param)); });

std::vector<v1::AttentionOptions> EveryMethod(KeyOrder order) {
  std::vector<v1::AttentionOptions> all;
  for (const v1::Method method : {v1::METHOD_EXACT, v1::METHOD_SANTA, v1::METHOD_STRATIFIED, v1::METHOD_SYSTEMATIC,
                                  v1::METHOD_S2ANTA_FLASH, v1::METHOD_S2ANTA_PROP, v1::METHOD_COORDINATED}) {
    v1::AttentionOptions options;
    options.set_method(method);
    if (method != v1::METHOD_EXACT) options.set_sample_count(32);
    options.set_seed(7);
    options.set_want_statistics(true);
    all.push_back(options);
  }
  if (order == KeyOrder::kTokenMajor) return all;
  for (const v1::Method method : {v1::METHOD_BERNOULLI_QK, v1::METHOD_SYSTEMATIC, v1::METHOD_COORDINATED}) {
    v1::AttentionOptions options = all.back();
    options.set_method(method);
    options.set_sample_count(method == v1::METHOD_BERNOULLI_QK ? 0 : 32);
    options.set_score_draws(3);
    all.push_back(options);
  }
  return all;
}

v1::Sequence Get(v1::AttentionService::Stub* stub, const v1::SequenceHandle& handle) {
  v1::GetSequenceRequest request;
  *request.mutable_handle() = handle;
  v1::Sequence sequence;
  Call call;
  const grpc::Status status = stub->GetSequence(&call.context, request, &sequence);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return sequence;
}

std::string Bits(const v1::AttendResult& result) {
  EXPECT_EQ(result.status().code(), 0) << result.status().message();
  std::string bits = result.o().data();
  for (const float lse : result.lse()) bits.append(reinterpret_cast<const char*>(&lse), sizeof(lse));
  return bits;
}

TEST_P(SequencesByKeyOrderTest, DecodesExactlyTokenByToken) {
  const TestServer server({}, 64, Layout());
  const v1::SequenceHandle handle = Create(server.stub.get()).handle();
  for (int64_t position = 0; position < 40; ++position) {
    for (int layer = 0; layer < 2; ++layer) {
      ExpectExact(AttendOne(server.stub.get(), layer, Item(handle, 1, layer, position, true)), 1, layer, position);
    }
  }
  const v1::Sequence sequence = Get(server.stub.get(), handle);
  EXPECT_EQ(sequence.num_tokens(), 40);
  EXPECT_EQ(sequence.num_pages(), 3);
}

TEST(SequencesTest, ManyRequestsInFlightOnOneStream) {
  ServerOptions options;
  options.rpc.max_inflight_per_stream = 3;
  const TestServer server(options);
  const v1::SequenceHandle handle = Create(server.stub.get()).handle();
  std::vector<v1::AttendRequest> requests;
  for (int64_t position = 0; position < 200; ++position) {
    requests.push_back(Request(0, {Item(handle, 1, 0, position, true)}, 1000 + position));
  }
  const Answers answers = Attend(server.stub.get(), requests);
  ASSERT_TRUE(answers.status.ok()) << answers.status.error_message();
  ASSERT_EQ(answers.responses.size(), requests.size());
  std::map<uint64_t, const v1::AttendResponse*> by_id;
  for (const v1::AttendResponse& response : answers.responses) by_id[response.request_id()] = &response;
  ASSERT_EQ(by_id.size(), requests.size());
  for (int64_t position = 0; position < 200; ++position) {
    ExpectExact(by_id.at(1000 + position)->results(0), 1, 0, position);
  }
}

TEST_P(SequencesByKeyOrderTest, ARetryGetsTheSameBitsAndAppendsNothing) {
  const TestServer server({}, 128, Layout());
  for (const v1::AttentionOptions& options : EveryMethod(GetParam())) {
    const v1::SequenceHandle handle = Create(server.stub.get()).handle();
    ASSERT_TRUE(Fill(server.stub.get(), handle, 5, 0, 100).ok());
    v1::AttendItem item = Item(handle, 5, 1, 100, true);
    *item.mutable_options() = options;
    const std::string first = Bits(AttendOne(server.stub.get(), 1, item));
    EXPECT_EQ(Get(server.stub.get(), handle).lengths(1), 101);
    EXPECT_EQ(Bits(AttendOne(server.stub.get(), 1, item)), first) << v1::Method_Name(options.method());
    // Later tokens change nothing for an earlier position.
    for (int64_t position = 101; position < 110; ++position) {
      ASSERT_EQ(AttendOne(server.stub.get(), 1, Item(handle, 5, 1, position, true)).status().code(), 0);
    }
    EXPECT_EQ(Bits(AttendOne(server.stub.get(), 1, item)), first) << v1::Method_Name(options.method());
    EXPECT_EQ(Get(server.stub.get(), handle).lengths(1), 110);

    v1::AttendItem other = item;
    (*other.mutable_v()->mutable_data())[5] ^= 1;
    const v1::AttendResult refused = AttendOne(server.stub.get(), 1, other);
    EXPECT_EQ(refused.status().code(), StatusCode::FAILED_PRECONDITION) << refused.status().message();
  }
}

TEST_P(SequencesByKeyOrderTest, AnUploadRepeatsHarmlessly) {
  const TestServer server({}, 64, Layout());
  const v1::SequenceHandle handle = Create(server.stub.get()).handle();
  v1::AppendKvRequest first = Chunk(handle, 3, 0, 0, 30);
  v1::AppendKvRequest overlapping = Chunk(handle, 3, 0, 20, 25);
  overlapping.clear_handle();  // the one before stays in force
  v1::AppendKvResponse response;
  ASSERT_TRUE(Append(server.stub.get(), {first, overlapping, overlapping}, &response).ok());
  EXPECT_EQ(response.tokens_appended(), 45);
  EXPECT_EQ(response.sequence().lengths(0), 45);
  EXPECT_EQ(response.sequence().lengths(1), 0);
  EXPECT_EQ(response.sequence().num_tokens(), 0);
  ExpectExact(AttendOne(server.stub.get(), 0, Item(handle, 3, 0, 44, false)), 3, 0, 44);

  (*overlapping.mutable_k()->mutable_data())[0] ^= 1;
  const grpc::Status status = Append(server.stub.get(), {first, overlapping}, &response);
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION) << status.error_message();
  EXPECT_EQ(Get(server.stub.get(), handle).lengths(0), 45);
}

// Alone, and amid 32 others, in other pages, on another server: bit for bit the same.
TEST_P(SequencesByKeyOrderTest, AnAnswerDoesNotDependOnItsCompany) {
  constexpr uint64_t kKey = 99;
  constexpr int64_t kTokens = 150;
  ServerOptions server_options;
  server_options.rpc.max_items_per_request = 64;
  const TestServer alone(server_options, 64, Layout());
  const TestServer crowded(server_options, 1024, Layout());
  const v1::SequenceHandle single = Create(alone.stub.get(), 0, kKey).handle();
  ASSERT_TRUE(Fill(alone.stub.get(), single, 1, 0, kTokens).ok());

  std::vector<v1::SequenceHandle> crowd;
  crowd.reserve(33);
  for (int i = 0; i < 33; ++i) crowd.push_back(Create(crowded.stub.get(), 0, i == 16 ? kKey : 1000 + i).handle());
  // In small chunks by turns, so that the sequences' pages lie between each other.
  for (int64_t position = 0; position < kTokens; position += 30) {
    for (int i = 0; i < 33; ++i) {
      ASSERT_TRUE(Fill(crowded.stub.get(), crowd[i], i == 16 ? 1 : 100 + i, position, 30).ok());
    }
  }
  for (const v1::AttentionOptions& options : EveryMethod(GetParam())) {
    v1::AttendItem item = Item(single, 1, 0, kTokens, true);
    *item.mutable_options() = options;
    const v1::AttendResult expected = AttendOne(alone.stub.get(), 0, item);

    std::vector<v1::AttendItem> items;
    for (int i = 0; i < 33; ++i) {
      items.push_back(Item(crowd[i], i == 16 ? 1 : 100 + i, 0, i == 16 ? kTokens : kTokens - 1 - i, i == 16));
      *items.back().mutable_options() = EveryMethod(GetParam())[i % 6];
    }
    *items[16].mutable_options() = options;
    const Answers answers = Attend(crowded.stub.get(), {Request(0, items)});
    ASSERT_EQ(answers.responses.size(), 1U) << answers.status.error_message();
    const v1::AttendResult& result = answers.responses[0].results(16);
    EXPECT_EQ(Bits(result), Bits(expected)) << v1::Method_Name(options.method());
    EXPECT_EQ(result.statistics().value_rows_read(), expected.statistics().value_rows_read());
    EXPECT_EQ(result.statistics().kv_bytes_read(), expected.statistics().kv_bytes_read());
    EXPECT_EQ(result.statistics().visible_tokens(), kTokens + 1);
    EXPECT_GE(result.statistics().batch_items(), 33);
  }
}

TEST(SequencesTest, AFullPoolRefusesAndLosesNothing) {
  const TestServer server({}, 12);
  v1::AttentionService::Stub* stub = server.stub.get();
  // Room for 12 pages of 16 tokens: three sequences of 60 tokens, four pages each.
  std::vector<v1::SequenceHandle> handles;
  for (int i = 0; i < 3; ++i) {
    handles.push_back(Create(stub).handle());
    ASSERT_TRUE(Fill(stub, handles.back(), i, 0, 60).ok());
  }
  const v1::SequenceHandle fourth = Create(stub).handle();
  const grpc::Status upload = Fill(stub, fourth, 3, 0, 1);
  EXPECT_EQ(upload.error_code(), StatusCode::RESOURCE_EXHAUSTED) << upload.error_message();
  // Four more tokens fit each sequence's last page; the fifth does not.
  for (int64_t position = 60; position < 64; ++position) {
    std::vector<v1::AttendItem> items;
    items.reserve(3);
    for (int i = 0; i < 3; ++i) items.push_back(Item(handles[i], i, 0, position, true));
    const Answers answers = Attend(stub, {Request(0, items)});
    ASSERT_EQ(answers.responses.size(), 1U);
    for (int i = 0; i < 3; ++i) ExpectExact(answers.responses[0].results(i), i, 0, position);
  }
  const Answers full =
      Attend(stub, {Request(0, {Item(handles[0], 0, 0, 64, true), Item(handles[1], 1, 0, 63, false)})});
  ASSERT_EQ(full.responses.size(), 1U);
  EXPECT_EQ(full.responses[0].results(0).status().code(), StatusCode::RESOURCE_EXHAUSTED);
  ExpectExact(full.responses[0].results(1), 1, 0, 63);
  for (int i = 0; i < 3; ++i) {
    for (const int64_t position : {0, 15, 16, 59, 63}) {
      ExpectExact(AttendOne(stub, 0, Item(handles[i], i, 0, position, false)), i, 0, position);
    }
    ExpectExact(AttendOne(stub, 1, Item(handles[i], i, 1, 59, false)), i, 1, 59);
  }
  // A release makes room at once.
  v1::ReleaseSequenceRequest release;
  *release.mutable_handle() = handles[2];
  v1::ReleaseSequenceResponse released;
  Call call;
  ASSERT_TRUE(stub->ReleaseSequence(&call.context, release, &released).ok());
  ASSERT_TRUE(Fill(stub, fourth, 3, 0, 64).ok());
  ExpectExact(AttendOne(stub, 1, Item(fourth, 3, 1, 63, false)), 3, 1, 63);
}

TEST_P(SequencesByKeyOrderTest, AForkSharesAndThenParts) {
  const TestServer server({}, 64, Layout());
  v1::AttentionService::Stub* stub = server.stub.get();
  const v1::SequenceHandle parent = Create(stub).handle();
  ASSERT_TRUE(Fill(stub, parent, 1, 0, 40).ok());
  v1::ForkSequenceRequest request;
  *request.mutable_parent() = parent;
  request.set_num_tokens(40);
  v1::Sequence child;
  {
    Call call;
    ASSERT_TRUE(stub->ForkSequence(&call.context, request, &child).ok());
  }
  // The child goes on with other tokens, the parent with its own.
  v1::AttendItem item = Item(child.handle(), 2, 0, 40, true);
  const v1::AttendResult of_child = AttendOne(stub, 0, item);
  ASSERT_EQ(of_child.status().code(), 0) << of_child.status().message();
  ExpectExact(AttendOne(stub, 0, Item(parent, 1, 0, 40, true)), 1, 0, 40);
  EXPECT_EQ(Bits(AttendOne(stub, 0, item)), Bits(of_child));

  // Rolling the child back to the common part makes it the parent again.
  v1::TruncateSequenceRequest truncate;
  *truncate.mutable_handle() = child.handle();
  truncate.set_num_tokens(40);
  v1::Sequence truncated;
  Call call;
  ASSERT_TRUE(stub->TruncateSequence(&call.context, truncate, &truncated).ok());
  EXPECT_EQ(truncated.lengths(0), 40);
  ExpectExact(AttendOne(stub, 0, Item(child.handle(), 1, 0, 40, true)), 1, 0, 40);
}

TEST(SequencesTest, TenantsDoNotSeeEachOther) {
  ServerOptions options;
  options.authenticator = *Authenticator::Parse("red-token red\nblue-token blue\n");
  const TestServer server(options);
  v1::AttentionService::Stub* stub = server.stub.get();
  v1::Sequence red;
  {
    Call call("red-token");
    ASSERT_TRUE(stub->CreateSequence(&call.context, {}, &red).ok());
  }
  const auto get = [&](const std::string& token) {
    v1::GetSequenceRequest request;
    *request.mutable_handle() = red.handle();
    v1::Sequence sequence;
    Call call(token);
    return stub->GetSequence(&call.context, request, &sequence).error_code();
  };
  EXPECT_EQ(get("red-token"), StatusCode::OK);
  EXPECT_EQ(get("blue-token"), StatusCode::NOT_FOUND);
  EXPECT_EQ(get("green-token"), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(get(""), StatusCode::UNAUTHENTICATED);

  const auto attend = [&](const std::string& token, v1::AttendResponse* response) {
    Call call(token);
    const auto stream = stub->Attend(&call.context);
    stream->Write(Request(0, {Item(red.handle(), 1, 0, 0, true)}));
    stream->WritesDone();
    stream->Read(response);
    v1::AttendResponse rest;
    while (stream->Read(&rest)) {
    }
    return stream->Finish().error_code();
  };
  v1::AttendResponse response;
  EXPECT_EQ(attend("blue-token", &response), StatusCode::OK);
  ASSERT_EQ(response.results_size(), 1);
  EXPECT_EQ(response.results(0).status().code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(attend("", &response), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(attend("red-token", &response), StatusCode::OK);
  ExpectExact(response.results(0), 1, 0, 0);

  const auto count = [&](const std::string& token) {
    v1::ListSequencesResponse list;
    Call call(token);
    EXPECT_TRUE(stub->ListSequences(&call.context, {}, &list).ok());
    return list.sequences_size();
  };
  EXPECT_EQ(count("red-token"), 1);
  EXPECT_EQ(count("blue-token"), 0);
}

TEST(SequencesTest, AListComesAPageAtATime) {
  const TestServer server;
  std::vector<uint64_t> made;
  made.reserve(7);
  for (int i = 0; i < 7; ++i) made.push_back(Create(server.stub.get()).handle().id());
  std::vector<uint64_t> listed;
  v1::ListSequencesRequest request;
  request.set_page_size(3);
  int pages = 0;
  do {
    v1::ListSequencesResponse response;
    Call call;
    ASSERT_TRUE(server.stub->ListSequences(&call.context, request, &response).ok());
    for (const v1::Sequence& sequence : response.sequences()) listed.push_back(sequence.handle().id());
    request.set_page_token(response.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_EQ(listed, made);
  EXPECT_EQ(pages, 3);
}

TEST(SequencesTest, LimitsOnSequencesAndStreams) {
  ServerOptions options;
  options.store.max_sequences = 2;
  options.rpc.max_streams = 1;
  const TestServer server(options);
  Create(server.stub.get());
  Create(server.stub.get());
  {
    v1::Sequence sequence;
    Call call;
    const grpc::Status third = server.stub->CreateSequence(&call.context, {}, &sequence);
    EXPECT_EQ(third.error_code(), StatusCode::RESOURCE_EXHAUSTED) << third.error_message();
  }
  Call first;
  const auto stream = server.stub->Attend(&first.context);
  // An answer proves that the stream is open on the server.
  ASSERT_TRUE(stream->Write(Request(9, {v1::AttendItem()})));
  v1::AttendResponse response;
  ASSERT_TRUE(stream->Read(&response));
  const Answers second = Attend(server.stub.get(), {Request(0, {v1::AttendItem()})});
  EXPECT_EQ(second.status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << second.status.error_message();
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(Eventually([&] { return Attend(server.stub.get(), {Request(0, {v1::AttendItem()})}).status.ok(); }));
}

}  // namespace
}  // namespace santa
