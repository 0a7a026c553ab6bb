#ifndef SANTA_CLIENT_EXAMPLES_SERVER_PROCESS_H_
#define SANTA_CLIENT_EXAMPLES_SERVER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace santa {

// An attention_server that this program starts and stops. It ends with this program, however that ends.
class ServerProcess {
 public:
  // Runs `binary` on free ports of 127.0.0.1 with `arguments` added, and waits until it listens. Call from the main
  // thread, before any other is started. NOT_FOUND: no such binary. UNAVAILABLE, with the end of its log, when it exits
  // or does not listen in time.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(const std::string& binary,
                                                              const std::vector<std::string>& arguments,
                                                              absl::Duration timeout = absl::Seconds(30));
  ~ServerProcess();  // Stop()
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  const std::string& grpc_address() const { return grpc_address_; }  // "127.0.0.1:41234"
  const std::string& http_address() const { return http_address_; }  // of /metrics

  // SIGTERM, which drains the server; SIGKILL after 15 seconds. Idempotent. OK when it exited with 0; otherwise an
  // error with the end of its log.
  absl::Status Stop();

 private:
  ServerProcess() = default;
  absl::Status Launch(const std::string& binary, const std::vector<std::string>& arguments);
  absl::Status AwaitPorts(absl::Duration timeout);
  bool Exited(int* wait_status);
  std::string LogTail() const;

  std::string folder_;  // of the file in which the server names its ports; gone once that was read
  int log_ = -1;        // a file in memory that takes the server's stdout and stderr
  pid_t pid_ = -1;
  std::string grpc_address_;
  std::string http_address_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_SERVER_PROCESS_H_
