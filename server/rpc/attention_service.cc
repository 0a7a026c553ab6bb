#include "server/rpc/attention_service.h"

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/append_stream.h"
#include "server/rpc/attend_stream.h"
#include "server/rpc/begin_stream.h"
#include "server/rpc/convert.h"
#include "server/rpc/shared_attend_call.h"
#include "server/rpc/validate.h"

namespace santa {
namespace {

// Answers a unary call: authenticates, runs body(tenant) -> absl::Status, counts.
template <typename Body>
grpc::ServerUnaryReactor* Answer(ServiceContext* context, grpc::CallbackServerContext* call, const char* method,
                                 Body body) {
  const absl::StatusOr<std::string> tenant = TenantOf(*call, *context->authenticator);
  const absl::Status status = tenant.ok() ? body(*tenant) : tenant.status();
  RecordCall(context, method, status, TraceOf(*call));
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

absl::Status Respond(const absl::StatusOr<SequenceInfo>& info, v1::Sequence* response) {
  if (info.ok()) ToMessage(*info, response);
  return info.status();
}

absl::Status CheckNotNegative(const char* field, int64_t value) {
  if (value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; allowed is 0 or more"));
}

}  // namespace

AttentionService::AttentionService(ServiceContext* context)
    : context_(context),
      page_token_nonce_((uint64_t{std::random_device()()} << 32) | std::random_device()()),
      exchanges_([context](std::span<char> memory) { return context->engine->MapMemory(memory); }),
      poller_(context->asynchronous_device, context->limits.max_shared_bytes,
              [context] { context->engine->RunHere(); }) {}

grpc::ServerUnaryReactor* AttentionService::GetServerInfo(grpc::CallbackServerContext* call,
                                                          const v1::GetServerInfoRequest* /*request*/,
                                                          v1::ServerInfo* response) {
  return Answer(context_, call, "GetServerInfo", [&](const std::string& /*tenant*/) {
    response->set_version(context_->version);
    response->set_backend(context_->backend);
    response->set_device(context_->device);
    ToMessage(context_->layout, response->mutable_layout());
    for (const Method method : context_->methods) response->add_methods(ToMessage(method));
    v1::Limits* limits = response->mutable_limits();
    limits->set_max_sequences(context_->store_limits.max_sequences);
    limits->set_max_tokens_per_sequence(context_->store_limits.max_tokens_per_sequence);
    limits->set_total_pages(context_->pool->num_pages());
    limits->set_max_items_per_request(context_->limits.max_items_per_request);
    limits->set_max_message_bytes(context_->limits.max_message_bytes);
    limits->set_max_sample_count(kMaxSampleCount);
    limits->set_max_lease_seconds(absl::ToDoubleSeconds(context_->store_limits.max_lease));
    limits->set_default_lease_seconds(absl::ToDoubleSeconds(context_->store_limits.default_lease));
    response->set_free_pages(context_->pool->free_pages());
    response->set_num_sequences(context_->store->size());
    const int64_t pages = context_->pool->num_pages();
    response->set_kv_bytes(static_cast<int64_t>(context_->layout.page_bytes()) * pages);
    response->set_sketch_bytes(static_cast<int64_t>(context_->layout.sketch_page_bytes()) * pages);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* AttentionService::CreateSequence(grpc::CallbackServerContext* call,
                                                           const v1::CreateSequenceRequest* request,
                                                           v1::Sequence* response) {
  return Answer(context_, call, "CreateSequence", [&](const std::string& tenant) {
    if (absl::Status status = context_->streams->CheckServing(); !status.ok()) return status;
    const absl::StatusOr<absl::Duration> lease = ToLease(request->lease_seconds(), context_->store_limits.max_lease);
    if (!lease.ok()) return lease.status();
    return Respond(context_->store->Create(tenant, *lease, request->sampling_key(), absl::Now()), response);
  });
}

grpc::ServerUnaryReactor* AttentionService::ForkSequence(grpc::CallbackServerContext* call,
                                                         const v1::ForkSequenceRequest* request,
                                                         v1::Sequence* response) {
  return Answer(context_, call, "ForkSequence", [&](const std::string& tenant) {
    if (absl::Status status = context_->streams->CheckServing(); !status.ok()) return status;
    const absl::StatusOr<SequenceHandle> parent = ToHandle(request->has_parent(), request->parent(), "parent");
    if (!parent.ok()) return parent.status();
    if (absl::Status status = CheckNotNegative("num_tokens", request->num_tokens()); !status.ok()) return status;
    const absl::StatusOr<absl::Duration> lease = ToLease(request->lease_seconds(), context_->store_limits.max_lease);
    if (!lease.ok()) return lease.status();
    const std::optional<int64_t> num_tokens =
        request->has_num_tokens() ? std::optional<int64_t>(request->num_tokens()) : std::nullopt;
    return Respond(context_->store->Fork(tenant, *parent, num_tokens, *lease, request->sampling_key(), absl::Now()),
                   response);
  });
}

grpc::ServerUnaryReactor* AttentionService::TruncateSequence(grpc::CallbackServerContext* call,
                                                             const v1::TruncateSequenceRequest* request,
                                                             v1::Sequence* response) {
  return Answer(context_, call, "TruncateSequence", [&](const std::string& tenant) {
    const absl::StatusOr<SequenceHandle> handle = ToHandle(request->has_handle(), request->handle(), "handle");
    if (!handle.ok()) return handle.status();
    if (absl::Status status = CheckNotNegative("num_tokens", request->num_tokens()); !status.ok()) return status;
    return Respond(context_->store->Truncate(tenant, *handle, request->num_tokens(), absl::Now()), response);
  });
}

grpc::ServerUnaryReactor* AttentionService::ReleaseSequence(grpc::CallbackServerContext* call,
                                                            const v1::ReleaseSequenceRequest* request,
                                                            v1::ReleaseSequenceResponse* /*response*/) {
  return Answer(context_, call, "ReleaseSequence", [&](const std::string& tenant) {
    const absl::StatusOr<SequenceHandle> handle = ToHandle(request->has_handle(), request->handle(), "handle");
    return handle.ok() ? context_->store->Release(tenant, *handle) : handle.status();
  });
}

grpc::ServerUnaryReactor* AttentionService::GetSequence(grpc::CallbackServerContext* call,
                                                        const v1::GetSequenceRequest* request, v1::Sequence* response) {
  return Answer(context_, call, "GetSequence", [&](const std::string& tenant) {
    const absl::StatusOr<SequenceHandle> handle = ToHandle(request->has_handle(), request->handle(), "handle");
    if (!handle.ok()) return handle.status();
    return Respond(context_->store->Get(tenant, *handle, absl::Now()), response);
  });
}

grpc::ServerUnaryReactor* AttentionService::ListSequences(grpc::CallbackServerContext* call,
                                                          const v1::ListSequencesRequest* request,
                                                          v1::ListSequencesResponse* response) {
  return Answer(context_, call, "ListSequences", [&](const std::string& tenant) {
    constexpr int kMaxPage = 1000;
    constexpr int kDefaultPage = 100;
    if (request->page_size() < 0 || request->page_size() > kMaxPage) {
      return absl::InvalidArgumentError(
          absl::StrCat("page_size is ", request->page_size(), "; allowed is [0, ", kMaxPage, "]"));
    }
    const absl::StatusOr<uint64_t> after = ReadPageToken(request->page_token(), page_token_nonce_);
    if (!after.ok()) return after.status();
    const int limit = request->page_size() == 0 ? kDefaultPage : request->page_size();
    std::vector<SequenceInfo> found = context_->store->List(tenant, *after, limit + 1, absl::Now());
    if (found.size() > static_cast<size_t>(limit)) {
      found.pop_back();
      response->set_next_page_token(MakePageToken(found.back().handle.id, page_token_nonce_));
    }
    for (const SequenceInfo& info : found) ToMessage(info, response->add_sequences());
    return absl::OkStatus();
  });
}

grpc::ServerReadReactor<grpc::ByteBuffer>* AttentionService::AppendKv(grpc::CallbackServerContext* call,
                                                                      grpc::ByteBuffer* response) {
  return BeginStream<AppendReactor, AppendStream>(context_, *call, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttentionService::Attend(
    grpc::CallbackServerContext* call) {
  return BeginStream<AttendReactor, AttendCall>(context_, *call, &exchanges_);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttentionService::AttendShared(
    grpc::CallbackServerContext* call) {
  return BeginStream<AttendReactor, SharedAttendCall>(context_, *call, &exchanges_, &poller_);
}

}  // namespace santa
