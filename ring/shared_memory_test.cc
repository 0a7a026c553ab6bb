#include "ring/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

namespace santa {
namespace {

constexpr int64_t kBytes = 3 << 12;

absl::Status StatusOfOpen(int descriptor, int64_t bytes = kBytes) {
  return SharedMemory::Open(getpid(), descriptor, bytes).status();
}

// Of another maker than Create, named alike.
int Imitate(unsigned flags) {
  const int descriptor = memfd_create("santa-attention", flags);
  EXPECT_EQ(ftruncate(descriptor, kBytes), 0);
  return descriptor;
}

TEST(SharedMemoryTest, WhatOneWritesTheOtherReads) {
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(kBytes);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(std::count(made->bytes().begin(), made->bytes().end(), 0), kBytes);
  absl::StatusOr<SharedMemory> opened = SharedMemory::Open(getpid(), made->descriptor(), kBytes);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const SharedMemory moved = *std::move(opened);
  EXPECT_NE(moved.bytes().data(), made->bytes().data());
  made->bytes()[kBytes - 1] = 'x';
  EXPECT_EQ(moved.bytes()[kBytes - 1], 'x');
}

TEST(SharedMemoryTest, ItOutlivesItsMaker) {
  absl::StatusOr<SharedMemory> made = SharedMemory::Create(kBytes);
  ASSERT_TRUE(made.ok());
  const absl::StatusOr<SharedMemory> opened = SharedMemory::Open(getpid(), made->descriptor(), kBytes);
  ASSERT_TRUE(opened.ok());
  made->bytes()[0] = 'x';
  *made = SharedMemory();
  EXPECT_EQ(opened->bytes()[0], 'x');
}

TEST(SharedMemoryTest, NobodyChangesItsSize) {
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(kBytes);
  ASSERT_TRUE(made.ok());
  EXPECT_NE(ftruncate(made->descriptor(), 0), 0);
  EXPECT_NE(ftruncate(made->descriptor(), 2 * kBytes), 0);
  EXPECT_NE(fcntl(made->descriptor(), F_ADD_SEALS, F_SEAL_WRITE), 0);
}

TEST(SharedMemoryTest, RefusesWhatIsNotTheAgreedMemory) {
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(kBytes);
  ASSERT_TRUE(made.ok());
  const auto refusal = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(StatusOfOpen(made->descriptor(), 4096)),
            "the shared memory has 12288 bytes; allowed are the 4096 agreed upon");
  EXPECT_NE(refusal(StatusOfOpen(-1)).find("is not the server's shared memory"), std::string::npos);
  EXPECT_NE(refusal(SharedMemory::Open(-1, 0, kBytes).status()).find("is not the server's"), std::string::npos);

  const int unsealed = Imitate(MFD_ALLOW_SEALING);
  EXPECT_EQ(refusal(StatusOfOpen(unsealed)), "the shared memory is not sealed: its size could change");
  close(unsealed);
  const int device = open("/dev/zero", O_RDWR);
  EXPECT_NE(refusal(StatusOfOpen(device)).find("is not the server's shared memory"), std::string::npos);
  close(device);
}

TEST(SharedMemoryTest, RefusesAnotherUsers) {
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(kBytes);
  ASSERT_TRUE(made.ok());
  if (fchown(made->descriptor(), geteuid() + 1, getegid()) != 0) GTEST_SKIP() << "only root gives files away";
  const absl::Status status = StatusOfOpen(made->descriptor());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("owner is user"), std::string::npos) << status;
}

}  // namespace
}  // namespace santa
