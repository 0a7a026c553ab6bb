// Good requests with a few bytes changed, dropped or doubled: whatever they turn into, each gets a canonical answer,
// and what others stored is answered exactly and given back to the page.
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/server_fixture.h"

namespace santa {
namespace {

using grpc::StatusCode;

constexpr int kMutants = 3000;
constexpr uint64_t kSequence = 21;  // the numbers that the stored tokens come from
constexpr int64_t kLength = 40;

// A good request of every method, on the sequence of the handle.
std::vector<std::pair<std::string, std::string>> GoodRequests(const v1::SequenceHandle& handle) {
  v1::AttendItem item = Item(handle, 5, 1, 18, true);
  item.mutable_options()->set_method(v1::METHOD_S2ANTA_PROP);
  item.mutable_options()->set_sample_count(7);
  item.mutable_options()->set_scale(0.5F);
  item.mutable_options()->set_window(12);
  item.mutable_options()->set_soft_cap(3);
  item.mutable_options()->mutable_sink_logits()->Resize(4, 0.25F);
  item.mutable_options()->set_want_statistics(true);
  v1::ForkSequenceRequest fork;
  *fork.mutable_parent() = handle;
  fork.set_num_tokens(3);
  fork.set_lease_seconds(30);
  v1::TruncateSequenceRequest truncate;
  *truncate.mutable_handle() = handle;
  truncate.set_num_tokens(17);
  v1::GetSequenceRequest get;
  *get.mutable_handle() = handle;
  v1::CreateSequenceRequest create;
  create.set_lease_seconds(20);
  create.set_sampling_key(3);
  v1::ListSequencesRequest list;
  list.set_page_size(2);
  return {
      {"Attend", Request(1, {item}).SerializeAsString()}, {"AppendKv", Chunk(handle, 5, 1, 17, 3).SerializeAsString()},
      {"ForkSequence", fork.SerializeAsString()},         {"TruncateSequence", truncate.SerializeAsString()},
      {"GetSequence", get.SerializeAsString()},           {"CreateSequence", create.SerializeAsString()},
      {"ListSequences", list.SerializeAsString()}};
}

void Mutate(std::string* bytes, std::mt19937_64& random) {
  constexpr unsigned char kTelling[] = {0x00, 0x01, 0x7F, 0x80, 0xFF};
  for (uint64_t i = 1 + random() % 3; i > 0 && !bytes->empty(); --i) {
    // Half of the changes go to the first bytes, where the lengths, tags and numbers are; most of the rest is data.
    const size_t at = random() % (random() % 2 == 0 ? std::min<size_t>(bytes->size(), 64) : bytes->size());
    switch (random() % 5) {
      case 0:
        (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << random() % 8));
        break;
      case 1:
        (*bytes)[at] = static_cast<char>(kTelling[random() % std::size(kTelling)]);
        break;
      case 2:
        bytes->erase(at, 1 + random() % 8);
        break;
      case 3:
        bytes->insert(at, bytes->substr(at, 1 + random() % 16));
        break;
      default:
        bytes->resize(at);
    }
  }
}

int64_t FreePages(const TestServer& server) {
  v1::ServerInfo info;
  Call call;
  EXPECT_TRUE(server.stub->GetServerInfo(&call.context, {}, &info).ok());
  return info.free_pages();
}

void ReleaseAll(const TestServer& server) {
  v1::ListSequencesRequest request;
  request.set_page_size(1000);
  v1::ListSequencesResponse list;
  {
    Call call;
    ASSERT_TRUE(server.stub->ListSequences(&call.context, request, &list).ok());
  }
  for (const v1::Sequence& sequence : list.sequences()) {
    v1::ReleaseSequenceRequest release;
    *release.mutable_handle() = sequence.handle();
    v1::ReleaseSequenceResponse response;
    Call call;
    ASSERT_TRUE(server.stub->ReleaseSequence(&call.context, release, &response).ok());
  }
}

TEST(MutatedRequestsTest, NoneHarmsTheServer) {
  ServerOptions options;
  options.rpc.max_message_bytes = 1 << 20;
  options.store.max_sequences = 500;
  const TestServer server(options, 256);
  v1::AttentionService::Stub* const stub = server.stub.get();
  const v1::SequenceHandle good = Create(stub, 600).handle();
  ASSERT_TRUE(Fill(stub, good, kSequence, 0, kLength).ok());

  // UNIMPLEMENTED is also what gRPC itself makes of a unary call's unreadable message.
  const std::set<StatusCode> canonical = {StatusCode::OK,           StatusCode::INVALID_ARGUMENT,
                                          StatusCode::NOT_FOUND,    StatusCode::FAILED_PRECONDITION,
                                          StatusCode::OUT_OF_RANGE, StatusCode::RESOURCE_EXHAUSTED,
                                          StatusCode::UNIMPLEMENTED};
  std::set<StatusCode> of_calls;
  std::set<StatusCode> of_items;
  std::mt19937_64 random(77);
  const auto channel = server.NewChannel();
  for (int mutant = 0; mutant < kMutants; ++mutant) {
    if (mutant % 100 == 0) {
      ExpectExact(AttendOne(stub, 0, Item(good, kSequence, 0, kLength - 1, true)), kSequence, 0, kLength - 1);
    }
    const v1::SequenceHandle victim = Create(stub, 600).handle();
    ASSERT_TRUE(Fill(stub, victim, 5, 0, 18).ok());
    const auto requests = GoodRequests(victim);
    auto [method, bytes] = requests[mutant % 3 != 0 ? mutant % 2 : random() % requests.size()];
    Mutate(&bytes, random);
    const RawAnswer answer = CallRaw(channel, "/santa.attention.v1.AttentionService/" + method, bytes);
    EXPECT_EQ(canonical.count(answer.status.error_code()), 1U)
        << method << " answers " << answer.status.error_code() << ": " << answer.status.error_message();
    of_calls.insert(answer.status.error_code());
    v1::AttendResponse response;
    if (method == "Attend" && answer.status.ok() && response.ParseFromString(answer.bytes)) {
      for (const v1::AttendResult& result : response.results()) {
        const auto code = static_cast<StatusCode>(result.status().code());
        EXPECT_EQ(canonical.count(code), 1U) << result.status().DebugString();
        of_items.insert(code);
      }
    }
    v1::ReleaseSequenceRequest release;
    *release.mutable_handle() = victim;
    v1::ReleaseSequenceResponse released;
    Call call;
    ASSERT_TRUE(stub->ReleaseSequence(&call.context, release, &released).ok());
  }
  // The mutants reached past the parser. Handles are random, and with them the rarer codes.
  for (const StatusCode code : {StatusCode::OK, StatusCode::INVALID_ARGUMENT, StatusCode::NOT_FOUND}) {
    EXPECT_EQ(of_calls.count(code), 1U) << code;
    EXPECT_EQ(of_items.count(code), 1U) << code;
  }
  EXPECT_EQ(of_calls.count(StatusCode::FAILED_PRECONDITION), 1U);

  ExpectExact(AttendOne(stub, 1, Item(good, kSequence, 1, kLength - 1, false)), kSequence, 1, kLength - 1);
  ReleaseAll(server);
  EXPECT_TRUE(Eventually([&] { return FreePages(server) == 256; })) << FreePages(server);
}

}  // namespace
}  // namespace santa
