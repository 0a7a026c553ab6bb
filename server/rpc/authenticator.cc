#include "server/rpc/authenticator.h"

#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace santa {
namespace {

bool EqualInConstantTime(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  }
  return difference == 0;
}

}  // namespace

absl::StatusOr<Authenticator> Authenticator::Parse(const std::string& text) {
  Authenticator authenticator;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view stripped = absl::StripAsciiWhitespace(line);
    if (stripped.empty() || stripped[0] == '#') continue;
    const std::vector<std::string> words = absl::StrSplit(stripped, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() != 2) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, " is not \"<token> <tenant>\""));
    }
    for (const auto& [token, tenant] : authenticator.tenants_) {
      if (token == words[0]) return absl::InvalidArgumentError(absl::StrCat("line ", number, " repeats a token"));
    }
    authenticator.tenants_.emplace_back(words[0], words[1]);
  }
  if (authenticator.tenants_.empty()) return absl::InvalidArgumentError("there is no token: nobody could call");
  return authenticator;
}

absl::StatusOr<Authenticator> Authenticator::FromFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  absl::StatusOr<Authenticator> authenticator = Parse(text.str());
  if (authenticator.ok()) return authenticator;
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::string(authenticator.status().message())));
}

absl::StatusOr<std::string> Authenticator::Tenant(std::string_view authorization) const {
  if (tenants_.empty()) return "default";
  constexpr std::string_view kScheme = "Bearer ";
  if (authorization.empty()) {
    return absl::UnauthenticatedError("the call has no authorization; allowed is \"Bearer <token>\"");
  }
  if (!absl::StartsWithIgnoreCase({authorization.data(), authorization.size()}, {kScheme.data(), kScheme.size()})) {
    return absl::UnauthenticatedError("the authorization is of another scheme; allowed is \"Bearer <token>\"");
  }
  const std::string* found = nullptr;
  for (const auto& [token, tenant] : tenants_) {
    if (EqualInConstantTime(authorization.substr(kScheme.size()), token)) found = &tenant;
  }
  if (found == nullptr) return absl::UnauthenticatedError("the bearer token is unknown");
  return *found;
}

}  // namespace santa
