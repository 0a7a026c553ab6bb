// The least HTTP client that reads a server's /metrics.
#ifndef SANTA_CLIENT_HTTP_GET_H_
#define SANTA_CLIENT_HTTP_GET_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace santa {

// The body of http://<address><path>; `address` is HOST:PORT, [IPv6]:PORT among them. INVALID_ARGUMENT: no such
// address. UNAVAILABLE: no answer, `timeout` without a byte, or an answer other than 200. Thread safe.
absl::StatusOr<std::string> HttpGet(const std::string& address, const std::string& path,
                                    absl::Duration timeout = absl::Seconds(10));

}  // namespace santa

#endif  // SANTA_CLIENT_HTTP_GET_H_
