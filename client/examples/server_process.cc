#include "client/examples/server_process.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace santa {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(20);
constexpr absl::Duration kDrainTime = absl::Seconds(15);  // the server gives steps in flight 10
constexpr off_t kLogTail = 2000;                          // bytes of the log in an error message

void RemoveFolder(const std::string& folder) {
  std::error_code ignored;
  if (!folder.empty()) std::filesystem::remove_all(folder, ignored);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(const std::string& binary,
                                                                    const std::vector<std::string>& arguments,
                                                                    absl::Duration timeout) {
  if (access(binary.c_str(), X_OK) != 0) return absl::NotFoundError(absl::StrCat("no program at ", binary));
  std::unique_ptr<ServerProcess> process(new ServerProcess());
  if (absl::Status status = process->Launch(binary, arguments); !status.ok()) return status;
  absl::Status status = process->AwaitPorts(timeout);
  RemoveFolder(process->folder_);
  if (!status.ok()) return status;
  return process;
}

absl::Status ServerProcess::Launch(const std::string& binary, const std::vector<std::string>& arguments) {
  std::error_code error;
  std::string folder = std::filesystem::temp_directory_path(error).string() + "/santa-demo-XXXXXX";
  if (error || mkdtemp(folder.data()) == nullptr) return absl::InternalError("cannot make a temporary folder");
  folder_ = folder;
  log_ = memfd_create("attention_server log", MFD_CLOEXEC);
  if (log_ < 0) return absl::InternalError(absl::StrCat("memfd_create: ", std::strerror(errno)));

  std::vector<std::string> command = {binary, "--listen=127.0.0.1:0", "--http_port=0",
                                      absl::StrCat("--port_file=", folder_, "/ports")};
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);

  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (pid_ == 0) {
    // Between fork and exec only async-signal-safe calls.
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);  // it died before the line above
    dup2(log_, STDOUT_FILENO);
    dup2(log_, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  return absl::OkStatus();
}

bool ServerProcess::Exited(int* wait_status) {
  if (pid_ <= 0 || waitpid(pid_, wait_status, WNOHANG) != pid_) return false;
  pid_ = -1;
  return true;
}

absl::Status ServerProcess::AwaitPorts(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (absl::Now() < deadline) {
    std::ifstream ports(folder_ + "/ports");
    if (int grpc_port = 0, http_port = 0; ports >> grpc_port >> http_port) {
      grpc_address_ = absl::StrCat("127.0.0.1:", grpc_port);
      http_address_ = absl::StrCat("127.0.0.1:", http_port);
      return absl::OkStatus();
    }
    if (int status; Exited(&status)) break;
    absl::SleepFor(kPoll);
  }
  return absl::UnavailableError(absl::StrCat(pid_ > 0 ? "the server does not listen" : "the server exited", LogTail()));
}

absl::Status ServerProcess::Stop() {
  if (pid_ <= 0) return absl::OkStatus();
  kill(pid_, SIGTERM);
  int status = 0;
  for (const absl::Time deadline = absl::Now() + kDrainTime; absl::Now() < deadline; absl::SleepFor(kPoll)) {
    if (!Exited(&status)) continue;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("the server ended with wait status ", status, LogTail()));
  }
  kill(pid_, SIGKILL);
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return absl::DeadlineExceededError("the server did not drain in time and was killed");
}

std::string ServerProcess::LogTail() const {
  const off_t size = lseek(log_, 0, SEEK_END);
  std::string tail(std::clamp<off_t>(size, 0, kLogTail), '\0');
  const ssize_t read = pread(log_, tail.data(), tail.size(), size - static_cast<off_t>(tail.size()));
  tail.resize(std::max<ssize_t>(read, 0));
  return absl::StrCat("; its log ends with:\n", tail);
}

ServerProcess::~ServerProcess() {
  Stop().IgnoreError();
  if (log_ >= 0) close(log_);
  RemoveFolder(folder_);
}

}  // namespace santa
