#include "server/metrics/http_endpoint.h"

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

}  // namespace

struct HttpEndpoint::State : public CivetHandler {
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
HttpEndpoint::~HttpEndpoint() = default;

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(const std::string& address, int port, Pages pages) {
  auto state = std::make_unique<State>();
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
