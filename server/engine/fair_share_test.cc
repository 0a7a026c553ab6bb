#include "server/engine/fair_share.h"

#include <deque>
#include <map>

#include "gtest/gtest.h"

namespace santa {
namespace {

// A queue that is served a step at a time.
class FairShareTest : public testing::Test {
 protected:
  Step* Queue(const std::string& tenant, uint64_t client, int items = 1) {
    Step& step = steps_.emplace_back();
    step.tenant = tenant;
    step.client = client;
    step.items.resize(items);
    queue_.push_back(&step);
    ++arrived_;
    return &step;
  }

  Step* Serve() {
    share_.Order(arrived_, &queue_);
    arrived_ = 0;
    Step* const step = queue_.front();
    queue_.erase(queue_.begin());
    share_.Left(*step);
    return step;
  }

  // Items served of each client, or tenant, in so many steps.
  template <typename Key>
  std::map<Key, int> Serve(int count, Key Step::*key) {
    std::map<Key, int> items;
    for (int i = 0; i < count; ++i) {
      const Step* const step = Serve();
      items[step->*key] += static_cast<int>(step->items.size());
    }
    return items;
  }

  FairShare share_;
  std::deque<Step> steps_;
  std::vector<Step*> queue_;
  size_t arrived_ = 0;
};

TEST_F(FairShareTest, OneClientsStepsKeepTheirOrder) {
  std::vector<Step*> queued;
  queued.reserve(50);
  for (int i = 0; i < 50; ++i) queued.push_back(Queue("t", 1, 1 + i % 3));
  for (Step* step : queued) EXPECT_EQ(Serve(), step);
}

TEST_F(FairShareTest, ANewcomerWaitsForNoCrowd) {
  for (int i = 0; i < 10000; ++i) Queue("t", 1);
  for (int i = 0; i < 100; ++i) Serve();
  const Step* const newcomer = Queue("t", 2);
  const Step* const served[] = {Serve(), Serve()};
  EXPECT_TRUE(served[0] == newcomer || served[1] == newcomer);
}

TEST_F(FairShareTest, ClientsShareByItems) {
  for (int i = 0; i < 400; ++i) Queue("t", 1, 1);
  for (int i = 0; i < 400; ++i) Queue("t", 2, 8);
  for (int i = 0; i < 400; ++i) Queue("t", 3, 2);
  const std::map<uint64_t, int> items = Serve(300, &Step::client);
  for (const uint64_t client : {1, 2, 3}) EXPECT_NEAR(items.at(client), items.at(1), 16) << client;
}

TEST_F(FairShareTest, TenantsShareAlikeHoweverManyClientsTheyHave) {
  for (int i = 0; i < 40; ++i) {
    for (uint64_t client = 0; client < 50; ++client) Queue("many", client);
  }
  for (int i = 0; i < 2000; ++i) Queue("one", 7);
  const std::map<std::string, int> items = Serve(600, &Step::tenant);
  EXPECT_NEAR(items.at("many"), 300, 1);
  EXPECT_NEAR(items.at("one"), 300, 1);
  // And within the crowd each has its share.
  for (const auto& [client, served] : Serve(300, &Step::client)) {
    if (client == 7) continue;
    EXPECT_NEAR(served, 3, 1) << client;
  }
}

TEST_F(FairShareTest, SavesUpNothing) {
  // A client that was away has no claim to the turns that it did not use.
  for (int i = 0; i < 1000; ++i) Queue("t", 1);
  for (int i = 0; i < 500; ++i) Serve();
  for (int i = 0; i < 500; ++i) Queue("t", 2);
  const std::map<uint64_t, int> items = Serve(200, &Step::client);
  EXPECT_NEAR(items.at(1), 100, 1);
  EXPECT_NEAR(items.at(2), 100, 1);
}

TEST_F(FairShareTest, KeepsOnlyThoseInMindWhoWait) {
  Queue("t", 0);
  for (uint64_t client = 1; client < 10000; ++client) {  // they come and go; the queue is never empty
    Queue("t" + std::to_string(client % 7), client);
    Serve();
  }
  EXPECT_LT(share_.clients(), 100U);
}

}  // namespace
}  // namespace santa
