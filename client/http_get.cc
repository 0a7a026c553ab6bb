#include "client/http_get.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string_view>
#include <system_error>

#include "client/concat.h"

namespace santa {
namespace {

using client_internal::Concat;

struct Socket {
  int fd = -1;
  ~Socket() {
    if (fd >= 0) close(fd);
  }
};

// url: HOST:PORT/path
absl::Status Failed(const std::string& url, std::string_view why) {
  return absl::UnavailableError(Concat("http://", url, ": ", why));
}

absl::Status FailedCall(const std::string& url) {
  return Failed(url, std::error_code(errno, std::generic_category()).message());
}

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

absl::StatusOr<Addresses> Resolve(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return absl::InvalidArgumentError(Concat("\"", address, "\" is not HOST:PORT"));
  std::string host = address.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (error != 0) return absl::InvalidArgumentError(Concat("\"", address, "\" is no address: ", gai_strerror(error)));
  return Addresses(found, &freeaddrinfo);
}

bool Connect(const addrinfo& addresses, absl::Duration timeout, Socket& connection) {
  const timeval limit = absl::ToTimeval(timeout);
  for (const addrinfo* info = &addresses; info != nullptr; info = info->ai_next) {
    if (connection.fd >= 0) close(connection.fd);
    connection.fd = ::socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC, info->ai_protocol);
    if (connection.fd < 0) continue;
    setsockopt(connection.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(connection.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(connection.fd, info->ai_addr, info->ai_addrlen) == 0) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::string> HttpGet(const std::string& address, const std::string& path, absl::Duration timeout) {
  const absl::StatusOr<Addresses> addresses = Resolve(address);
  if (!addresses.ok()) return addresses.status();
  Socket connection;
  if (!Connect(**addresses, timeout, connection)) return FailedCall(address + path);
  // HTTP/1.0: the server closes the connection after the body, and does not cut it into chunks.
  const std::string request = Concat("GET ", path, " HTTP/1.0\r\nHost: ", address, "\r\n\r\n");
  if (send(connection.fd, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
    return FailedCall(address + path);
  }
  std::string response;
  char buffer[16384];
  while (true) {
    const ssize_t size = recv(connection.fd, buffer, sizeof(buffer), 0);
    if (size < 0) return FailedCall(address + path);
    if (size == 0) break;
    response.append(buffer, size);
  }
  const std::string status_line = response.substr(0, response.find('\r'));
  const size_t body = response.find("\r\n\r\n");
  if (body == std::string::npos || status_line.find(" 200 ") == std::string::npos)
    return Failed(address + path, status_line);
  return response.substr(body + 4);
}

}  // namespace santa
