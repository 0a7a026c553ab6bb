#include "client/attention_client.h"

#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/attend_stream.h"
#include "client/backoff.h"
#include "client/connection.h"

namespace santa {
namespace {

using client_internal::Backoff;
using client_internal::Connection;
using client_internal::IsRetryable;
using client_internal::ToAbseil;
using Stub = v1::AttentionService::Stub;

// An upload's message: large enough to fill the pipe, small enough that the server handles it without a hitch.
constexpr int64_t kTargetMessageBytes = int64_t{1} << 20;
// Of a message beyond the bytes of k and v: handle, layer, position, shapes, lengths.
constexpr int64_t kMessageOverhead = 512;

absl::Status Validate(const ClientOptions& options) {
  if (options.client_certificate.empty() != options.client_key.empty()) {
    return absl::InvalidArgumentError("client_certificate and client_key go together: one of them is empty");
  }
  if (!options.use_tls && !(options.root_certificates + options.client_certificate + options.server_name).empty()) {
    return absl::InvalidArgumentError("certificates or a server name are given, but use_tls is false");
  }
  // gRPC aborts the process on bytes that a header cannot carry.
  if (!std::all_of(options.bearer_token.begin(), options.bearer_token.end(),
                   [](char c) { return c > ' ' && c < 127; })) {
    return absl::InvalidArgumentError("bearer_token has a character that is not printable ASCII, or a space");
  }
  if (options.retry.max_attempts < 1 || options.retry.multiplier < 1 || options.retry.jitter < 0 ||
      options.retry.jitter > 1) {
    return absl::InvalidArgumentError(absl::StrCat("retry: max_attempts ", options.retry.max_attempts,
                                                   " must be >= 1, multiplier ", options.retry.multiplier,
                                                   " >= 1, jitter ", options.retry.jitter, " in [0, 1]"));
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  // Requests are checked against the server's max_message_bytes before they are sent; answers we take as they come.
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetMaxReceiveMessageSize(-1);
  // A connection of its own rather than one shared by all clients of the process.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(options.retry.initial_backoff)));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(options.retry.max_backoff)));
  if (options.keepalive > absl::ZeroDuration()) {
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(absl::ToInt64Milliseconds(options.keepalive)));
  }
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  const std::shared_ptr<grpc::ChannelCredentials> credentials =
      options.use_tls ? grpc::SslCredentials({.pem_root_certs = options.root_certificates,
                                              .pem_private_key = options.client_key,
                                              .pem_cert_chain = options.client_certificate})
                      : grpc::InsecureChannelCredentials();
  return grpc::CreateCustomChannel(target, credentials, arguments);
}

void SetDeadline(grpc::ClientContext& context, absl::Time deadline) {
  if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
}

// Waits before the next attempt; false when none may follow.
bool WaitToRetry(const Connection& connection, Backoff& backoff, absl::Time deadline) {
  if (!backoff.MayRetry()) return false;
  const absl::Time next = absl::Now() + backoff.Delay();
  if (next >= deadline) return false;
  connection.WaitForChannel(next);
  absl::SleepFor(next - absl::Now());
  return true;
}

template <typename Request, typename Response>
using Rpc = grpc::Status (Stub::*)(grpc::ClientContext*, const Request&, Response*);

// A unary call with its retries. `failures`, if not null, counts the attempts that failed before the last one. When
// time runs out during a retry, the error that caused the retry is returned: it says more.
template <typename Request, typename Response>
absl::StatusOr<Response> Call(const Connection& connection, Rpc<Request, Response> rpc, const Request& request,
                              const RetryPolicy& retry, absl::Time deadline, int* failures = nullptr) {
  Backoff backoff(retry);
  grpc::Status last_failure;
  while (true) {
    grpc::ClientContext context;
    connection.Authorize(context);
    SetDeadline(context, deadline);
    Response response;
    grpc::Status status = (connection.stub.get()->*rpc)(&context, request, &response);
    if (failures != nullptr) *failures = backoff.failures();
    if (status.ok()) return response;
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED && !last_failure.ok()) {
      return ToAbseil(last_failure);
    }
    if (!IsRetryable(status.error_code()) || !WaitToRetry(connection, backoff, deadline)) {
      return ToAbseil(status);
    }
    last_failure = std::move(status);
  }
}

absl::Status Validate(const KvChunk& chunk) {
  const auto where = [&chunk] { return absl::StrCat("layer ", chunk.layer, ", position ", chunk.position, ": "); };
  if (chunk.position < 0) return absl::InvalidArgumentError(where() + "the position is negative");
  for (const auto& [name, tensor] : {std::pair("k", &chunk.k), std::pair("v", &chunk.v)}) {
    if (absl::Status status = Validate(*tensor); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(where(), name, ": ", status.message()));
    }
    if (!IsFloatingPoint(tensor->type) || tensor->shape.size() != 3 || tensor->data.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where(), name, " must be a floating-point tensor of shape [tokens >= 1, kv_heads, head_dim]"));
    }
  }
  if (chunk.k.type != chunk.v.type || chunk.k.shape != chunk.v.shape) {
    return absl::InvalidArgumentError(where() + "k and v differ in dtype or shape");
  }
  return absl::OkStatus();
}

}  // namespace

class AttentionClient::Impl {
 public:
  Impl(std::shared_ptr<Connection> connection, absl::Duration rpc_timeout)
      : connection_(std::move(connection)), rpc_timeout_(rpc_timeout) {}

  const std::shared_ptr<const Connection>& connection() const { return connection_; }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(Rpc<Request, Response> rpc, const Request& request, int* failures = nullptr,
                                absl::Time deadline = absl::InfiniteFuture()) const {
    return ::santa::Call(*connection_, rpc, request, connection_->retry, std::min(deadline, absl::Now() + rpc_timeout_),
                         failures);
  }

  int64_t TokensPerMessage(const KvChunk& chunk) const;
  grpc::Status Upload(const v1::SequenceHandle& handle, std::span<const KvChunk> chunks,
                      std::span<const int64_t> stored, absl::Time deadline, v1::AppendKvResponse& response) const;

 private:
  const std::shared_ptr<const Connection> connection_;
  const absl::Duration rpc_timeout_;
};

int64_t AttentionClient::Impl::TokensPerMessage(const KvChunk& chunk) const {
  const int64_t limit = connection_->info.limits().max_message_bytes();
  const int64_t size = limit > 0 ? std::min(limit, kTargetMessageBytes) : kTargetMessageBytes;
  const auto token_bytes = static_cast<int64_t>(chunk.k.data.size() + chunk.v.data.size()) / chunk.k.shape[0];
  return std::max<int64_t>(1, (size - kMessageOverhead) / token_bytes);
}

// One stream that carries the tokens at and above stored[layer].
grpc::Status AttentionClient::Impl::Upload(const v1::SequenceHandle& handle, std::span<const KvChunk> chunks,
                                           std::span<const int64_t> stored, absl::Time deadline,
                                           v1::AppendKvResponse& response) const {
  grpc::ClientContext context;
  connection_->Authorize(context);
  SetDeadline(context, deadline);
  const std::unique_ptr<grpc::ClientWriter<v1::AppendKvRequest>> writer =
      connection_->stub->AppendKv(&context, &response);
  bool open = true;
  for (const KvChunk& chunk : chunks) {
    const int64_t tokens = chunk.k.shape[0];
    const int64_t known = chunk.layer < stored.size() ? stored[chunk.layer] : 0;
    const int64_t step = TokensPerMessage(chunk);
    for (int64_t begin = std::clamp<int64_t>(known - chunk.position, 0, tokens); open && begin < tokens;
         begin += step) {
      const int64_t end = std::min(begin + step, tokens);
      v1::AppendKvRequest request;
      *request.mutable_handle() = handle;
      request.set_layer(chunk.layer);
      request.set_position(chunk.position + begin);
      *request.mutable_k() = ToWire(Rows(chunk.k, begin, end));
      *request.mutable_v() = ToWire(Rows(chunk.v, begin, end));
      open = writer->Write(request);
    }
  }
  if (open) writer->WritesDone();
  return writer->Finish();
}

AttentionClient::AttentionClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionClient::~AttentionClient() = default;

absl::StatusOr<std::unique_ptr<AttentionClient>> AttentionClient::Connect(const std::string& target,
                                                                          const ClientOptions& options) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  auto connection = std::make_shared<Connection>();
  connection->channel = MakeChannel(target, options);
  connection->stub = v1::AttentionService::NewStub(connection->channel);
  connection->raw_stub = std::make_unique<grpc::GenericStub>(connection->channel);
  if (!options.bearer_token.empty()) connection->authorization = absl::StrCat("Bearer ", options.bearer_token);
  connection->retry = options.retry;

  // A server that is only just starting may refuse any number of attempts.
  RetryPolicy patient = options.retry;
  patient.max_attempts = INT32_MAX;
  patient.max_backoff = std::min(patient.max_backoff, absl::Seconds(1));
  absl::StatusOr<v1::ServerInfo> info = Call(*connection, &Stub::GetServerInfo, v1::GetServerInfoRequest(), patient,
                                             absl::Now() + options.connect_timeout);
  if (!info.ok()) {
    return absl::Status(
        info.status().code(),
        absl::StrCat("cannot connect to ", target, options.use_tls ? " with" : " without", " TLS (connect_timeout ",
                     absl::FormatDuration(options.connect_timeout), "): ", info.status().message()));
  }
  connection->info = *std::move(info);
  return std::unique_ptr<AttentionClient>(
      new AttentionClient(std::make_unique<Impl>(std::move(connection), options.rpc_timeout)));
}

const v1::ServerInfo& AttentionClient::info() const { return impl_->connection()->info; }

absl::StatusOr<v1::ServerInfo> AttentionClient::GetServerInfo() {
  return impl_->Call(&Stub::GetServerInfo, v1::GetServerInfoRequest());
}

absl::StatusOr<v1::Sequence> AttentionClient::CreateSequence(const v1::CreateSequenceRequest& request) {
  return impl_->Call(&Stub::CreateSequence, request);
}

absl::StatusOr<v1::Sequence> AttentionClient::ForkSequence(const v1::ForkSequenceRequest& request) {
  return impl_->Call(&Stub::ForkSequence, request);
}

absl::StatusOr<v1::Sequence> AttentionClient::TruncateSequence(const v1::SequenceHandle& handle, int64_t num_tokens) {
  v1::TruncateSequenceRequest request;
  *request.mutable_handle() = handle;
  request.set_num_tokens(num_tokens);
  return impl_->Call(&Stub::TruncateSequence, request);
}

absl::Status AttentionClient::ReleaseSequence(const v1::SequenceHandle& handle) {
  v1::ReleaseSequenceRequest request;
  *request.mutable_handle() = handle;
  int failures = 0;
  const absl::Status status = impl_->Call(&Stub::ReleaseSequence, request, &failures).status();
  // An attempt whose answer was lost may have released it.
  return absl::IsNotFound(status) && failures > 0 ? absl::OkStatus() : status;
}

absl::StatusOr<v1::Sequence> AttentionClient::GetSequence(const v1::SequenceHandle& handle) {
  v1::GetSequenceRequest request;
  *request.mutable_handle() = handle;
  return impl_->Call(&Stub::GetSequence, request);
}

absl::StatusOr<std::vector<v1::Sequence>> AttentionClient::ListSequences() {
  std::vector<v1::Sequence> sequences;
  v1::ListSequencesRequest request;
  request.set_page_size(1000);
  do {
    absl::StatusOr<v1::ListSequencesResponse> page = impl_->Call(&Stub::ListSequences, request);
    if (!page.ok()) return page.status();
    for (v1::Sequence& sequence : *page->mutable_sequences()) sequences.push_back(std::move(sequence));
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return sequences;
}

absl::StatusOr<v1::Sequence> AttentionClient::AppendKv(const v1::SequenceHandle& handle,
                                                       std::span<const KvChunk> chunks, absl::Time deadline) {
  for (const KvChunk& chunk : chunks) {
    if (absl::Status status = Validate(chunk); !status.ok()) return status;
  }
  if (chunks.empty()) return GetSequence(handle);

  Backoff backoff(impl_->connection()->retry);
  std::vector<int64_t> stored;  // tokens of each layer known to be there; empty: send everything
  while (true) {
    v1::AppendKvResponse response;
    const grpc::Status status = impl_->Upload(handle, chunks, stored, deadline, response);
    if (status.ok()) return std::move(*response.mutable_sequence());
    if (!IsRetryable(status.error_code()) || !WaitToRetry(*impl_->connection(), backoff, deadline)) {
      return ToAbseil(status);
    }

    v1::GetSequenceRequest request;
    *request.mutable_handle() = handle;
    absl::StatusOr<v1::Sequence> sequence = impl_->Call(&Stub::GetSequence, request, nullptr, deadline);
    if (!sequence.ok()) return sequence.status();
    const std::vector<int64_t> lengths(sequence->lengths().begin(), sequence->lengths().end());
    if (lengths != stored && !stored.empty()) backoff.Reset();  // the last attempt got somewhere
    stored = lengths;
    const bool complete = std::all_of(chunks.begin(), chunks.end(), [&stored](const KvChunk& chunk) {
      return chunk.layer < stored.size() && chunk.position + chunk.k.shape[0] <= stored[chunk.layer];
    });
    if (complete) return sequence;  // only the answer was lost
  }
}

std::unique_ptr<AttendStream> AttentionClient::OpenAttendStream(const AttendStreamOptions& options) {
  AttendStreamOptions checked = options;
  checked.max_in_flight = std::max<size_t>(1, options.max_in_flight);
  return std::unique_ptr<AttendStream>(
      new AttendStream(std::make_unique<AttendStream::Impl>(impl_->connection(), checked)));
}

OwnedSequence::OwnedSequence(OwnedSequence&& other) noexcept
    : client_(std::exchange(other.client_, nullptr)), sequence_(std::move(other.sequence_)) {}

OwnedSequence& OwnedSequence::operator=(OwnedSequence&& other) noexcept {
  std::swap(client_, other.client_);
  std::swap(sequence_, other.sequence_);
  return *this;
}

OwnedSequence::~OwnedSequence() {
  // When the server cannot be reached, the lease ends the sequence.
  if (client_ != nullptr) client_->ReleaseSequence(sequence_.handle()).IgnoreError();
}

absl::StatusOr<OwnedSequence> OwnedSequence::Create(AttentionClient& client, const v1::CreateSequenceRequest& request) {
  absl::StatusOr<v1::Sequence> sequence = client.CreateSequence(request);
  if (!sequence.ok()) return sequence.status();
  return OwnedSequence(&client, *std::move(sequence));
}

}  // namespace santa
