// Who a caller is: bearer tokens to tenants.
#ifndef SANTA_SERVER_RPC_AUTHENTICATOR_H_
#define SANTA_SERVER_RPC_AUTHENTICATOR_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace santa {

// Immutable, thread safe.
class Authenticator {
 public:
  // Asks for no token: everyone is the tenant "default".
  Authenticator() = default;

  // Lines of "<token> <tenant>"; empty lines and those that begin with # are skipped. INVALID_ARGUMENT, naming the line
  // but never the token, for anything else, for a token that comes twice, and for a text without a token.
  static absl::StatusOr<Authenticator> Parse(const std::string& text);
  // As Parse; NOT_FOUND when the file cannot be read.
  static absl::StatusOr<Authenticator> FromFile(const std::string& path);

  // The tenant of a call with this `authorization` header (empty: none). UNAUTHENTICATED. The time it takes tells
  // nothing about a token but its length.
  absl::StatusOr<std::string> Tenant(std::string_view authorization) const;

 private:
  std::vector<std::pair<std::string, std::string>> tenants_;  // token, tenant
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_AUTHENTICATOR_H_
