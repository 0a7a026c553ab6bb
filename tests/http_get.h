// The least HTTP client that a test needs.
#ifndef SANTA_TESTS_HTTP_GET_H_
#define SANTA_TESTS_HTTP_GET_H_

#include <string>

namespace santa {

struct HttpResponse {
  int status = 0;  // 0: no answer
  std::string head;
  std::string body;
};

// One request to 127.0.0.1, on a connection of its own.
HttpResponse HttpRequest(int port, const std::string& method, const std::string& path);

}  // namespace santa

#endif  // SANTA_TESTS_HTTP_GET_H_
