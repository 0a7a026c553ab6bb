// Every kind of request that is not as it should be gets its canonical code and a message that names field and value,
// and the server lives on: after each, a good request is answered exactly.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/server_fixture.h"

namespace santa {
namespace {

using grpc::StatusCode;

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr uint64_t kSequence = 11;  // the numbers that the stored tokens come from
constexpr int64_t kLength = 20;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Expected {
  StatusCode code;
  std::string message;  // a part of it
};

class MalformedTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    ServerOptions options;
    options.rpc.max_items_per_request = 8;
    options.rpc.max_message_bytes = 1 << 20;
    options.store.max_tokens_per_sequence = 200;
    options.store.max_sequences = 16;
    options.store.max_lease = absl::Hours(1);
    server_ = new TestServer(options);
    good_ = new v1::SequenceHandle(Create(stub()).handle());
    ASSERT_TRUE(Fill(stub(), *good_, kSequence, 0, kLength).ok());
  }
  static void TearDownTestSuite() {
    delete server_;
    delete good_;
  }

  static v1::AttentionService::Stub* stub() { return server_->stub.get(); }
  static const v1::SequenceHandle& good() { return *good_; }
  static v1::SequenceHandle Stale() {
    v1::SequenceHandle handle = good();
    handle.set_generation(handle.generation() + 1);
    return handle;
  }

  static void ExpectStillServing(const std::string& after) {
    SCOPED_TRACE("a good request after: " + after);
    ExpectExact(AttendOne(stub(), 0, Item(good(), kSequence, 0, kLength - 1, true)), kSequence, 0, kLength - 1);
    v1::GetSequenceRequest request;
    *request.mutable_handle() = good();
    v1::Sequence sequence;
    Call call;
    ASSERT_TRUE(stub()->GetSequence(&call.context, request, &sequence).ok());
    EXPECT_EQ(sequence.lengths(0), kLength);
    EXPECT_EQ(sequence.lengths(1), kLength);
  }

  static void ExpectStatus(const std::string& name, int code, const std::string& message, const Expected& expected) {
    EXPECT_EQ(code, static_cast<int>(expected.code)) << name << ": " << message;
    EXPECT_NE(message.find(expected.message), std::string::npos)
        << name << ": \"" << message << "\" lacks \"" << expected.message << "\"";
    ExpectStillServing(name);
  }

  static TestServer* server_;
  static v1::SequenceHandle* good_;
};

TestServer* MalformedTest::server_ = nullptr;
v1::SequenceHandle* MalformedTest::good_ = nullptr;

struct ItemCase {
  std::string name;
  std::function<void(v1::AttendItem*)> spoil;
  Expected expected;
};

std::vector<ItemCase> ItemCases() {
  using Item = v1::AttendItem;
  const StatusCode invalid = StatusCode::INVALID_ARGUMENT;
  const StatusCode unimplemented = StatusCode::UNIMPLEMENTED;
  const auto options = [](Item* item) { return item->mutable_options(); };
  const auto sampled = [](Item* item, v1::Method method, uint32_t samples) {
    item->mutable_options()->set_method(method);
    item->mutable_options()->set_sample_count(samples);
  };
  const auto poison = [](v1::Tensor* tensor, size_t element, float value) {
    tensor->mutable_data()->replace(element * sizeof(float), sizeof(float),
                                    std::string(reinterpret_cast<const char*>(&value), sizeof(float)));
  };
  return {
      {"no handle", [](Item* i) { i->clear_handle(); }, {invalid, "items[0].handle is absent"}},
      {"unknown id", [](Item* i) { i->mutable_handle()->set_id(987654); }, {StatusCode::NOT_FOUND, "987654"}},
      {"id 0", [](Item* i) { i->mutable_handle()->set_id(0); }, {StatusCode::NOT_FOUND, "no sequence of id 0"}},
      {"largest id", [](Item* i) { i->mutable_handle()->set_id(~uint64_t{0}); }, {StatusCode::NOT_FOUND, "1844674407"}},
      {"stale generation",
       [](Item* i) { i->mutable_handle()->set_generation(5); },
       {StatusCode::NOT_FOUND, "generation 5"}},
      {"negative position", [](Item* i) { i->set_position(-1); }, {invalid, "items[0].position is -1"}},
      {"least position", [](Item* i) { i->set_position(-kHuge - 1); }, {invalid, "position is -9223372036854775808"}},
      {"position past the end",
       [](Item* i) { i->set_position(kLength + 1); },
       {StatusCode::OUT_OF_RANGE, "has length 20"}},
      {"huge position", [](Item* i) { i->set_position(kHuge); }, {StatusCode::OUT_OF_RANGE, "9223372036854775807"}},
      {"query past the end",
       [](Item* i) { i->clear_k(), i->clear_v(), i->set_position(kLength); },
       {StatusCode::OUT_OF_RANGE, "20"}},
      {"query far past the end",
       [](Item* i) { i->clear_k(), i->clear_v(), i->set_position(kHuge); },
       {StatusCode::OUT_OF_RANGE, "9223372036854775807"}},
      {"other bytes",
       [&](Item* i) { poison(i->mutable_k(), 3, 0.125F); },
       {StatusCode::FAILED_PRECONDITION, "position"}},
      {"no q", [](Item* i) { i->clear_q(); }, {invalid, "items[0].q is absent"}},
      {"q without dtype", [](Item* i) { i->mutable_q()->clear_dtype(); }, {invalid, "q.dtype is unspecified"}},
      {"q of an unknown dtype",
       [](Item* i) { i->mutable_q()->set_dtype(static_cast<v1::DataType>(77)); },
       {unimplemented, "q.dtype is 77"}},
      {"q of a negative dtype",
       [](Item* i) { i->mutable_q()->set_dtype(static_cast<v1::DataType>(-2)); },
       {unimplemented, "q.dtype is -2"}},
      {"q without shape", [](Item* i) { i->mutable_q()->clear_shape(); }, {invalid, "q.shape is []"}},
      {"q of another shape",
       [](Item* i) { i->mutable_q()->set_shape(1, 3); },
       {invalid, "q.shape is [1, 3, 8]; allowed is [1, 4, 8]"}},
      {"q flat", [](Item* i) { i->mutable_q()->mutable_shape()->Resize(2, 0); }, {invalid, "q.shape is [1, 4]"}},
      {"q of four extents", [](Item* i) { i->mutable_q()->add_shape(1); }, {invalid, "q.shape is [1, 4, 8, 1]"}},
      {"several query tokens",
       [](Item* i) { i->mutable_q()->set_shape(0, 2); },
       {unimplemented, "q.shape is [2, 4, 8]"}},
      {"no query token", [](Item* i) { i->mutable_q()->set_shape(0, 0); }, {invalid, "q.shape is [0, 4, 8]"}},
      {"negative extent", [](Item* i) { i->mutable_q()->set_shape(2, -8); }, {invalid, "q.shape is [1, 4, -8]"}},
      {"huge extents",
       [](Item* i) { i->mutable_q()->set_shape(1, kHuge), i->mutable_q()->set_shape(2, kHuge); },
       {invalid, "q.shape is [1, 9223372036854775807"}},
      {"q too short", [](Item* i) { i->mutable_q()->mutable_data()->resize(127); }, {invalid, "127 bytes"}},
      {"q too long", [](Item* i) { i->mutable_q()->mutable_data()->resize(129); }, {invalid, "129 bytes"}},
      {"q empty", [](Item* i) { i->mutable_q()->clear_data(); }, {invalid, "q.data is 0 bytes"}},
      {"q of the size of another dtype",
       [](Item* i) { i->mutable_q()->set_dtype(v1::DATA_TYPE_BFLOAT16); },
       {invalid, "allowed is 64 for shape [1, 4, 8] of bf16"}},
      {"NaN in q", [=](Item* i) { poison(i->mutable_q(), 31, kNan); }, {invalid, "q.data: element 31 is nan"}},
      {"infinity in q",
       [=](Item* i) { poison(i->mutable_q(), 5, -kInfinity); },
       {invalid, "q.data: element 5 is -inf"}},
      {"k alone", [](Item* i) { i->clear_v(); }, {invalid, "items[0].v is absent"}},
      {"v alone", [](Item* i) { i->clear_k(); }, {invalid, "items[0].k is absent"}},
      {"k of another shape", [](Item* i) { i->mutable_k()->set_shape(1, 4); }, {invalid, "k.shape is [1, 4, 8]"}},
      {"two tokens", [](Item* i) { i->mutable_k()->set_shape(0, 2); }, {invalid, "k.shape is [2, 2, 8]"}},
      {"v too short", [](Item* i) { i->mutable_v()->mutable_data()->resize(60); }, {invalid, "v.data is 60 bytes"}},
      {"k without dtype", [](Item* i) { i->mutable_k()->clear_dtype(); }, {invalid, "k.dtype is unspecified"}},
      {"v of an unknown dtype",
       [](Item* i) { i->mutable_v()->set_dtype(static_cast<v1::DataType>(9)); },
       {unimplemented, "v.dtype is 9"}},
      {"k and v of two dtypes",
       [](Item* i) {
         i->mutable_v()->set_dtype(v1::DATA_TYPE_FLOAT16);
         i->mutable_v()->mutable_data()->assign(32, '\0');
       },
       {invalid, "v.dtype is fp16; allowed is that of k, fp32"}},
      {"NaN in k", [=](Item* i) { poison(i->mutable_k(), 7, kNan); }, {invalid, "k.data: element 7 is nan"}},
      {"infinity in k", [=](Item* i) { poison(i->mutable_k(), 0, kInfinity); }, {invalid, "k.data: element 0 is inf"}},
      {"infinity in v",
       [=](Item* i) { poison(i->mutable_v(), 15, -kInfinity); },
       {invalid, "v.data: element 15 is -inf"}},
      {"an unknown method",
       [=](Item* i) { options(i)->set_method(static_cast<v1::Method>(42)); },
       {unimplemented, "options.method is 42"}},
      {"a negative method",
       [=](Item* i) { options(i)->set_method(static_cast<v1::Method>(-1)); },
       {unimplemented, "options.method is -1"}},
      {"samples of EXACT", [=](Item* i) { sampled(i, v1::METHOD_EXACT, 1); }, {invalid, "sample_count is 1"}},
      {"samples of no method", [=](Item* i) { sampled(i, v1::METHOD_UNSPECIFIED, 9); }, {invalid, "sample_count is 9"}},
      {"no samples", [=](Item* i) { sampled(i, v1::METHOD_S2ANTA_FLASH, 0); }, {invalid, "sample_count is 0"}},
      {"no samples of SANTA", [=](Item* i) { sampled(i, v1::METHOD_SANTA, 0); }, {invalid, "sample_count is 0"}},
      {"too many samples",
       [=](Item* i) { sampled(i, v1::METHOD_S2ANTA_PROP, (1U << 20) + 1); },
       {invalid, "sample_count is 1048577"}},
      {"the most samples", [=](Item* i) { sampled(i, v1::METHOD_STRATIFIED, ~0U); }, {invalid, "4294967295"}},
      {"no score draws",
       [=](Item* i) { sampled(i, v1::METHOD_BERNOULLI_QK, 0); },
       {invalid, "options.score_draws is 0; it must be in [1, 1024] for BERNOULLI_QK"}},
      {"samples of BERNOULLI_QK",
       [=](Item* i) {
         sampled(i, v1::METHOD_BERNOULLI_QK, 5);
         options(i)->set_score_draws(1);
       },
       {invalid, "options.sample_count is 5; it must be 0 for BERNOULLI_QK"}},
      {"score draws of EXACT",
       [=](Item* i) { options(i)->set_score_draws(1); },
       {invalid, "options.score_draws is 1; it must be 0 for EXACT"}},
      {"too many score draws",
       [=](Item* i) {
         sampled(i, v1::METHOD_SANTA, 5);
         options(i)->set_score_draws(~0U);
       },
       {invalid, "options.score_draws is 4294967295; it must be 0 (exact scores) or in [1, 1024]"}},
      {"score draws with a target",
       [=](Item* i) {
         sampled(i, v1::METHOD_COORDINATED, 0);
         options(i)->set_target_relative_error(0.1F);
         options(i)->set_score_draws(1);
       },
       {invalid, "options.score_draws is 1; it must be 0 where there is a target_relative_error"}},
      {"score draws over token-major keys",
       [=](Item* i) {
         sampled(i, v1::METHOD_BERNOULLI_QK, 0);
         options(i)->set_score_draws(1);
       },
       {unimplemented, "method is BERNOULLI_QK, score_draws is 1, key_order is token"}},
      {"score draws of SKETCHED",
       [=](Item* i) {
         sampled(i, v1::METHOD_SKETCHED, 5);
         options(i)->set_score_draws(2);
       },
       {unimplemented, "method is SKETCHED, score_draws is 2"}},
      {"NaN scale", [=](Item* i) { options(i)->set_scale(kNan); }, {invalid, "options.scale is nan"}},
      {"infinite scale", [=](Item* i) { options(i)->set_scale(kInfinity); }, {invalid, "options.scale is inf"}},
      {"negative scale", [=](Item* i) { options(i)->set_scale(-0.5F); }, {invalid, "options.scale is -0.5"}},
      {"NaN soft cap", [=](Item* i) { options(i)->set_soft_cap(kNan); }, {invalid, "options.soft_cap is nan"}},
      {"infinite soft cap",
       [=](Item* i) { options(i)->set_soft_cap(-kInfinity); },
       {invalid, "options.soft_cap is -inf"}},
      {"negative soft cap", [=](Item* i) { options(i)->set_soft_cap(-3); }, {invalid, "options.soft_cap is -3"}},
      {"an unknown rounding",
       [=](Item* i) { options(i)->set_budget_rounding(static_cast<v1::BudgetRounding>(6)); },
       {unimplemented, "budget_rounding is 6"}},
      {"too few sinks", [=](Item* i) { options(i)->add_sink_logits(1); }, {invalid, "sink_logits is 1 long"}},
      {"too many sinks",
       [=](Item* i) { options(i)->mutable_sink_logits()->Resize(1000, 0); },
       {invalid, "sink_logits is 1000 long"}},
      {"NaN sink",
       [=](Item* i) {
         options(i)->mutable_sink_logits()->Resize(4, 0);
         options(i)->set_sink_logits(2, kNan);
       },
       {invalid, "sink_logits[2] is nan"}},
      {"infinite sink",
       [=](Item* i) { options(i)->mutable_sink_logits()->Resize(4, -kInfinity); },
       {invalid, "sink_logits[0] is -inf"}},
  };
}

TEST_F(MalformedTest, Items) {
  const std::vector<ItemCase> cases = ItemCases();
  EXPECT_GE(cases.size(), 60U);
  for (const ItemCase& c : cases) {
    v1::AttendItem item = Item(good(), kSequence, 0, kLength - 1, true);
    c.spoil(&item);
    const v1::AttendResult result = AttendOne(stub(), 0, item);
    EXPECT_FALSE(result.has_o()) << c.name;
    EXPECT_EQ(result.lse_size(), 0) << c.name;
    ExpectStatus(c.name, result.status().code(), result.status().message(), c.expected);
  }
}

TEST_F(MalformedTest, AnItemFailsAlone) {
  const v1::SequenceHandle other = Create(stub()).handle();
  ASSERT_TRUE(Fill(stub(), other, 12, 0, 3).ok());
  for (const ItemCase& c : ItemCases()) {
    v1::AttendItem bad = Item(good(), kSequence, 0, kLength - 1, true);
    c.spoil(&bad);
    const Answers answers = Attend(stub(), {Request(0, {bad, Item(other, 12, 0, 2, false)}, 77)});
    ASSERT_TRUE(answers.status.ok()) << c.name << ": " << answers.status.error_message();
    ASSERT_EQ(answers.responses.size(), 1U) << c.name;
    ASSERT_EQ(answers.responses[0].request_id(), 77U);
    ASSERT_EQ(answers.responses[0].results_size(), 2) << c.name;
    EXPECT_EQ(answers.responses[0].results(0).status().code(), static_cast<int>(c.expected.code)) << c.name;
    ExpectExact(answers.responses[0].results(1), 12, 0, 2);
  }
}

TEST_F(MalformedTest, Layers) {
  for (const uint32_t layer : {2U, 3U, 1U << 31, ~0U}) {
    v1::AttendRequest request =
        Request(0, {Item(good(), kSequence, 0, 5, false), Item(Stale(), kSequence, 0, 5, true)});
    request.set_layer(layer);
    const Answers answers = Attend(stub(), {request});
    ASSERT_TRUE(answers.status.ok());
    ASSERT_EQ(answers.responses.size(), 1U);
    ASSERT_EQ(answers.responses[0].results_size(), 2);
    for (const v1::AttendResult& result : answers.responses[0].results()) {
      ExpectStatus("layer", result.status().code(), result.status().message(),
                   {StatusCode::INVALID_ARGUMENT, "layer is " + std::to_string(layer) + "; allowed is [0, 2)"});
    }
  }
}

TEST_F(MalformedTest, TheSameSequenceTwice) {
  const Answers answers =
      Attend(stub(), {Request(0, {Item(good(), kSequence, 0, 5, false), Item(good(), kSequence, 0, 6, false)})});
  ASSERT_EQ(answers.responses.size(), 1U);
  ExpectExact(answers.responses[0].results(0), kSequence, 0, 5);
  const v1::ItemStatus& second = answers.responses[0].results(1).status();
  ExpectStatus("twice", second.code(), second.message(), {StatusCode::INVALID_ARGUMENT, "items[1].handle.id"});
}

// These end the stream; what came before them on it is answered all the same.
TEST_F(MalformedTest, StreamsThatEnd) {
  const v1::AttendRequest fine = Request(0, {Item(good(), kSequence, 0, 5, false)});
  struct {
    std::string name;
    v1::AttendRequest request;
    Expected expected;
  } cases[] = {
      {"no items", Request(0, {}), {StatusCode::INVALID_ARGUMENT, "items is 0 long; allowed is [1, 8]"}},
      {"too many items",
       Request(0, std::vector<v1::AttendItem>(9)),
       {StatusCode::INVALID_ARGUMENT, "items is 9 long; allowed is [1, 8]"}},
      {"far too many items",
       Request(0, std::vector<v1::AttendItem>(400000)),
       {StatusCode::INVALID_ARGUMENT, "items is 400000 long"}},
  };
  for (const auto& c : cases) {
    const Answers answers = Attend(stub(), {fine, c.request, fine});
    ASSERT_EQ(answers.responses.size(), 1U) << c.name;
    ExpectExact(answers.responses[0].results(0), kSequence, 0, 5);
    ExpectStatus(c.name, answers.status.error_code(), answers.status.error_message(), c.expected);
  }
}

TEST_F(MalformedTest, MessagesThatAreTooLarge) {
  v1::AttendRequest request = Request(0, {Item(good(), kSequence, 0, 5, false)});
  request.mutable_items(0)->mutable_q()->mutable_data()->resize(2 << 20);
  const Answers answers = Attend(stub(), {request});
  ExpectStatus("large attend", answers.status.error_code(), answers.status.error_message(),
               {StatusCode::RESOURCE_EXHAUSTED, "larger than max"});
  v1::AppendKvRequest chunk = Chunk(good(), kSequence, 0, kLength, 1);
  chunk.mutable_k()->mutable_data()->resize(2 << 20);
  v1::AppendKvResponse response;
  const grpc::Status status = Append(stub(), {chunk}, &response);
  ExpectStatus("large append", status.error_code(), status.error_message(),
               {StatusCode::RESOURCE_EXHAUSTED, "larger than max"});
}

TEST_F(MalformedTest, BytesThatAreNoMessage) {
  const std::string service = "/santa.attention.v1.AttentionService/";
  for (const std::string& bytes : {std::string("\xff\xff\xff"), std::string("\x1a\x05"), std::string(100, '\x07')}) {
    for (const char* method : {"Attend", "AppendKv"}) {
      const RawAnswer answer = CallRaw(server_->NewChannel(), service + method, bytes);
      ExpectStatus(method, answer.status.error_code(), answer.status.error_message(),
                   {StatusCode::INVALID_ARGUMENT, "not a request of this method"});
    }
    // gRPC itself reads the messages of unary calls, and this is what it says of those that it cannot.
    const RawAnswer answer = CallRaw(server_->NewChannel(), service + "GetSequence", bytes);
    ExpectStatus("GetSequence", answer.status.error_code(), answer.status.error_message(),
                 {StatusCode::UNIMPLEMENTED, ""});
  }
  const RawAnswer answer = CallRaw(server_->NewChannel(), service + "Detach", "");
  ExpectStatus("Detach", answer.status.error_code(), answer.status.error_message(), {StatusCode::UNIMPLEMENTED, ""});
}

TEST_F(MalformedTest, Uploads) {
  using Request = v1::AppendKvRequest;
  const StatusCode invalid = StatusCode::INVALID_ARGUMENT;
  struct {
    std::string name;
    std::function<void(Request*)> spoil;
    Expected expected;
  } cases[] = {
      {"no handle", [](Request* r) { r->clear_handle(); }, {invalid, "handle is absent"}},
      {"unknown id", [](Request* r) { r->mutable_handle()->set_id(4711); }, {StatusCode::NOT_FOUND, "4711"}},
      {"stale", [](Request* r) { *r->mutable_handle() = Stale(); }, {StatusCode::NOT_FOUND, "generation"}},
      {"layer", [](Request* r) { r->set_layer(2); }, {invalid, "layer is 2; allowed is [0, 2)"}},
      {"negative position", [](Request* r) { r->set_position(-7); }, {invalid, "position is -7"}},
      {"gap", [](Request* r) { r->set_position(kLength + 1); }, {StatusCode::OUT_OF_RANGE, "has length 20"}},
      {"huge position", [](Request* r) { r->set_position(kHuge); }, {StatusCode::OUT_OF_RANGE, "9223372036854775807"}},
      {"no k", [](Request* r) { r->clear_k(); }, {invalid, "k is absent"}},
      {"no v", [](Request* r) { r->clear_v(); }, {invalid, "v is absent"}},
      {"no tokens", [](Request* r) { r->mutable_k()->set_shape(0, 0); }, {invalid, "k.shape is [0, 2, 8]"}},
      {"negative tokens", [](Request* r) { r->mutable_k()->set_shape(0, -3); }, {invalid, "k.shape is [-3, 2, 8]"}},
      {"huge tokens",
       [](Request* r) { r->mutable_k()->set_shape(0, kHuge); },
       {invalid, "k.shape is [9223372036854775807"}},
      {"more tokens than bytes", [](Request* r) { r->mutable_k()->set_shape(0, 4); }, {invalid, "k.data is 192 bytes"}},
      {"v of another length", [](Request* r) { r->mutable_v()->set_shape(0, 2); }, {invalid, "v.shape is [2, 2, 8]"}},
      {"heads", [](Request* r) { r->mutable_k()->set_shape(1, 3); }, {invalid, "k.shape is [3, 3, 8]"}},
      {"dtype",
       [](Request* r) { r->mutable_k()->set_dtype(static_cast<v1::DataType>(5)); },
       {StatusCode::UNIMPLEMENTED, "k.dtype is 5"}},
      {"NaN",
       [](Request* r) { r->mutable_v()->mutable_data()->replace(8, 4, std::string("\0\0\xc0\x7f", 4)); },
       {invalid, "v.data: element 2 is nan"}},
      {"past the most tokens",
       [](Request* r) { *r = Chunk(good(), kSequence, 0, kLength, 181); },
       {StatusCode::OUT_OF_RANGE, "200"}},
  };
  for (const auto& c : cases) {
    // The first message is good; the error tells that it is about the second.
    Request bad = Chunk(good(), kSequence, 0, kLength - 3, 3);
    c.spoil(&bad);
    if (!bad.has_handle()) {
      v1::AppendKvResponse response;
      const grpc::Status status = Append(stub(), {bad}, &response);
      ExpectStatus(c.name, status.error_code(), status.error_message(), c.expected);
      continue;
    }
    v1::AppendKvResponse response;
    const grpc::Status status = Append(stub(), {Chunk(good(), kSequence, 1, 0, 4), bad}, &response);
    ExpectStatus(c.name, status.error_code(), status.error_message(), c.expected);
    EXPECT_NE(status.error_message().find("message 2 of the stream"), std::string::npos) << status.error_message();
  }
  v1::AppendKvResponse response;
  const grpc::Status status = Append(stub(), {}, &response);
  ExpectStatus("no message", status.error_code(), status.error_message(), {invalid, "0 messages"});
}

TEST_F(MalformedTest, UnaryCalls) {
  const StatusCode invalid = StatusCode::INVALID_ARGUMENT;
  v1::Sequence sequence;
  const auto create = [&](double lease) {
    v1::CreateSequenceRequest request;
    request.set_lease_seconds(lease);
    Call call;
    return stub()->CreateSequence(&call.context, request, &sequence);
  };
  const auto fork = [&](const v1::SequenceHandle* parent, std::optional<int64_t> tokens, double lease) {
    v1::ForkSequenceRequest request;
    if (parent != nullptr) *request.mutable_parent() = *parent;
    if (tokens.has_value()) request.set_num_tokens(*tokens);
    request.set_lease_seconds(lease);
    Call call;
    return stub()->ForkSequence(&call.context, request, &sequence);
  };
  const auto truncate = [&](const v1::SequenceHandle* handle, int64_t tokens) {
    v1::TruncateSequenceRequest request;
    if (handle != nullptr) *request.mutable_handle() = *handle;
    request.set_num_tokens(tokens);
    Call call;
    return stub()->TruncateSequence(&call.context, request, &sequence);
  };
  const auto release = [&](const v1::SequenceHandle* handle) {
    v1::ReleaseSequenceRequest request;
    if (handle != nullptr) *request.mutable_handle() = *handle;
    v1::ReleaseSequenceResponse response;
    Call call;
    return stub()->ReleaseSequence(&call.context, request, &response);
  };
  const auto get = [&](const v1::SequenceHandle* handle) {
    v1::GetSequenceRequest request;
    if (handle != nullptr) *request.mutable_handle() = *handle;
    Call call;
    return stub()->GetSequence(&call.context, request, &sequence);
  };
  const auto list = [&](int32_t page_size, const std::string& token) {
    v1::ListSequencesRequest request;
    request.set_page_size(page_size);
    request.set_page_token(token);
    v1::ListSequencesResponse response;
    Call call;
    return stub()->ListSequences(&call.context, request, &response);
  };
  const v1::SequenceHandle stale = Stale();
  struct {
    std::string name;
    grpc::Status status;
    Expected expected;
  } cases[] = {
      {"negative lease", create(-1), {invalid, "lease_seconds is -1"}},
      {"long lease", create(3601), {invalid, "lease_seconds is 3601; allowed is 0 (the default) or (0, 3600]"}},
      {"NaN lease", create(std::nan("")), {invalid, "lease_seconds is nan"}},
      {"infinite lease", create(HUGE_VAL), {invalid, "lease_seconds is inf"}},
      {"huge lease", create(1e308), {invalid, "lease_seconds is 1e+308"}},
      {"fork of nothing", fork(nullptr, {}, 0), {invalid, "parent is absent"}},
      {"fork of a stale handle", fork(&stale, {}, 0), {StatusCode::NOT_FOUND, "generation"}},
      {"fork of more than there is", fork(&good(), kLength + 1, 0), {StatusCode::OUT_OF_RANGE, "num_tokens is 21"}},
      {"fork of a huge part", fork(&good(), kHuge, 0), {StatusCode::OUT_OF_RANGE, "9223372036854775807"}},
      {"fork of a negative part", fork(&good(), -1, 0), {invalid, "num_tokens is -1"}},
      {"fork with a NaN lease", fork(&good(), 1, std::nan("")), {invalid, "lease_seconds is nan"}},
      {"truncate nothing", truncate(nullptr, 0), {invalid, "handle is absent"}},
      {"truncate a stale handle", truncate(&stale, 0), {StatusCode::NOT_FOUND, "generation"}},
      {"truncate past the end", truncate(&good(), kLength + 1), {StatusCode::OUT_OF_RANGE, "num_tokens is 21"}},
      {"truncate to less than nothing", truncate(&good(), -kHuge), {invalid, "num_tokens is -9223372036854775807"}},
      {"release nothing", release(nullptr), {invalid, "handle is absent"}},
      {"release a stale handle", release(&stale), {StatusCode::NOT_FOUND, "generation"}},
      {"get nothing", get(nullptr), {invalid, "handle is absent"}},
      {"get a stale handle", get(&stale), {StatusCode::NOT_FOUND, "generation"}},
      {"negative page", list(-1, ""), {invalid, "page_size is -1"}},
      {"large page", list(1001, ""), {invalid, "page_size is 1001; allowed is [0, 1000]"}},
      {"made-up token", list(0, "next"), {invalid, "page_token is \"next\""}},
      {"long token", list(0, std::string(100000, 'f')), {invalid, "page_token is \"fff"}},
  };
  for (const auto& c : cases) ExpectStatus(c.name, c.status.error_code(), c.status.error_message(), c.expected);
}

}  // namespace
}  // namespace santa
