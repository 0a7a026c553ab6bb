// The bare transport: a gRPC server that answers every message of a stream and computes nothing.
#ifndef SANTA_CLIENT_BENCH_ECHO_SERVER_H_
#define SANTA_CLIENT_BENCH_ECHO_SERVER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace santa::bench {

// What the messages of an echo are.
enum class EchoKind : uint8_t {
  kRaw,       // byte buffers, made once and sent by reference: what gRPC costs
  kProtobuf,  // an AttendRequest that both sides encode and parse as generated code does it: what a naive server costs
};

// The streaming method, and the metadata by which a stream says what it wants.
inline constexpr char kEchoMethod[] = "/santa.bench.Echo/Echo";
inline constexpr char kEchoAnswerBytes[] = "santa-echo-answer-bytes";  // kRaw: of each answer, as encoded
inline constexpr char kEchoKind[] = "santa-echo-kind";                 // "raw" or "protobuf"

class EchoServer {
 public:
  // Serves on HOST:PORT, or on a free port for port 0. UNAVAILABLE when it cannot.
  static absl::StatusOr<std::unique_ptr<EchoServer>> Start(const std::string& address);
  ~EchoServer();
  EchoServer(const EchoServer&) = delete;
  EchoServer& operator=(const EchoServer&) = delete;
  int port() const;

 private:
  struct State;
  explicit EchoServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Serves until `stop`; prints its port, and a newline, once it does.
absl::Status ServeEcho(const std::string& address, const std::atomic<bool>& stop, std::ostream& out);

// This program once more, as an echo server on a free port of 127.0.0.1: a process of its own, as the measured server
// is. Ended with the object, and with this process.
class EchoProcess {
 public:
  // INTERNAL when it does not start.
  static absl::StatusOr<std::unique_ptr<EchoProcess>> Start();
  ~EchoProcess();
  EchoProcess(const EchoProcess&) = delete;
  EchoProcess& operator=(const EchoProcess&) = delete;
  std::string target() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  EchoProcess(int pid, int port) : pid_(pid), port_(port) {}
  const int pid_;
  const int port_;
};

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_ECHO_SERVER_H_
