// A small HTTP server for an operator's probes and scrapes.
#ifndef SANTA_SERVER_METRICS_HTTP_ENDPOINT_H_
#define SANTA_SERVER_METRICS_HTTP_ENDPOINT_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace santa {

struct HttpAnswer {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

class HttpEndpoint {
 public:
  // Answers GET and HEAD of exactly these paths, on a few threads of its own; anything else is 404 or 405.
  using Pages = std::map<std::string, std::function<HttpAnswer()>>;

  // Serves on an IP address and port ([0, 65535]; 0 picks one). UNAVAILABLE when the port cannot be had.
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(const std::string& address, int port, Pages pages);
  ~HttpEndpoint();  // waits for answers being given
  HttpEndpoint(const HttpEndpoint&) = delete;
  HttpEndpoint& operator=(const HttpEndpoint&) = delete;

  int port() const;

 private:
  struct State;
  explicit HttpEndpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace santa

#endif  // SANTA_SERVER_METRICS_HTTP_ENDPOINT_H_
