#include "server/settings.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "absl/flags/flag.h"

ABSL_FLAG(int32_t, pages, 1, "for this test");
ABSL_FLAG(bool, loud, false, "for this test");
ABSL_FLAG(std::string, place, "", "for this test");

namespace santa {
namespace {

std::string Text(const std::vector<Setting>& settings) {
  std::string text;
  for (const Setting& setting : settings) {
    text += setting.name + "=" + setting.value + " (" + setting.origin + ")\n";
  }
  return text;
}

absl::StatusOr<std::vector<Setting>> Arguments(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "program");
  return SettingsFromArguments(static_cast<int>(arguments.size()), arguments.data());
}

TEST(SettingsTest, ArgumentsWithAndWithoutAnEqualsSign) {
  const auto settings = Arguments({"--pages=3", "--place", "a=b", "--loud", "--loud=false"});
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(Text(*settings),
            "pages=3 (command line)\nplace=a=b (command line)\nloud=true (command line)\nloud=false (command line)\n");
}

TEST(SettingsTest, ArgumentsThatAreNone) {
  EXPECT_EQ(Arguments({"--nothing=1"}).status().message(), "there is no flag --nothing; --help lists those there are");
  EXPECT_EQ(Arguments({"--pages"}).status().message(), "--pages has no value");
  for (const char* argument : {"pages=3", "-pages=3", "--", ""}) {
    EXPECT_EQ(Arguments({argument}).status().code(), absl::StatusCode::kInvalidArgument) << argument;
  }
  EXPECT_FALSE(Arguments({"--flagfile=/dev/null"}).ok()) << "Abseil's own, which nothing here heeds";
}

TEST(SettingsTest, TheEnvironmentHasFlagsInCapitals) {
  const char* const environment[] = {"PAGES=9",    "SANTA_PAGES=4",      "SANTA_PLACE=a=b", "SANTA_loud=true",
                                     "SANTA_LOUD", "SANTA_PORT=tcp://1", "SANTA_=1",        nullptr};
  EXPECT_EQ(Text(SettingsFromEnvironment("SANTA_", environment)),
            "pages=4 (SANTA_PAGES)\nplace=a=b (SANTA_PLACE)\nloud= (SANTA_LOUD)\n");
}

TEST(SettingsTest, AFileHasALineForEach) {
  const auto settings = SettingsFromFile("x.conf", "# a comment\n\n pages = 5 # five\nplace=a#b\nloud =\r\n");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(Text(*settings), "pages=5 (x.conf:3)\nplace=a#b (x.conf:4)\nloud= (x.conf:5)\n");
}

TEST(SettingsTest, AFilesMistakesAreNamedWithTheirLine) {
  EXPECT_EQ(SettingsFromFile("x.conf", "pages = 5\npagges = 6\n").status().message(),
            "x.conf:2: there is no flag --pagges; --help lists those there are");
  EXPECT_EQ(SettingsFromFile("x.conf", "pages 5").status().message(),
            "x.conf:1: \"pages 5\" is no setting; allowed is name = value, or a comment after #");
}

TEST(SettingsTest, TheLastOneCounts) {
  ASSERT_TRUE(
      Apply({{"pages", "5", "x.conf:1"}, {"place", "here", "SANTA_PLACE"}, {"pages", "7", "command line"}}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_pages), 7);
  EXPECT_EQ(absl::GetFlag(FLAGS_place), "here");
  const absl::Status bad = Apply({{"pages", "many", "SANTA_PAGES"}});
  EXPECT_EQ(bad.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(bad.message()).find("--pages (SANTA_PAGES) is \"many\""), std::string::npos) << bad;
}

}  // namespace
}  // namespace santa
