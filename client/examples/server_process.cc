#include "client/examples/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace santa {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(20);
constexpr absl::Duration kDrainTime = absl::Seconds(10);
constexpr size_t kLogTail = 2000;  // bytes of the log in an error message

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(const std::string& binary,
                                                                    const std::vector<std::string>& arguments,
                                                                    absl::Duration timeout) {
  if (access(binary.c_str(), X_OK) != 0) return absl::NotFoundError(absl::StrCat("no program at ", binary));
  std::unique_ptr<ServerProcess> process(new ServerProcess());
  if (absl::Status status = process->Launch(binary, arguments); !status.ok()) return status;
  if (absl::Status status = process->AwaitPorts(timeout); !status.ok()) return status;
  return process;
}

absl::Status ServerProcess::Launch(const std::string& binary, const std::vector<std::string>& arguments) {
  std::error_code error;
  std::string folder = std::filesystem::temp_directory_path(error).string() + "/santa-demo-XXXXXX";
  if (error || mkdtemp(folder.data()) == nullptr) return absl::InternalError("cannot make a temporary folder");
  folder_ = folder;
  const std::string log = folder_ + "/log";

  std::vector<std::string> command = {binary, "--listen=127.0.0.1:0", "--http_listen=127.0.0.1:0",
                                      absl::StrCat("--port_file=", folder_, "/ports")};
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);

  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (pid_ == 0) {
    // Between fork and exec only async-signal-safe calls.
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);  // it died before the line above
    const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
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
    if (ports >> grpc_address_ >> http_address_) return absl::OkStatus();
    if (int status; Exited(&status)) break;
    absl::SleepFor(kPoll);
  }
  const std::string log = Log();
  return absl::UnavailableError(absl::StrCat(
      pid_ > 0 ? "the server does not listen; its log ends with:\n" : "the server exited; its log ends with:\n",
      log.substr(log.size() - std::min(log.size(), kLogTail))));
}

absl::Status ServerProcess::Stop() {
  if (pid_ <= 0) return absl::OkStatus();
  kill(pid_, SIGTERM);
  int status = 0;
  for (const absl::Time deadline = absl::Now() + kDrainTime; absl::Now() < deadline; absl::SleepFor(kPoll)) {
    if (!Exited(&status)) continue;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("the server ended with wait status ", status));
  }
  kill(pid_, SIGKILL);
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return absl::DeadlineExceededError("the server did not drain in time and was killed");
}

std::string ServerProcess::Log() const { return ReadFile(folder_ + "/log"); }

ServerProcess::~ServerProcess() {
  Stop().IgnoreError();
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

}  // namespace santa
