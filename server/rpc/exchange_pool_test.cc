#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "server/rpc/wire.h"

namespace santa {
namespace {

constexpr int kKept = 256;

class Mapping : public MappedMemory {
 public:
  explicit Mapping(int* living) : living_(living) { ++*living_; }
  ~Mapping() override { --*living_; }

 private:
  int* const living_;
};

class ExchangePoolTest : public ::testing::Test {
 protected:
  // Takes so many at a time; each has a message, of which no more is asked than that it takes memory.
  void Use(int count, const std::string& message) {
    std::vector<std::unique_ptr<AttendExchange>> exchanges;
    for (int i = 0; i < count; ++i) {
      exchanges.push_back(pool_.Take());
      EXPECT_FALSE(exchanges.back()->Read(SharedMessage{.bytes = message}, KvLayout(), 1, nullptr).ok());
    }
    while (!exchanges.empty()) {
      pool_.Return(std::move(exchanges.back()));
      exchanges.pop_back();
    }
  }

  int maps_ = 0;
  int living_ = 0;
  ExchangePool pool_{[this](std::span<char> /*memory*/) {
    ++maps_;
    return std::make_unique<Mapping>(&living_);
  }};
};

TEST_F(ExchangePoolTest, WhatIsKeptIsMappedAndNothingElse) {
  const std::string message(100, 'x');
  for (const int count : {1, 10, kKept + 50, kKept, kKept + 500, 3}) Use(count, message);
  EXPECT_EQ(maps_, kKept);  // however often there were more
  EXPECT_EQ(living_, kKept);
}

TEST_F(ExchangePoolTest, AGiantIsNotKept) {
  Use(5, std::string(100, 'x'));
  EXPECT_EQ(living_, 5);
  Use(5, std::string(2 << 20, 'x'));
  EXPECT_EQ(living_, 0);
  EXPECT_EQ(maps_, 5);  // its memory was not even mapped
  Use(kKept + 1, std::string(100, 'x'));
  EXPECT_EQ(living_, kKept);
}

}  // namespace
}  // namespace santa
