// Where a program's flags get their values: one file, the environment and the command line, each overriding the one
// before.
#ifndef SANTA_SERVER_SETTINGS_H_
#define SANTA_SERVER_SETTINGS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace santa {

// One flag's value, as it was given.
struct Setting {
  std::string name;  // without dashes
  std::string value;
  std::string origin;  // "command line", "SANTA_KV_BYTES", "/etc/santa/server.conf:3"
};

// --name=value, --name value, and --name of a boolean one. INVALID_ARGUMENT: what is none of these, an unknown flag, a
// flag without a value.
absl::StatusOr<std::vector<Setting>> SettingsFromArguments(int argc, const char* const* argv);

// "NAME=value" entries, as environ has them, whose NAME is `prefix` and a flag in capitals (SANTA_KV_BYTES). Other
// entries are none of ours: Kubernetes, for one, sets names like these for a service called "santa".
std::vector<Setting> SettingsFromEnvironment(std::string_view prefix, const char* const* environment);

// Lines "name = value"; what follows a # at a line's start or after a blank is a comment. INVALID_ARGUMENT, naming file
// and line: what is neither, or an unknown flag.
absl::StatusOr<std::vector<Setting>> SettingsFromFile(const std::string& path, std::string_view text);

// Gives the flags these values, in order. INVALID_ARGUMENT, naming the origin: a value that does not parse.
absl::Status Apply(const std::vector<Setting>& settings);

}  // namespace santa

#endif  // SANTA_SERVER_SETTINGS_H_
