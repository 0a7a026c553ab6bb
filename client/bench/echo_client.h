// A client of an echo: the load generator's closed loop without an attention server.
#ifndef SANTA_CLIENT_BENCH_ECHO_CLIENT_H_
#define SANTA_CLIENT_BENCH_ECHO_CLIENT_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/bench/echo_server.h"
#include "client/bench/latency_histogram.h"
#include "client/bench/load_window.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::bench {

struct EchoOptions {
  std::string target;
  EchoKind kind = EchoKind::kRaw;
  attention::v1::AttendRequest request;  // kRaw: only its length counts
  int64_t answer_bytes = 0;              // kRaw
  int64_t in_flight = 1;
};

class EchoClient {
 public:
  // UNAVAILABLE when nothing answers within 10 seconds.
  static absl::StatusOr<std::unique_ptr<EchoClient>> Connect(EchoOptions options);
  ~EchoClient();
  EchoClient(const EchoClient&) = delete;
  EchoClient& operator=(const EchoClient&) = delete;

  // Sends messages until window.end, in_flight of them unanswered, then waits for the answers. INTERNAL when the stream
  // broke. May be called again.
  absl::Status Run(const LoadWindow& window);

  // From a message's sending to its answer in the client's hands, of messages sent in the windows.
  const LatencyHistogram& latency() const;

 private:
  struct State;
  explicit EchoClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_ECHO_CLIENT_H_
