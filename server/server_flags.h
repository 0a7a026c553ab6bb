// The command line of attention_server.
#ifndef SANTA_SERVER_SERVER_FLAGS_H_
#define SANTA_SERVER_SERVER_FLAGS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "server/server.h"
#include "server/settings.h"

namespace santa {

// "512MiB", "2GiB", "1.5 TiB", "4096" (bytes). INVALID_ARGUMENT for anything else, for 0 and past 2^62.
absl::StatusOr<int64_t> ParseByteSize(const std::string& text);

// What --help or --version is to print, where one of them is among the arguments; the program then ends with 0.
std::optional<std::string> HelpOrVersion(int argc, char** argv);

// Reads the file of --config, the environment (SANTA_*) and the arguments into the flags; what was given, in the order
// in which the later one counts. INVALID_ARGUMENT, a sentence, for an unknown flag, a value that does not parse, or an
// argument that is no flag.
absl::StatusOr<std::vector<Setting>> ParseServerFlags(int argc, const char* const* argv,
                                                      const char* const* environment);

// One log line: every flag that was given, with its value and where it came from, and every other with its default.
void LogSettings(const std::vector<Setting>& given);

// What the flags say. INVALID_ARGUMENT, a sentence, for values that cannot be.
absl::StatusOr<ServerOptions> OptionsFromFlags();
// Of an fp8 cache; empty: all 1.
absl::StatusOr<KvScales> KvScalesFromFlags();
// The backend that the flags ask for, with its memory.
absl::StatusOr<std::unique_ptr<Backend>> BackendFromFlags();
std::string PortFileFromFlags();

}  // namespace santa

#endif  // SANTA_SERVER_SERVER_FLAGS_H_
