#include "ring/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace santa {
namespace {

constexpr char kName[] = "santa-attention";
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// As ErrnoToStatus, with the code of the caller's choice.
absl::Status Error(absl::StatusCode code, const char* what) {
  return absl::Status(code, absl::StrCat(what, ": ", std::strerror(errno)));
}

// Whether the path is one of Create's, before it is opened: that of another process may be anything, a device say.
bool LeadsToSharedMemory(const std::string& path) {
  std::array<char, 64> target;
  const ssize_t length = readlink(path.c_str(), target.data(), target.size());
  return length > 0 && std::string_view(target.data(), length) == absl::StrCat("/memfd:", kName, " (deleted)");
}

absl::Status Check(int descriptor, int64_t bytes) {
  struct stat status = {};
  if (fstat(descriptor, &status) != 0) return Error(absl::StatusCode::kFailedPrecondition, "fstat");
  if (status.st_uid != geteuid()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the shared memory's owner is user ", status.st_uid, "; allowed is this one, ", geteuid()));
  }
  if (status.st_size != bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("the shared memory has ", status.st_size, " bytes; allowed are the ", bytes, " agreed upon"));
  }
  if ((fcntl(descriptor, F_GET_SEALS) & kSeals) != kSeals) {
    return absl::FailedPreconditionError("the shared memory is not sealed: its size could change");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SharedMemory> SharedMemory::Create(int64_t bytes) {
  const int descriptor = memfd_create(kName, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0) return Error(absl::StatusCode::kResourceExhausted, "memfd_create");
  if (fchmod(descriptor, S_IRUSR | S_IWUSR) != 0 || ftruncate(descriptor, bytes) != 0 ||
      fcntl(descriptor, F_ADD_SEALS, kSeals) != 0) {
    const absl::Status error = Error(absl::StatusCode::kResourceExhausted, "shared memory");
    close(descriptor);
    return error;
  }
  return Map(descriptor, bytes);
}

absl::StatusOr<SharedMemory> SharedMemory::Open(int32_t process, int32_t descriptor, int64_t bytes) {
  const std::string path = absl::StrCat("/proc/", process, "/fd/", descriptor);
  if (!LeadsToSharedMemory(path)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is not the server's shared memory, or not for us"));
  }
  // Not blocking: meanwhile it may have become something else.
  const int opened = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (opened < 0) return Error(absl::StatusCode::kFailedPrecondition, path.c_str());
  if (absl::Status status = Check(opened, bytes); !status.ok()) {
    close(opened);
    return status;
  }
  return Map(opened, bytes);
}

absl::StatusOr<SharedMemory> SharedMemory::Map(int descriptor, int64_t bytes) {
  SharedMemory shared;
  shared.descriptor_ = descriptor;
  void* const memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) return Error(absl::StatusCode::kResourceExhausted, "mmap of shared memory");
  shared.memory_ = {static_cast<char*>(memory), static_cast<size_t>(bytes)};
  return shared;
}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (!memory_.empty()) munmap(memory_.data(), memory_.size());
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace santa
