#include "server/settings.h"

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace santa {
namespace {

constexpr char kCommandLine[] = "command line";

// Up to a # that begins the line or follows a blank.
absl::string_view WithoutComment(absl::string_view line) {
  for (size_t hash = line.find('#'); hash != absl::string_view::npos; hash = line.find('#', hash + 1)) {
    if (hash == 0 || absl::ascii_isspace(static_cast<unsigned char>(line[hash - 1]))) return line.substr(0, hash);
  }
  return line;
}

// Abseil has flags of its own, which its own parser alone heeds.
absl::CommandLineFlag* Find(absl::string_view name) {
  absl::CommandLineFlag* const flag = absl::FindCommandLineFlag(name);
  return flag == nullptr || absl::StrContains(flag->Filename(), "absl/flags/") ? nullptr : flag;
}

absl::Status NoSuchFlag(absl::string_view name) {
  return absl::InvalidArgumentError(absl::StrCat("there is no flag --", name, "; --help lists those there are"));
}

}  // namespace

absl::StatusOr<std::vector<Setting>> SettingsFromArguments(int argc, const char* const* argv) {
  std::vector<Setting> settings;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (!absl::StartsWith(argument, "--") || argument == "--") {
      return absl::InvalidArgumentError(
          absl::StrCat("the argument \"", argument, "\" is no flag; allowed is --<flag>=<value>, see --help"));
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    const absl::CommandLineFlag* const flag = Find(name);
    if (flag == nullptr) return NoSuchFlag(name);
    std::string value = "true";
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (!flag->IsOfType<bool>()) {
      if (i + 1 == argc) return absl::InvalidArgumentError(absl::StrCat("--", name, " has no value"));
      value = argv[++i];
    }
    settings.push_back({.name = name, .value = value, .origin = kCommandLine});
  }
  return settings;
}

std::vector<Setting> SettingsFromEnvironment(std::string_view prefix, const char* const* environment) {
  std::vector<Setting> settings;
  for (; *environment != nullptr; ++environment) {
    const std::pair<std::string, std::string> entry = absl::StrSplit(*environment, absl::MaxSplits('=', 1));
    if (entry.first.compare(0, prefix.size(), prefix) != 0) continue;
    const std::string name = absl::AsciiStrToLower(entry.first.substr(prefix.size()));
    if (entry.first.substr(prefix.size()) != absl::AsciiStrToUpper(name) || Find(name) == nullptr) continue;
    settings.push_back({.name = name, .value = entry.second, .origin = entry.first});
  }
  return settings;
}

absl::StatusOr<std::vector<Setting>> SettingsFromFile(const std::string& path, std::string_view text) {
  std::vector<Setting> settings;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    const std::string place = absl::StrCat(path, ":", ++number);
    const absl::string_view content = absl::StripAsciiWhitespace(WithoutComment(line));
    if (content.empty()) continue;
    const size_t equals = content.find('=');
    if (equals == absl::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(place, ": \"", content, "\" is no setting; allowed is name = value, or a comment after #"));
    }
    const absl::string_view name = absl::StripTrailingAsciiWhitespace(content.substr(0, equals));
    if (Find(name) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(place, ": ", std::string(NoSuchFlag(name).message())));
    }
    settings.push_back({.name = std::string(name),
                        .value = std::string(absl::StripLeadingAsciiWhitespace(content.substr(equals + 1))),
                        .origin = place});
  }
  return settings;
}

absl::Status Apply(const std::vector<Setting>& settings) {
  for (const Setting& setting : settings) {
    std::string error;
    if (Find(setting.name)->ParseFrom(setting.value, &error)) continue;
    const std::string of = setting.origin == kCommandLine ? "" : absl::StrCat(" (", setting.origin, ")");
    return absl::InvalidArgumentError(absl::StrCat("--", setting.name, of, " is \"", setting.value, "\": ", error));
  }
  return absl::OkStatus();
}

}  // namespace santa
