#include "server/metrics/http_endpoint.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "CivetServer.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace santa {
namespace {

const char* Reason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 503:
      return "Service Unavailable";
    default:
      return "Status";
  }
}

void Send(mg_connection* connection, const HttpAnswer& answer, bool with_body) {
  const std::string head =
      absl::StrCat("HTTP/1.1 ", answer.status, " ", Reason(answer.status), "\r\nContent-Type: ", answer.content_type,
                   "\r\nContent-Length: ", answer.body.size(), "\r\nConnection: close\r\n\r\n");
  mg_write(connection, head.data(), head.size());
  if (with_body) mg_write(connection, answer.body.data(), answer.body.size());
}

struct Place {
  sockaddr_storage address = {};
  socklen_t length = 0;  // 0: no address
};

Place Sockaddr(const std::string& address, int port) {
  Place place;
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return place;
  std::memcpy(&place.address, found->ai_addr, found->ai_addrlen);
  place.length = found->ai_addrlen;
  freeaddrinfo(found);
  return place;
}

// Connects and goes away.
void Knock(const Place& place) {
  const int fd = socket(place.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  // Refused or pending, both are fine.
  static_cast<void>(connect(fd, reinterpret_cast<const sockaddr*>(&place.address), place.length));
  close(fd);
}

}  // namespace

struct HttpEndpoint::State : public CivetHandler {
  std::string address;
  HttpEndpoint::Pages pages;
  std::unique_ptr<CivetServer> server;  // last: it stops before the pages go

  bool handleGet(CivetServer* /*server*/, mg_connection* connection) override { return Answer(connection, true); }
  bool handleHead(CivetServer* /*server*/, mg_connection* connection) override { return Answer(connection, false); }
  bool handlePost(CivetServer* /*server*/, mg_connection* connection) override { return Refuse(connection); }
  bool handlePut(CivetServer* /*server*/, mg_connection* connection) override { return Refuse(connection); }
  bool handleDelete(CivetServer* /*server*/, mg_connection* connection) override { return Refuse(connection); }
  bool handleOptions(CivetServer* /*server*/, mg_connection* connection) override { return Refuse(connection); }
  bool handlePatch(CivetServer* /*server*/, mg_connection* connection) override { return Refuse(connection); }

  bool Answer(mg_connection* connection, bool with_body) const {
    const auto page = pages.find(mg_get_request_info(connection)->local_uri);
    Send(connection, page == pages.end() ? HttpAnswer{.status = 404, .body = "not found\n"} : page->second(),
         with_body);
    return true;
  }

  static bool Refuse(mg_connection* connection) {
    Send(connection, {.status = 405, .body = "only GET and HEAD\n"}, true);
    return true;
  }
};

HttpEndpoint::HttpEndpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}

HttpEndpoint::~HttpEndpoint() {
  // civetweb sees that it is to stop only when its poll of two seconds ends or a connection comes: so let some come.
  std::atomic<bool> closed{false};
  std::thread knocker([this, place = Sockaddr(state_->address, port()), &closed] {
    while (place.length > 0 && !closed) {
      Knock(place);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  state_->server->close();
  closed = true;
  knocker.join();
}

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(const std::string& address, int port, Pages pages) {
  auto state = std::make_unique<State>();
  state->address = address;
  state->pages = std::move(pages);
  const std::string place = absl::StrCat(absl::StrContains(address, ":") ? "[" + address + "]" : address, ":", port);
  const std::vector<std::string> options = {"listening_ports",          place,  "num_threads",         "4",
                                            "request_timeout_ms",       "5000", "enable_keep_alive",   "no",
                                            "enable_directory_listing", "no",   "allow_sendfile_call", "no"};
  try {
    state->server = std::make_unique<CivetServer>(options);
  } catch (const CivetException& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve HTTP on ", place, ": ", error.what()));
  }
  state->server->addHandler("/", *state);
  if (state->server->getListeningPorts().empty()) {
    return absl::UnavailableError(absl::StrCat("cannot serve HTTP on ", place));
  }
  return std::unique_ptr<HttpEndpoint>(new HttpEndpoint(std::move(state)));
}

int HttpEndpoint::port() const { return state_->server->getListeningPorts().front(); }

}  // namespace santa
