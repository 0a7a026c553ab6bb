#include "tests/client_library_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

namespace santa {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

// Small writes go out at once, as they do without a proxy.
void DisableDelay(int socket) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

bool SendAll(int socket, const char* data, ssize_t size) {
  while (size > 0) {
    const ssize_t sent = send(socket, data, size, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    data += sent;
    size -= sent;
  }
  return true;
}

}  // namespace

// Sockets close when both directions have ended, so that none is reused under a thread that still has its number.
struct CuttingProxy::Connection {
  Connection(int client_socket, int server_socket) : client(client_socket), server(server_socket) {}
  ~Connection() {
    up.join();
    down.join();
    close(client);
    close(server);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Shutdown() const {
    shutdown(client, SHUT_RDWR);
    shutdown(server, SHUT_RDWR);
  }

  const int client;
  const int server;
  std::atomic<bool> ended = false;
  std::thread up;
  std::thread down;
};

CuttingProxy::CuttingProxy(int server_port, std::vector<CutAfter> plan, CutAfter rest)
    : plan_(std::move(plan)), rest_(rest), server_port_(server_port) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  if (listener_ < 0 || bind(listener_, reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      listen(listener_, SOMAXCONN) != 0 || getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::system_error(errno, std::generic_category(), "a socket to listen on");
  }
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

CuttingProxy::~CuttingProxy() {
  shutdown(listener_, SHUT_RDWR);  // ends accept()
  acceptor_.join();
  close(listener_);
  CutAll();
  connections_.clear();
}

std::string CuttingProxy::target() const { return "127.0.0.1:" + std::to_string(port_); }

void CuttingProxy::CutAll() {
  const std::lock_guard lock(mutex_);
  for (const auto& connection : connections_) Cut(*connection);
}

void CuttingProxy::Cut(Connection& connection) {
  if (!connection.ended.exchange(true)) ++cuts_;
  connection.Shutdown();
}

void CuttingProxy::Accept() {
  while (true) {
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      return;
    }
    const int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = Loopback(server_port_);
    if (server < 0 || connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
      if (server >= 0) close(server);
      close(client);
      continue;
    }
    DisableDelay(client);
    DisableDelay(server);
    const size_t index = connected_++;
    const CutAfter limits = index < plan_.size() ? plan_[index] : rest_;
    const std::lock_guard lock(mutex_);
    Connection& connection = *connections_.emplace_back(std::make_unique<Connection>(client, server));
    connection.up = std::thread([this, &connection, limits] {
      Forward(connection, connection.client, connection.server, limits.to_server, to_server_);
    });
    connection.down = std::thread([this, &connection, limits] {
      Forward(connection, connection.server, connection.client, limits.to_client, to_client_);
    });
  }
}

void CuttingProxy::Forward(Connection& connection, int from, int to, int64_t limit, std::atomic<int64_t>& total) {
  std::array<char, 16384> buffer;
  int64_t left = limit;
  while (left > 0) {
    const ssize_t size = recv(from, buffer.data(), std::min<int64_t>(left, buffer.size()), 0);
    if (size <= 0 || !SendAll(to, buffer.data(), size)) break;
    left -= size;
    total += size;
  }
  if (left == 0) return Cut(connection);
  connection.ended = true;  // by one of its ends
  connection.Shutdown();
}

}  // namespace santa
