#include "client/bench/server_metrics.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

#include "absl/strings/numbers.h"
#include "client/concat.h"

namespace santa::bench {
namespace {

using client_internal::Concat;
using client_internal::ForAbseil;

struct Socket {
  int fd = -1;
  ~Socket() {
    if (fd >= 0) close(fd);
  }
};

absl::Status Failed(const std::string& address, std::string_view why) {
  return absl::UnavailableError(Concat("http://", address, "/metrics: ", why));
}

absl::Status FailedCall(const std::string& address) {
  return Failed(address, std::error_code(errno, std::generic_category()).message());
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

absl::StatusOr<std::string> HttpGet(const std::string& address, const std::string& path, absl::Duration timeout) {
  const absl::StatusOr<Addresses> addresses = Resolve(address);
  if (!addresses.ok()) return addresses.status();
  Socket connection;
  if (!Connect(**addresses, timeout, connection)) return FailedCall(address);
  // HTTP/1.0: the server closes the connection after the body, and does not cut it into chunks.
  const std::string request = Concat("GET ", path, " HTTP/1.0\r\nHost: ", address, "\r\n\r\n");
  if (send(connection.fd, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
    return FailedCall(address);
  }
  std::string response;
  char buffer[16384];
  while (true) {
    const ssize_t size = recv(connection.fd, buffer, sizeof(buffer), 0);
    if (size < 0) return FailedCall(address);
    if (size == 0) break;
    response.append(buffer, size);
  }
  const std::string status_line = response.substr(0, response.find('\r'));
  const size_t body = response.find("\r\n\r\n");
  if (body == std::string::npos || status_line.find(" 200 ") == std::string::npos) return Failed(address, status_line);
  return response.substr(body + 4);
}

}  // namespace

ServerCounters ServerCounters::operator-(const ServerCounters& earlier) const {
  return {.device_seconds = device_seconds - earlier.device_seconds,
          .steps = steps - earlier.steps,
          .queue_seconds = queue_seconds - earlier.queue_seconds,
          .batches = batches - earlier.batches,
          .batch_items = batch_items - earlier.batch_items,
          .kv_bytes_read = kv_bytes_read - earlier.kv_bytes_read,
          .tokens_appended = tokens_appended - earlier.tokens_appended};
}

std::map<std::string, double> SumByName(std::string_view text) {
  std::map<std::string, double> sums;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.starts_with('#')) continue;
    const std::string_view name = line.substr(0, line.find_first_of("{ "));
    const size_t labels_end = line.rfind('}');
    std::string_view rest = line.substr(labels_end == std::string_view::npos ? name.size() : labels_end + 1);
    while (rest.starts_with(' ')) rest.remove_prefix(1);
    double value = 0;  // a timestamp may follow it
    if (name.ends_with("_bucket") || !absl::SimpleAtod(ForAbseil(rest.substr(0, rest.find(' '))), &value)) continue;
    sums[std::string(name)] += value;
  }
  return sums;
}

absl::StatusOr<ServerCounters> ParseCounters(std::string_view text) {
  std::map<std::string, double> sums = SumByName(text);
  if (sums.count("santa_device_seconds_total") == 0) {
    return absl::NotFoundError("there is no santa_device_seconds_total among the metrics");
  }
  return ServerCounters{.device_seconds = sums["santa_device_seconds_total"],
                        .steps = sums["santa_request_queue_seconds_count"],
                        .queue_seconds = sums["santa_request_queue_seconds_sum"],
                        .batches = sums["santa_batch_items_count"],
                        .batch_items = sums["santa_batch_items_sum"],
                        .kv_bytes_read = sums["santa_kv_bytes_read_total"],
                        .tokens_appended = sums["santa_tokens_appended_total"]};
}

absl::StatusOr<ServerCounters> ScrapeCounters(const std::string& address, absl::Duration timeout) {
  const absl::StatusOr<std::string> text = HttpGet(address, "/metrics", timeout);
  if (!text.ok()) return text.status();
  return ParseCounters(*text);
}

}  // namespace santa::bench
