#include "ring/doorbell.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace santa {
namespace {

constexpr size_t kNameAt = offsetof(sockaddr_un, sun_path) + 1;  // behind the zero of the abstract namespace

int MakeSocket() { return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0); }

absl::Status Connect(int socket, const std::string& name) {
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  if (name.empty() || name.size() >= sizeof(address.sun_path)) {
    return absl::FailedPreconditionError(absl::StrCat("a doorbell's name has ", name.size(), " bytes"));
  }
  std::copy(name.begin(), name.end(), address.sun_path + 1);
  if (connect(socket, reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(kNameAt + name.size())) ==
      0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat("the server's doorbell: ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<Doorbell> Doorbell::Open() {
  Doorbell doorbell;
  doorbell.socket_ = MakeSocket();
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  socklen_t length = sizeof(sa_family_t);  // without a name: the system picks one
  if (doorbell.socket_ < 0 || bind(doorbell.socket_, reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("a doorbell: ", std::strerror(errno)));
  }
  length = sizeof(address);
  getsockname(doorbell.socket_, reinterpret_cast<sockaddr*>(&address), &length);
  doorbell.name_.assign(address.sun_path + 1, length - kNameAt);
  return doorbell;
}

absl::StatusOr<Doorbell> Doorbell::Find(const std::string& name) {
  Doorbell doorbell;
  doorbell.socket_ = MakeSocket();
  if (doorbell.socket_ < 0) return absl::FailedPreconditionError(absl::StrCat("a socket: ", std::strerror(errno)));
  if (absl::Status status = Connect(doorbell.socket_, name); !status.ok()) return status;
  doorbell.name_ = name;
  return doorbell;
}

Doorbell& Doorbell::operator=(Doorbell&& other) noexcept {
  std::swap(socket_, other.socket_);
  std::swap(name_, other.name_);
  return *this;
}

Doorbell::~Doorbell() {
  if (socket_ >= 0) close(socket_);
}

void Doorbell::Ring() const {
  const char byte = 0;
  static_cast<void>(send(socket_, &byte, sizeof(byte), MSG_DONTWAIT | MSG_NOSIGNAL));
}

void Doorbell::Wait() const {
  char byte = 0;
  static_cast<void>(recv(socket_, &byte, sizeof(byte), 0));
  constexpr int kMost = 1024;  // of those that ring without end
  for (int i = 0; i < kMost && recv(socket_, &byte, sizeof(byte), MSG_DONTWAIT) >= 0;) ++i;
}

}  // namespace santa
