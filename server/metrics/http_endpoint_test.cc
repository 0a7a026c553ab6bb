#include "server/metrics/http_endpoint.h"

#include <gtest/gtest.h>

#include "tests/http_get.h"

namespace santa {
namespace {

TEST(HttpEndpointTest, ServesItsPagesAndNothingElse) {
  bool ready = true;
  auto endpoint = HttpEndpoint::Start(
      "127.0.0.1", 0, {{"/readyz", [&] { return HttpAnswer{.status = ready ? 200 : 503, .body = "said\n"}; }}});
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  const int port = (*endpoint)->port();
  ASSERT_GT(port, 0);
  EXPECT_EQ(HttpRequest(port, "GET", "/readyz").status, 200);
  EXPECT_EQ(HttpRequest(port, "GET", "/readyz").body, "said\n");
  EXPECT_EQ(HttpRequest(port, "HEAD", "/readyz").body, "");
  EXPECT_EQ(HttpRequest(port, "POST", "/readyz").status, 405);
  EXPECT_EQ(HttpRequest(port, "GET", "/readyz/more").status, 404);
  EXPECT_EQ(HttpRequest(port, "GET", "/").status, 404);
  EXPECT_EQ(HttpRequest(port, "GET", "/../etc/passwd").status / 100, 4);
  ready = false;
  EXPECT_EQ(HttpRequest(port, "GET", "/readyz").status, 503);

  const auto second = HttpEndpoint::Start("127.0.0.1", port, {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace santa
