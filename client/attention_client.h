// The C++ client of the attention server.
//
//     auto client = AttentionClient::Connect("127.0.0.1:50051");           // StatusOr<unique_ptr<AttentionClient>>
//     auto sequence = (*client)->CreateSequence();                          // StatusOr<v1::Sequence>
//     (*client)->AppendKv(sequence->handle(), {.layer = 0, .position = 0, .k = k.view(), .v = v.view()});
//     std::unique_ptr<AttendStream> stream = (*client)->OpenAttendStream();
//     std::future<...> answer = stream->Submit(request);                    // many may be in flight
//
// client/quickstart.cc is a whole program. Requests and answers are the API's own messages; the .proto file says what
// each field means. Every function is thread safe unless it says otherwise.
//
// Retries. A call that fails with UNAVAILABLE (the connection broke, the server restarts) is tried again after an
// exponential back-off with jitter, up to RetryPolicy::max_attempts in a row. Appends and decode steps carry their
// position, and the server answers a repeated one as it did the first time, bit for bit: no token is lost or doubled.
#ifndef SANTA_CLIENT_ATTENTION_CLIENT_H_
#define SANTA_CLIENT_ATTENTION_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/placed_step.h"
#include "client/retry_policy.h"
#include "client/tensor.h"
#include "client/wire.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa {

struct ClientOptions {
  absl::Duration connect_timeout = absl::Seconds(10);
  absl::Duration rpc_timeout = absl::Seconds(30);  // of a unary call, its retries included
  std::string bearer_token;                        // sent as "authorization: Bearer <token>" with every call

  bool use_tls = false;
  std::string root_certificates;   // PEM; empty: the system's
  std::string client_certificate;  // PEM; both or neither of these two
  std::string client_key;
  std::string server_name;  // the name that the server's certificate must carry, where it is not the target's

  // HTTP/2 pings that find a dead peer; 0: none. Servers drop clients that ping more often than they allow.
  absl::Duration keepalive = absl::ZeroDuration();

  RetryPolicy retry;
};

// A run of tokens of one layer: k and v are [tokens, H_kv, D], floating point.
struct KvChunk {
  uint32_t layer = 0;
  int64_t position = 0;  // of the first token
  TensorView k;
  TensorView v;
};

struct AttendStreamOptions {
  size_t max_in_flight = 256;  // requests submitted and not answered; Submit waits at this bound. >= 1
  // Where the server runs on this machine as this user, messages pass through memory that both have mapped: gRPC opens,
  // keeps and ends it. Where it cannot be, they go over gRPC. A thread of the stream's waits for answers, on a server
  // with a GPU without sleeping while there are steps in flight.
  bool share_memory = true;
};

struct AttendStreamStatistics {
  int64_t submitted = 0;
  int64_t answered = 0;           // requests whose answer came from the server
  int64_t failed = 0;             // requests that ended without one
  int64_t streams_opened = 0;     // 1 when nothing ever broke
  int64_t requests_resent = 0;    // sent again on a new stream
  int64_t unknown_responses = 0;  // answers to requests no longer waited for: past their deadline, or duplicates
  bool shares_memory = false;     // the open stream does, with the server
};

// Decode steps over one bidirectional stream, any number in flight, answered in the order in which they finish.
//
// When the stream breaks with UNAVAILABLE (or the server ends it), unanswered requests are sent again, in the order of
// their submission, on a new one. When it ends with another error, or max_attempts attempts in a row bring no answer,
// the unanswered requests fail with that status; a later Submit opens a new stream.
class AttendStream {
 public:
  using Result = absl::StatusOr<v1::AttendResponse>;
  // Called exactly once, from a thread of the library or within Submit. It must not block and not destroy the stream.
  // It may Submit: there Submit does not wait for max_in_flight.
  using Callback = std::function<void(Result)>;

  ~AttendStream();  // Unanswered requests fail with CANCELLED before it returns. Not concurrently with other calls.
  AttendStream(const AttendStream&) = delete;
  AttendStream& operator=(const AttendStream&) = delete;

  // Sends the request; its request_id is overwritten. The response holds a result for each item, in order, and each
  // result has a status of its own (see ToStatus). An error here is about the request as a whole:
  //   DEADLINE_EXCEEDED   `deadline` passed. The server may or may not have taken the step: to find out, send the same
  //                       one again.
  //   INVALID_ARGUMENT    larger than the server's max_message_bytes; nothing was sent.
  //   others              the stream failed as said above.
  // Steps of one sequence and layer that are in flight together reach the server in the order of their submission.
  std::future<Result> Submit(v1::AttendRequest request, absl::Time deadline = absl::InfiniteFuture());
  void Submit(v1::AttendRequest request, absl::Time deadline, Callback done);

  // The same without a copy at this end, where the server shares its memory: room for the tensors of a step, which
  // `request` tells with dtype and shape and no data. Once they are written there the step is submitted; `done` reads
  // the answer before it returns. Where memory is not shared, or many steps are placed and not submitted, they lie in
  // this process's memory and are sent as others are.
  // INVALID_ARGUMENT: a tensor has data, or no dtype, or a shape of no size; or the request is too large, as above.
  absl::StatusOr<PlacedStep> Place(const v1::AttendRequest& request);
  using PlacedCallback = std::function<void(const absl::StatusOr<AttendAnswer>&)>;
  void Submit(PlacedStep step, absl::Time deadline, PlacedCallback done);

  // Submits and waits. Not from a callback.
  Result Attend(v1::AttendRequest request, absl::Time deadline = absl::InfiniteFuture());

  AttendStreamStatistics statistics() const;

 private:
  friend class AttentionClient;
  class Impl;
  explicit AttendStream(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class AttentionClient {
 public:
  // `target` is "host:port" (or any gRPC target, "unix:/path" among them). Waits for the server's answer to
  // GetServerInfo. UNAVAILABLE, with the last attempt's reason, or DEADLINE_EXCEEDED when none comes in
  // connect_timeout; UNAUTHENTICATED at once; INVALID_ARGUMENT for options that contradict each other.
  static absl::StatusOr<std::unique_ptr<AttentionClient>> Connect(const std::string& target,
                                                                  const ClientOptions& options = {});
  ~AttentionClient();  // Streams that it opened live on.
  AttentionClient(const AttentionClient&) = delete;
  AttentionClient& operator=(const AttentionClient&) = delete;

  // As of Connect. The layout and limits do not change in a server's life; free_pages and num_sequences do.
  const v1::ServerInfo& info() const;
  absl::StatusOr<v1::ServerInfo> GetServerInfo();

  // A create or fork that is retried may leave a sequence behind that nobody holds; its lease ends it.
  absl::StatusOr<v1::Sequence> CreateSequence(const v1::CreateSequenceRequest& request = {});
  absl::StatusOr<v1::Sequence> ForkSequence(const v1::ForkSequenceRequest& request);
  absl::StatusOr<v1::Sequence> TruncateSequence(const v1::SequenceHandle& handle, int64_t num_tokens);
  // OK also when a retry finds the sequence gone.
  absl::Status ReleaseSequence(const v1::SequenceHandle& handle);
  absl::StatusOr<v1::Sequence> GetSequence(const v1::SequenceHandle& handle);
  absl::StatusOr<std::vector<v1::Sequence>> ListSequences();  // all of them, page by page

  // Uploads the chunks in order, cut into messages below the server's max_message_bytes. Returns when all is stored.
  // Tokens at positions that are stored already must carry the same bytes (FAILED_PRECONDITION otherwise). After a
  // broken stream it asks for the lengths that the server has and goes on from there: tokens below them are then not
  // sent, so not compared either. After an error the tokens already taken stay stored. Returns the sequence as it then
  // stands. Blocks; not from an AttendStream's callback.
  absl::StatusOr<v1::Sequence> AppendKv(const v1::SequenceHandle& handle, std::span<const KvChunk> chunks,
                                        absl::Time deadline = absl::InfiniteFuture());
  absl::StatusOr<v1::Sequence> AppendKv(const v1::SequenceHandle& handle, const KvChunk& chunk,
                                        absl::Time deadline = absl::InfiniteFuture()) {
    return AppendKv(handle, std::span(&chunk, 1), deadline);
  }

  // Cheap; the stream itself is opened by the first Submit. One stream serves many threads and sequences.
  std::unique_ptr<AttendStream> OpenAttendStream(const AttendStreamOptions& options = {});

 private:
  class Impl;
  explicit AttentionClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Releases the sequence when it goes out of scope. Not thread safe. `client` must outlive it.
class OwnedSequence {
 public:
  OwnedSequence() = default;
  OwnedSequence(AttentionClient* client, v1::Sequence sequence) : client_(client), sequence_(std::move(sequence)) {}
  OwnedSequence(OwnedSequence&& other) noexcept;
  OwnedSequence& operator=(OwnedSequence&& other) noexcept;
  ~OwnedSequence();

  static absl::StatusOr<OwnedSequence> Create(AttentionClient& client, const v1::CreateSequenceRequest& request = {});

  const v1::SequenceHandle& handle() const { return sequence_.handle(); }
  const v1::Sequence& sequence() const { return sequence_; }  // as of its creation

 private:
  AttentionClient* client_ = nullptr;
  v1::Sequence sequence_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_ATTENTION_CLIENT_H_
