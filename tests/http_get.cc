#include "tests/http_get.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>

namespace santa {

HttpResponse HttpRequest(int port, const std::string& method, const std::string& path) {
  HttpResponse response;
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return response;
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string received;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request =
        method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n = 0; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) received.append(buffer, n);
    }
  }
  close(fd);
  const size_t end = received.find("\r\n\r\n");
  if (end == std::string::npos) return response;
  response.head = received.substr(0, end);
  response.body = received.substr(end + 4);
  const size_t space = response.head.find(' ');
  if (space != std::string::npos) response.status = std::atoi(response.head.c_str() + space + 1);
  return response;
}

}  // namespace santa
