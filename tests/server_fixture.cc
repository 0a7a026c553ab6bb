#include "tests/server_fixture.h"

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/estimators.h"

namespace santa {
namespace {

constexpr std::chrono::seconds kPatience(60);

// A number in (-1, 1) that depends on all of the arguments.
float Value(uint64_t sequence, uint64_t kind, uint64_t position, uint64_t element) {
  uint64_t x = sequence * 0x9e3779b97f4a7c15 + kind * 0xd1b54a32d192ed03 + position * 0x8cb92ba72f3d8dd7 + element;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return static_cast<float>((x ^ (x >> 31)) >> 40) / static_cast<float>(1 << 23) - 1.0F;
}

std::vector<double> ToDoubles(const std::vector<float>& values) { return {values.begin(), values.end()}; }

}  // namespace

KvLayout SmallLayout() {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 8,
          .page_size = 16,
          .dtype = DType::kFloat32};
}

TestServer::TestServer(const ServerOptions& options, int32_t num_pages, const KvLayout& layout) {
  auto backend = MakeCpuBackend({.layout = layout, .num_pages = num_pages, .num_threads = 2});
  if (!backend.ok()) {
    ADD_FAILURE() << backend.status();
    return;
  }
  Start(options, *std::move(backend));
}

void TestServer::Start(const ServerOptions& options, std::unique_ptr<Backend> backend) {
  auto started = AttentionServer::Start(options, std::move(backend));
  if (!started.ok()) {
    ADD_FAILURE() << started.status();
    return;
  }
  server = *std::move(started);
  stub = v1::AttentionService::NewStub(NewChannel());
}

std::shared_ptr<grpc::Channel> TestServer::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server->port()), grpc::InsecureChannelCredentials(),
                                   arguments);
}

v1::Tensor MakeTensor(const std::vector<int64_t>& shape, const std::vector<float>& values) {
  v1::Tensor tensor;
  tensor.set_dtype(v1::DATA_TYPE_FLOAT32);
  for (const int64_t extent : shape) tensor.add_shape(extent);
  tensor.set_data(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  return tensor;
}

std::vector<float> Rows(const KvLayout& layout, uint64_t sequence, int layer, bool value, int64_t position,
                        int64_t count) {
  const int64_t row = static_cast<int64_t>(layout.num_kv_heads) * layout.head_dim;
  std::vector<float> rows;
  rows.reserve(row * count);
  for (int64_t i = position; i < position + count; ++i) {
    for (int64_t e = 0; e < row; ++e) rows.push_back(Value(sequence, layer * 4 + (value ? 1 : 0), i, e));
  }
  return rows;
}

std::vector<float> Query(const KvLayout& layout, uint64_t sequence, int layer, int64_t position) {
  std::vector<float> q;
  q.reserve(layout.num_query_heads * layout.head_dim);
  for (int e = 0; e < layout.num_query_heads * layout.head_dim; ++e) {
    q.push_back(4 * Value(sequence, layer * 4 + 2, position, e));
  }
  return q;
}

v1::AppendKvRequest Chunk(const v1::SequenceHandle& handle, uint64_t sequence, int layer, int64_t position,
                          int64_t count) {
  const KvLayout layout = SmallLayout();
  v1::AppendKvRequest chunk;
  *chunk.mutable_handle() = handle;
  chunk.set_layer(layer);
  chunk.set_position(position);
  const std::vector<int64_t> shape = {count, layout.num_kv_heads, layout.head_dim};
  *chunk.mutable_k() = MakeTensor(shape, Rows(layout, sequence, layer, false, position, count));
  *chunk.mutable_v() = MakeTensor(shape, Rows(layout, sequence, layer, true, position, count));
  return chunk;
}

v1::AttendItem Item(const v1::SequenceHandle& handle, uint64_t sequence, int layer, int64_t position, bool with_token) {
  const KvLayout layout = SmallLayout();
  v1::AttendItem item;
  *item.mutable_handle() = handle;
  item.set_position(position);
  *item.mutable_q() =
      MakeTensor({1, layout.num_query_heads, layout.head_dim}, Query(layout, sequence, layer, position));
  if (with_token) {
    const std::vector<int64_t> shape = {1, layout.num_kv_heads, layout.head_dim};
    *item.mutable_k() = MakeTensor(shape, Rows(layout, sequence, layer, false, position, 1));
    *item.mutable_v() = MakeTensor(shape, Rows(layout, sequence, layer, true, position, 1));
  }
  return item;
}

Call::Call(const std::string& token) {
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  context.set_wait_for_ready(true);
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
}

v1::Sequence Create(v1::AttentionService::Stub* stub, double lease_seconds, uint64_t sampling_key) {
  v1::CreateSequenceRequest request;
  request.set_lease_seconds(lease_seconds);
  request.set_sampling_key(sampling_key);
  v1::Sequence sequence;
  Call call;
  const grpc::Status status = stub->CreateSequence(&call.context, request, &sequence);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return sequence;
}

grpc::Status Append(v1::AttentionService::Stub* stub, const std::vector<v1::AppendKvRequest>& chunks,
                    v1::AppendKvResponse* response) {
  Call call;
  const auto stream = stub->AppendKv(&call.context, response);
  for (const v1::AppendKvRequest& chunk : chunks) {
    if (!stream->Write(chunk)) break;
  }
  stream->WritesDone();
  return stream->Finish();
}

grpc::Status Fill(v1::AttentionService::Stub* stub, const v1::SequenceHandle& handle, uint64_t sequence,
                  int64_t position, int64_t count) {
  std::vector<v1::AppendKvRequest> chunks;
  for (int layer = 0; layer < SmallLayout().num_layers; ++layer) {
    chunks.push_back(Chunk(handle, sequence, layer, position, count));
  }
  v1::AppendKvResponse response;
  return Append(stub, chunks, &response);
}

Answers Attend(v1::AttentionService::Stub* stub, const std::vector<v1::AttendRequest>& requests) {
  Call call;
  const auto stream = stub->Attend(&call.context);
  // Reading beside writing: with many requests the server stops reading until its answers are taken.
  Answers answers;
  std::thread reader([&] {
    v1::AttendResponse response;
    while (stream->Read(&response)) answers.responses.push_back(response);
  });
  for (const v1::AttendRequest& request : requests) {
    if (!stream->Write(request)) break;
  }
  stream->WritesDone();
  reader.join();
  answers.status = stream->Finish();
  return answers;
}

v1::AttendRequest Request(int layer, const std::vector<v1::AttendItem>& items, uint64_t request_id) {
  v1::AttendRequest request;
  request.set_request_id(request_id);
  request.set_layer(layer);
  for (const v1::AttendItem& item : items) *request.add_items() = item;
  return request;
}

v1::AttendResult AttendOne(v1::AttentionService::Stub* stub, int layer, const v1::AttendItem& item) {
  const Answers answers = Attend(stub, {Request(layer, {item})});
  if (answers.status.ok() && answers.responses.size() == 1 && answers.responses[0].results_size() == 1) {
    return answers.responses[0].results(0);
  }
  v1::AttendResult result;
  result.mutable_status()->set_code(answers.status.error_code());
  result.mutable_status()->set_message("the stream ended: " + answers.status.error_message());
  EXPECT_FALSE(answers.status.ok()) << "no answer, and no error";
  return result;
}

void ExpectExact(const v1::AttendResult& result, uint64_t sequence, int layer, int64_t position,
                 const KvLayout& layout) {
  ASSERT_EQ(result.status().code(), 0) << result.status().message();
  const reference::Step step = {.num_query_heads = layout.num_query_heads,
                                .num_kv_heads = layout.num_kv_heads,
                                .head_dim = layout.head_dim,
                                .num_tokens = position + 1,
                                .q = ToDoubles(Query(layout, sequence, layer, position)),
                                .k = ToDoubles(Rows(layout, sequence, layer, false, 0, position + 1)),
                                .v = ToDoubles(Rows(layout, sequence, layer, true, 0, position + 1)),
                                .sink_logits = {},
                                .options = {}};
  const reference::Output expected = reference::Exact(step);
  ASSERT_EQ(result.o().data().size(), expected.o.size() * sizeof(float));
  ASSERT_EQ(result.lse_size(), static_cast<int>(expected.lse.size()));
  std::vector<float> o(expected.o.size());
  std::memcpy(o.data(), result.o().data().data(), result.o().data().size());
  for (size_t i = 0; i < o.size(); ++i) ASSERT_NEAR(o[i], expected.o[i], 2e-5) << "element " << i;
  for (int h = 0; h < result.lse_size(); ++h) ASSERT_NEAR(result.lse(h), expected.lse[h], 2e-5) << "head " << h;
}

bool Eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

RawAnswer CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, const std::string& bytes) {
  grpc::GenericStub stub(channel);
  Call call;
  grpc::CompletionQueue queue;
  const auto stream = stub.PrepareCall(&call.context, method, &queue);
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  RawAnswer answer;
  stream->StartCall(nullptr);
  wait();
  const grpc::Slice slice(bytes);
  stream->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  wait();
  grpc::ByteBuffer response;
  stream->Read(&response, nullptr);
  if (wait()) {
    std::vector<grpc::Slice> slices;
    if (response.Dump(&slices).ok()) {
      for (const grpc::Slice& part : slices) {
        answer.bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
      }
    }
  }
  stream->Finish(&answer.status, nullptr);
  wait();
  queue.Shutdown();
  while (wait()) {
  }
  return answer;
}

}  // namespace santa
