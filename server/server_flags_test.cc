#include "server/server_flags.h"

#include <gtest/gtest.h>

namespace santa {
namespace {

TEST(ServerFlagsTest, ByteSizes) {
  EXPECT_EQ(*ParseByteSize("1"), 1);
  EXPECT_EQ(*ParseByteSize("4096B"), 4096);
  EXPECT_EQ(*ParseByteSize("512MiB"), int64_t{512} << 20);
  EXPECT_EQ(*ParseByteSize("2 GiB"), int64_t{2} << 30);
  EXPECT_EQ(*ParseByteSize("1.5KiB"), 1536);
  EXPECT_EQ(*ParseByteSize("3TiB"), int64_t{3} << 40);
  for (const char* bad :
       {"", "MiB", "0", "-1", "-1GiB", "nan", "inf", "nanGiB", "1e300", "9999999TiB", "12 parsecs", "1GB", "1GiB "}) {
    EXPECT_EQ(ParseByteSize(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace santa
