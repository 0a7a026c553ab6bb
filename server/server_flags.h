// The command line of attention_server.
#ifndef SANTA_SERVER_SERVER_FLAGS_H_
#define SANTA_SERVER_SERVER_FLAGS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "server/server.h"

namespace santa {

// "512MiB", "2GiB", "1.5 TiB", "4096" (bytes). INVALID_ARGUMENT for anything else, for 0 and past 2^62.
absl::StatusOr<int64_t> ParseByteSize(const std::string& text);

// What --help or --version is to print, where one of them is among the arguments; the program then ends with 0.
std::optional<std::string> HelpOrVersion(int argc, char** argv);

// Reads the arguments into the flags. INVALID_ARGUMENT, a sentence, for an unknown flag, a value that does not parse,
// or an argument that is no flag.
absl::Status ParseServerFlags(int argc, char** argv);

// What the flags say. INVALID_ARGUMENT, a sentence, for values that cannot be.
absl::StatusOr<ServerOptions> OptionsFromFlags();
// The backend that the flags ask for, with its memory.
absl::StatusOr<std::unique_ptr<Backend>> BackendFromFlags();
std::string PortFileFromFlags();

}  // namespace santa

#endif  // SANTA_SERVER_SERVER_FLAGS_H_
