// Runs a program that a test is about.
#ifndef SANTA_CLIENT_TESTING_RUN_COMMAND_H_
#define SANTA_CLIENT_TESTING_RUN_COMMAND_H_

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

namespace santa::client_testing {

struct CommandResult {
  int exit_code = -1;  // -1: it did not start or did not exit by itself
  std::string output;  // standard output and standard error
};

// `command` is a shell's line; paths are from the repository's root, as tests run there.
inline CommandResult RunCommand(const std::string& command) {
  CommandResult result;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");  // NOLINT(cert-env33-c): the test's own words
  if (pipe == nullptr) return result;
  std::array<char, 4096> buffer;
  for (size_t count = 0; (count = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    result.output.append(buffer.data(), count);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  return result;
}

}  // namespace santa::client_testing

#endif  // SANTA_CLIENT_TESTING_RUN_COMMAND_H_
