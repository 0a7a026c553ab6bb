#include "server/server_flags.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

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

std::optional<std::string> HelpOf(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "attention_server");
  std::vector<char*> argv;
  argv.reserve(arguments.size());
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return HelpOrVersion(static_cast<int>(argv.size()), argv.data());
}

TEST(ServerFlagsTest, HelpListsEveryFlagWithItsDefaultAndMeaning) {
  const std::optional<std::string> help = HelpOf({"--num_layers=2", "--help"});
  ASSERT_TRUE(help.has_value());
  for (const char* part :
       {"attention_server --num_layers=32", "\n  --listen=127.0.0.1:50051\n      IP address and port",
        "\n  --default_lease=10m\n      Time without use", "\n  --dtype=bf16\n", "\n  --kv_bytes=\n"}) {
    EXPECT_NE(help->find(part), std::string::npos) << part << "\nis missing of\n" << *help;
  }
  EXPECT_EQ(help->find("flagfile"), std::string::npos) << "Abseil's own flags are not the server's";
  for (size_t begin = 0; begin < help->size();) {
    const size_t end = help->find('\n', begin);
    ASSERT_NE(end, std::string::npos) << "the last line is not ended";
    EXPECT_LE(end - begin, 110U) << help->substr(begin, end - begin);
    begin = end + 1;
  }
  EXPECT_EQ(HelpOf({"-h"}), help);
  EXPECT_EQ(HelpOf({"--version"})->rfind("attention_server ", 0), 0U);
  EXPECT_FALSE(HelpOf({"--num_layers=2"}).has_value());
}

}  // namespace
}  // namespace santa
