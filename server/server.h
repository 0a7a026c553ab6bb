// The whole server in one object: engine, gRPC service, standard services, HTTP endpoint, drain.
#ifndef SANTA_SERVER_SERVER_H_
#define SANTA_SERVER_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/engine/audit.h"
#include "server/engine/engine.h"
#include "server/kv/sequence_store.h"
#include "server/rpc/authenticator.h"
#include "server/rpc/service_context.h"

namespace santa {

struct ServerOptions {
  std::string host = "127.0.0.1";  // an IP address, for gRPC and HTTP
  int port = 0;                    // [0, 65535]; 0 picks one
  int http_port = 0;               // likewise; -1: no HTTP
  std::string tls_certificate;     // PEM chain, and its key; both or neither
  std::string tls_key;
  Authenticator authenticator;
  StoreLimits store = {.max_sequences = 1024,
                       .max_tokens_per_sequence = 131072,
                       .default_lease = absl::Minutes(10),
                       .max_lease = absl::Hours(24)};
  EngineOptions engine;
  AuditOptions audit;
  RpcLimits rpc;
  absl::Duration expiry_interval = absl::Milliseconds(200);  // how often leases are looked at
  absl::Duration drain_grace = absl::Seconds(10);
  absl::Duration slow_step_threshold = absl::Seconds(1);  // steps past it are logged; zero: none
  bool self_test = true;                                  // before it serves (self_test.h)
  KvScales kv_scales;                                     // those of the backend's cache, for the self-test
};

// OK, or INVALID_ARGUMENT naming the option, its value and the range.
absl::Status Validate(const ServerOptions& options);

// Thread safe but for the destructor.
class AttentionServer {
 public:
  // Serves from its return on; /healthz and /metrics answer from before the self-test, /readyz with 503 until it has
  // passed. INVALID_ARGUMENT: options that cannot be; UNAVAILABLE: a port that cannot be had, or the device failed;
  // INTERNAL: the self-test did.
  static absl::StatusOr<std::unique_ptr<AttentionServer>> Start(const ServerOptions& options,
                                                                std::unique_ptr<Backend> backend);
  ~AttentionServer();  // Drain()
  AttentionServer(const AttentionServer&) = delete;
  AttentionServer& operator=(const AttentionServer&) = delete;

  int port() const;
  int http_port() const;  // -1: no HTTP

  // Health turns to NOT_SERVING, /readyz to 503, new sequences and streams are refused with UNAVAILABLE; streams end
  // with UNAVAILABLE once the steps in flight are answered. What is left after drain_grace is cancelled. Returns when
  // nothing runs any more; /metrics and /healthz answer until the destructor. Idempotent.
  void Drain();

  // OK while it serves; otherwise why it does not, as /readyz says.
  absl::Status readiness() const;

  // OK, or UNAVAILABLE with what the device failed of. Nothing but a new process helps then.
  absl::Status device_status() const;

 private:
  struct State;
  explicit AttentionServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace santa

#endif  // SANTA_SERVER_SERVER_H_
