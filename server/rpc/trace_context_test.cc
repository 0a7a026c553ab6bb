#include "server/rpc/trace_context.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"

namespace santa {
namespace {

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpan[] = "00f067aa0ba902b7";

TEST(TraceContextTest, ReadsTheStandardsExample) {
  const std::string trace = kTrace;
  const std::string span = kSpan;
  for (const std::string& header :
       {absl::StrCat("00-", trace, "-", span, "-01"), absl::StrCat("00-", trace, "-", span, "-00"),
        absl::StrCat("cc-", trace, "-", span, "-01-what-comes-later")}) {
    const std::optional<TraceContext> context = ParseTraceparent(header);
    ASSERT_TRUE(context.has_value()) << header;
    EXPECT_EQ(context->trace_id, kTrace);
    EXPECT_EQ(context->parent_id, kSpan);
  }
}

TEST(TraceContextTest, IgnoresWhatIsBroken) {
  const std::string trace = kTrace;
  const std::string span = kSpan;
  for (const std::string& header :
       {std::string(), std::string("00"), absl::StrCat("ff-", trace, "-", span, "-01"),
        absl::StrCat("00-", trace, "-", span), absl::StrCat("00-", trace, "-", span, "-01-more"),
        absl::StrCat("cc-", trace, "-", span, "-01.more"), absl::StrCat("00-", std::string(32, '0'), "-", span, "-01"),
        absl::StrCat("00-", trace, "-", std::string(16, '0'), "-01"),
        absl::StrCat("00-4BF92F3577B34DA6A3CE929D0E0E4736-", span, "-01"), absl::StrCat("00-", trace, "_", span, "-01"),
        absl::StrCat("0x-", trace, "-", span, "-01"), absl::StrCat("00-", trace, "-", span, "-0g")}) {
    EXPECT_FALSE(ParseTraceparent(header).has_value()) << header;
  }
}

}  // namespace
}  // namespace santa
