#include "server/rpc/service_context.h"

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "absl/time/clock.h"
#include "server/logging/log.h"

namespace santa {

void RecordCall(ServiceContext* context, std::string_view method, const absl::Status& status,
                const TraceContext& trace) {
  context->metrics->RecordRpc(method, status.code());
  Log(LogLevel::kDebug, "call ended",
      {{"method", method},
       {"code", CodeName(status.code())},
       {"error", std::string(status.message())},
       {"trace_id", trace.trace_id},
       {"parent_id", trace.parent_id}});
}

absl::StatusOr<Caller> Caller::Of(const grpc::CallbackServerContext& call, const Authenticator& authenticator) {
  absl::StatusOr<std::string> tenant = TenantOf(call, authenticator);
  if (!tenant.ok()) return tenant.status();
  return Caller{
      .tenant = *std::move(tenant), .client = ClientOf(call), .deadline = DeadlineOf(call), .trace = TraceOf(call)};
}

absl::StatusOr<std::string> TenantOf(const grpc::ServerContextBase& call, const Authenticator& authenticator) {
  const auto& metadata = call.client_metadata();
  const auto header = metadata.find("authorization");
  if (header == metadata.end()) return authenticator.Tenant("");
  return authenticator.Tenant(std::string_view(header->second.data(), header->second.size()));
}

uint64_t ClientOf(const grpc::ServerContextBase& call) { return std::hash<std::string>()(call.peer()); }

absl::Time DeadlineOf(const grpc::ServerContextBase& call) {
  const std::chrono::system_clock::time_point deadline = call.deadline();
  return deadline == std::chrono::system_clock::time_point::max() ? absl::InfiniteFuture() : absl::FromChrono(deadline);
}

absl::Status CancellationStatus(absl::Time deadline) {
  return absl::Now() >= deadline ? absl::DeadlineExceededError("the call's deadline has passed")
                                 : absl::CancelledError("the call was cancelled");
}

}  // namespace santa
