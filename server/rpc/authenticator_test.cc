#include "server/rpc/authenticator.h"

#include <gtest/gtest.h>

namespace santa {
namespace {

TEST(AuthenticatorTest, WithoutTokensEveryoneIsDefault) {
  EXPECT_EQ(*Authenticator().Tenant(""), "default");
  EXPECT_EQ(*Authenticator().Tenant("Bearer whatever"), "default");
}

TEST(AuthenticatorTest, ATokenNamesItsTenant) {
  const auto authenticator = Authenticator::Parse("# tokens\n\nsecret-1 red\n  secret-2\tblue \n");
  ASSERT_TRUE(authenticator.ok()) << authenticator.status();
  EXPECT_EQ(*authenticator->Tenant("Bearer secret-1"), "red");
  EXPECT_EQ(*authenticator->Tenant("bearer secret-2"), "blue");
  for (const char* bad : {"", "Bearer", "Bearer ", "Bearer secret", "Bearer secret-3", "Bearer secret-1 ", "secret-1",
                          "Basic secret-1"}) {
    EXPECT_EQ(authenticator->Tenant(bad).status().code(), absl::StatusCode::kUnauthenticated) << bad;
  }
}

TEST(AuthenticatorTest, ABadFileIsRefusedWithoutShowingAToken) {
  for (const char* bad : {"", "# nothing\n", "secret", "secret a b", "secret a\nsecret b"}) {
    const auto authenticator = Authenticator::Parse(bad);
    EXPECT_EQ(authenticator.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(authenticator.status().message().find("secret"), std::string::npos);
  }
  EXPECT_EQ(Authenticator::FromFile("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace santa
