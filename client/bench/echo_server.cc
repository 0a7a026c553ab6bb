#include "client/bench/echo_server.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "client/bench/echo_message.h"
#include "client/concat.h"

namespace santa::bench {
namespace {

using client_internal::Concat;
using client_internal::ForAbseil;

constexpr int64_t kMostAnswerBytes = int64_t{1} << 30;

std::string_view Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(key);
  return found == metadata.end() ? std::string_view() : std::string_view(found->second.data(), found->second.size());
}

// Reads, answers, reads again: the answers keep the order of the requests, and one read and one write are in flight.
class EchoStream final : public grpc::ServerGenericBidiReactor {
 public:
  explicit EchoStream(const grpc::CallbackServerContext& context)
      : kind_(Metadata(context, kEchoKind) == "protobuf" ? EchoKind::kProtobuf : EchoKind::kRaw) {
    int64_t bytes = 0;
    const std::lock_guard lock(mutex_);
    if (kind_ == EchoKind::kRaw && (!absl::SimpleAtoi(ForAbseil(Metadata(context, kEchoAnswerBytes)), &bytes) ||
                                    bytes < 0 || bytes > kMostAnswerBytes)) {
      Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          Concat(kEchoAnswerBytes, " is missing or outside [0, ", kMostAnswerBytes, "]")));
      return;
    }
    answer_ = ZeroBytes(static_cast<size_t>(bytes));
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    if (!ok) return Finish(grpc::Status::OK);
    if (kind_ == EchoKind::kProtobuf && !AnswerByProtobuf(request_, &answer_)) {
      return Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the message is no AttendRequest"));
    }
    outgoing_ = answer_;  // references
    StartWrite(&outgoing_);
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    if (!ok) return Finish(grpc::Status::CANCELLED);
    StartRead(&request_);
  }

  void OnDone() override {
    { const std::lock_guard lock(mutex_); }  // whoever started the last operation has left
    delete this;
  }

 private:
  const EchoKind kind_;
  std::mutex mutex_;  // orders reactions after the calls that led to them
  grpc::ByteBuffer request_;
  grpc::ByteBuffer answer_;
  grpc::ByteBuffer outgoing_;
};

class EchoService final : public grpc::CallbackGenericService {
 private:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    return new EchoStream(*context);
  }
};

}  // namespace

struct EchoServer::State {
  EchoService service;
  int port = 0;
  std::unique_ptr<grpc::Server> server;
};

EchoServer::EchoServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<EchoServer>> EchoServer::Start(const std::string& address) {
  auto state = std::make_unique<State>();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &state->port);
  builder.RegisterCallbackGenericService(&state->service);
  builder.SetMaxReceiveMessageSize(-1);
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  state->server = builder.BuildAndStart();
  if (state->server == nullptr || state->port == 0) {
    return absl::UnavailableError(Concat("cannot serve an echo on ", address));
  }
  return std::unique_ptr<EchoServer>(new EchoServer(std::move(state)));
}

EchoServer::~EchoServer() {
  state_->server->Shutdown(std::chrono::system_clock::now());
  state_->server->Wait();
}

int EchoServer::port() const { return state_->port; }

absl::Status ServeEcho(const std::string& address, const std::atomic<bool>& stop, std::ostream& out) {
  const absl::StatusOr<std::unique_ptr<EchoServer>> server = EchoServer::Start(address);
  if (!server.ok()) return server.status();
  out << (*server)->port() << std::endl;
  while (!stop) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<EchoProcess>> EchoProcess::Start() {
  std::array<char, 4096> path = {};
  if (readlink("/proc/self/exe", path.data(), path.size() - 1) < 0) {
    return absl::InternalError("cannot tell which program this is");
  }
  int ends[2];
  if (pipe(ends) != 0) return absl::InternalError("no pipe for the echo process");
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError("cannot start the echo process");
  if (pid == 0) {  // nothing but system calls until exec: other threads may have held locks
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl(path.data(), path.data(), "--serve_echo=127.0.0.1:0", static_cast<char*>(nullptr));
    _exit(1);
  }
  close(ends[1]);
  std::string text;
  for (char c = 0; read(ends[0], &c, 1) == 1 && c != '\n';) text += c;
  close(ends[0]);
  int port = 0;
  if (!absl::SimpleAtoi(text, &port)) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return absl::InternalError("the echo process did not start");
  }
  return std::unique_ptr<EchoProcess>(new EchoProcess(pid, port));
}

EchoProcess::~EchoProcess() {
  kill(pid_, SIGTERM);
  waitpid(pid_, nullptr, 0);
}

}  // namespace santa::bench
