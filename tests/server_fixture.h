// A server on a real socket, and a model's side of it: tensors by rule, so that any answer can be checked.
#ifndef SANTA_TESTS_SERVER_FIXTURE_H_
#define SANTA_TESTS_SERVER_FIXTURE_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "proto/santa/attention/v1/attention.grpc.pb.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "server/server.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

// 2 layers, 4 query heads, 2 key/value heads, D = 8, pages of 16 tokens, fp32: 4 KiB a page.
KvLayout SmallLayout();

// In-process, on 127.0.0.1 and ports of the system's choice; on the CPU backend, or another.
struct TestServer {
  explicit TestServer(const ServerOptions& options = {}, int32_t num_pages = 64,
                      const KvLayout& layout = SmallLayout());
  TestServer(const ServerOptions& options, std::unique_ptr<Backend> backend) { Start(options, std::move(backend)); }
  // A connection of its own.
  std::shared_ptr<grpc::Channel> NewChannel() const;

  std::unique_ptr<AttentionServer> server;
  std::unique_ptr<v1::AttentionService::Stub> stub;

 private:
  void Start(const ServerOptions& options, std::unique_ptr<Backend> backend);
};

v1::Tensor MakeTensor(const std::vector<int64_t>& shape, const std::vector<float>& values);

// Rows of a sequence that is named by a number: [count][H_kv][D] of k or v, [H][D] of q; within (-1, 1).
std::vector<float> Rows(const KvLayout& layout, uint64_t sequence, int layer, bool value, int64_t position,
                        int64_t count);
std::vector<float> Query(const KvLayout& layout, uint64_t sequence, int layer, int64_t position);

v1::AppendKvRequest Chunk(const v1::SequenceHandle& handle, uint64_t sequence, int layer, int64_t position,
                          int64_t count);
// The item that attends at `position`, with its token if `with_token`.
v1::AttendItem Item(const v1::SequenceHandle& handle, uint64_t sequence, int layer, int64_t position, bool with_token);

// Calls with metadata and a deadline that no test should meet.
struct Call {
  explicit Call(const std::string& token = "");
  grpc::ClientContext context;
};

v1::Sequence Create(v1::AttentionService::Stub* stub, double lease_seconds = 0, uint64_t sampling_key = 0);
grpc::Status Append(v1::AttentionService::Stub* stub, const std::vector<v1::AppendKvRequest>& chunks,
                    v1::AppendKvResponse* response);
// Stores `count` tokens in every layer.
grpc::Status Fill(v1::AttentionService::Stub* stub, const v1::SequenceHandle& handle, uint64_t sequence,
                  int64_t position, int64_t count);

struct Answers {
  grpc::Status status;
  std::vector<v1::AttendResponse> responses;
};
// One stream: writes all requests, then reads until the end.
Answers Attend(v1::AttentionService::Stub* stub, const std::vector<v1::AttendRequest>& requests);
v1::AttendRequest Request(int layer, const std::vector<v1::AttendItem>& items, uint64_t request_id = 1);
// One item; its result, or the stream's status in its place.
v1::AttendResult AttendOne(v1::AttentionService::Stub* stub, int layer, const v1::AttendItem& item);

// Fails the test unless the result is exact attention (fp64, by definition) of the sequence at `position`.
void ExpectExact(const v1::AttendResult& result, uint64_t sequence, int layer, int64_t position,
                 const KvLayout& layout = SmallLayout());

// Waits until it holds; false after a time that no test should take.
bool Eventually(const std::function<bool()>& condition);

// One call of any method, with bytes for messages: the status and the first answer's bytes.
struct RawAnswer {
  grpc::Status status;
  std::string bytes;
};
RawAnswer CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, const std::string& bytes);

}  // namespace santa

#endif  // SANTA_TESTS_SERVER_FIXTURE_H_
