#include "client/bench/lengths.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

namespace santa::bench {
namespace {

std::vector<int64_t> Draw(const Lengths& lengths, int64_t count) {
  std::vector<int64_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = lengths.Of(i, 7);
  return values;
}

TEST(LengthsTest, ANumberIsEverySequencesLength) {
  EXPECT_EQ(Draw(*Lengths::Parse("4096"), 3), std::vector<int64_t>(3, 4096));
  EXPECT_EQ(Draw(*Lengths::Parse("0"), 2), std::vector<int64_t>(2, 0));
}

TEST(LengthsTest, DistributionsStayInTheirRangesAndFillThem) {
  for (const char* text : {"uniform:100:10000", "loguniform:100:10000"}) {
    std::vector<int64_t> values = Draw(*Lengths::Parse(text), 2000);
    std::sort(values.begin(), values.end());
    EXPECT_GE(values.front(), 100) << text;
    EXPECT_LE(values.back(), 10000) << text;
    EXPECT_LT(values.front(), 150) << text;
    EXPECT_GT(values.back(), 9500) << text;
    // The medians are 5050 and 1000; the standard error of the second's logarithm is 0.05.
    EXPECT_NEAR(values[1000], text[0] == 'u' ? 5050 : 1000, text[0] == 'u' ? 500 : 200) << text;
  }
}

TEST(LengthsTest, ALogNormalHasItsMedianAndSpreadAndEnd) {
  std::vector<int64_t> values = Draw(*Lengths::Parse("lognormal:1000:1:4000"), 4000);
  std::sort(values.begin(), values.end());
  EXPECT_NEAR(values[2000], 1000, 100);
  EXPECT_NEAR(values[634], 368, 60);  // one standard deviation below: 1000 / e
  EXPECT_EQ(values.back(), 4000);
}

TEST(LengthsTest, IsAPureFunctionOfIndexAndSeed) {
  const Lengths lengths = *Lengths::Parse("uniform:1:1000000");
  EXPECT_EQ(lengths.Of(3, 1), lengths.Of(3, 1));
  EXPECT_NE(lengths.Of(3, 1), lengths.Of(4, 1));
  EXPECT_NE(lengths.Of(3, 1), lengths.Of(3, 2));
}

TEST(LengthsTest, AFilesNumbersComeInTurn) {
  const std::string path = testing::TempDir() + "/lengths";
  std::ofstream(path) << "10 20\n30\n";
  const auto lengths = Lengths::Parse("file:" + path);
  ASSERT_TRUE(lengths.ok()) << lengths.status();
  EXPECT_EQ(Draw(*lengths, 5), (std::vector<int64_t>{10, 20, 30, 10, 20}));
  EXPECT_EQ(lengths->text(), "file:" + path);
}

TEST(LengthsTest, RefusesWithASentence) {
  const std::string bad = testing::TempDir() + "/bad_lengths";
  std::ofstream(bad) << "10 -3\n";
  const std::string empty = testing::TempDir() + "/no_lengths";
  std::ofstream(empty) << "\n";
  for (const auto& [text, sentence] : std::vector<std::pair<std::string, std::string>>{
           {"", "--tokens is \"\"; allowed is N, "},
           {"-1", "--tokens is \"-1\""},
           {"many", "--tokens is \"many\""},
           {"uniform:5", "--tokens is \"uniform:5\""},
           {"uniform:5:4", "--tokens is \"uniform:5:4\""},
           {"uniform:0:4", "--tokens is \"uniform:0:4\""},
           {"lognormal:5:nan:9", "--tokens is \"lognormal:5:nan:9\""},
           {"lognormal:5:11:9", "--tokens is \"lognormal:5:11:9\""},
           {"file:" + bad, "number 2 of " + bad + " is \"-3\""},
           {"file:" + empty, empty + " holds no number"},
           {"file:/no/such/file", "cannot read /no/such/file"},
       }) {
    const auto lengths = Lengths::Parse(text);
    EXPECT_FALSE(lengths.ok()) << text;
    EXPECT_NE(std::string(lengths.status().message()).find(sentence), std::string::npos) << lengths.status();
  }
}

}  // namespace
}  // namespace santa::bench
