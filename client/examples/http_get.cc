#include "client/examples/http_get.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace santa {
namespace {

struct Socket {
  int fd = -1;
  ~Socket() {
    if (fd >= 0) close(fd);
  }
};

absl::Status Failed(const char* what) {
  return absl::UnavailableError(absl::StrCat("HTTP ", what, ": ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::string> HttpGet(int port, const std::string& path) {
  const Socket socket = {::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const timeval timeout = {.tv_sec = 10, .tv_usec = 0};
  setsockopt(socket.fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  setsockopt(socket.fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(socket.fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return Failed("connect");

  // HTTP/1.0: the server closes the connection after the body, and does not cut it into chunks.
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
  if (send(socket.fd, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
    return Failed("send");
  }
  std::string response;
  char buffer[16384];
  for (;;) {
    const ssize_t n = recv(socket.fd, buffer, sizeof(buffer), 0);
    if (n < 0) return Failed("receive");
    if (n == 0) break;
    response.append(buffer, n);
  }
  const size_t header = response.find("\r\n\r\n");
  if (header == std::string::npos || !absl::StrContains(response.substr(0, response.find('\r')), " 200 ")) {
    return absl::UnavailableError(absl::StrCat("HTTP answer: ", response.substr(0, response.find('\r'))));
  }
  return response.substr(header + 4);
}

}  // namespace santa
