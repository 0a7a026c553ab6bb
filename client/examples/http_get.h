#ifndef SANTA_CLIENT_EXAMPLES_HTTP_GET_H_
#define SANTA_CLIENT_EXAMPLES_HTTP_GET_H_

#include <string>

#include "absl/status/statusor.h"

namespace santa {

// The body of http://127.0.0.1:port/path, for reading a local server's /metrics. UNAVAILABLE when no answer comes
// within 10 seconds, or one other than 200.
absl::StatusOr<std::string> HttpGet(int port, const std::string& path);

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_HTTP_GET_H_
