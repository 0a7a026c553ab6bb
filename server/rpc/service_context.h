// What every reactor of the service works with.
#ifndef SANTA_SERVER_RPC_SERVICE_CONTEXT_H_
#define SANTA_SERVER_RPC_SERVICE_CONTEXT_H_

#include <grpcpp/server_context.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/engine/audit.h"
#include "server/engine/engine.h"
#include "server/kv/page_pool.h"
#include "server/kv/sequence_store.h"
#include "server/metrics/metrics.h"
#include "server/rpc/authenticator.h"
#include "server/rpc/slow_step_log.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/trace_context.h"

namespace santa {

struct RpcLimits {
  int32_t max_items_per_request = 256;
  int64_t max_message_bytes = 64 << 20;
  int32_t max_inflight_per_stream = 32;  // requests of one Attend stream read and not yet answered
  int32_t max_streams = 4096;
  int64_t max_shared_bytes = int64_t{1} << 30;  // of memory shared with callers, all together; 0: none is shared
};

// Nothing is owned; all of it outlives the service.
struct ServiceContext {
  Engine* engine = nullptr;
  Auditor* auditor = nullptr;
  SequenceStore* store = nullptr;
  PagePool* pool = nullptr;
  Metrics* metrics = nullptr;
  StreamRegistry* streams = nullptr;
  SlowStepLog* slow_steps = nullptr;
  const Authenticator* authenticator = nullptr;

  bool asynchronous_device = false;  // it computes while the CPUs do as they like
  std::string version;
  std::string backend;
  std::string device;
  KvLayout layout;
  std::vector<Method> methods;
  StoreLimits store_limits;
  RpcLimits limits;
};

// Counts a call that ended, and logs it at the level debug.
void RecordCall(ServiceContext* context, std::string_view method, const absl::Status& status,
                const TraceContext& trace);

// Who made a call, and until when.
struct Caller {
  std::string tenant;
  uint64_t client = 0;  // its connection
  absl::Time deadline = absl::InfiniteFuture();
  TraceContext trace;

  // UNAUTHENTICATED.
  static absl::StatusOr<Caller> Of(const grpc::CallbackServerContext& call, const Authenticator& authenticator);
};

// The caller's tenant. UNAUTHENTICATED.
absl::StatusOr<std::string> TenantOf(const grpc::ServerContextBase& call, const Authenticator& authenticator);

// The caller's connection as a number: streams of one connection are one client's.
uint64_t ClientOf(const grpc::ServerContextBase& call);

// When the caller stops waiting.
absl::Time DeadlineOf(const grpc::ServerContextBase& call);

// Why a call was cancelled, as far as the server can tell: DEADLINE_EXCEEDED or CANCELLED.
absl::Status CancellationStatus(absl::Time deadline);

}  // namespace santa

#endif  // SANTA_SERVER_RPC_SERVICE_CONTEXT_H_
