#include "server/logging/log.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace santa {
namespace {

TEST(LogTest, ALineIsOneJsonObject) {
  const std::string line = FormatLogLine(LogLevel::kWarning, "two\nlines \"quoted\"",
                                         {{"count", 7}, {"share", 0.5}, {"on", true}, {"text", "a\tb"}});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["level"], "warning");
  EXPECT_EQ(json["message"], "two\nlines \"quoted\"");
  EXPECT_EQ(json["count"], 7);
  EXPECT_EQ(json["share"], 0.5);
  EXPECT_EQ(json["on"], true);
  EXPECT_EQ(json["text"], "a\tb");
  EXPECT_EQ(json["time"].get<std::string>().size(), std::string("2026-01-01T00:00:00.000000Z").size());
}

TEST(LogTest, BytesThatAreNotUtf8DoNoHarm) {
  const std::string line = FormatLogLine(LogLevel::kInfo, "peer", {{"name", std::string("\xff\xfe", 2)}});
  EXPECT_TRUE(nlohmann::json::accept(line)) << line;
}

TEST(LogTest, LevelsHaveNames) {
  LogLevel level = LogLevel::kInfo;
  EXPECT_TRUE(ParseLogLevel("error", &level));
  EXPECT_EQ(level, LogLevel::kError);
  EXPECT_FALSE(ParseLogLevel("loud", &level));
  EXPECT_EQ(level, LogLevel::kError);
}

}  // namespace
}  // namespace santa
