#include "server/rpc/tensor_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <set>

namespace santa {
namespace {

// Writes all of the memory when it is given up: it must still be there.
class Mapping : public MappedMemory {
 public:
  Mapping(std::set<const char*>* living, std::span<char> memory) : living_(living), memory_(memory) {
    living_->insert(memory_.data());
  }
  ~Mapping() override {
    std::memset(memory_.data(), 1, memory_.size());
    living_->erase(memory_.data());
  }

 private:
  std::set<const char*>* const living_;
  const std::span<char> memory_;
};

TEST(TensorMemoryTest, IsMappedAnewWhenItGrows) {
  std::set<const char*> living;
  {
    TensorMemory memory([&living](std::span<char> bytes) { return std::make_unique<Mapping>(&living, bytes); });
    EXPECT_FALSE(memory.mapped());
    for (const size_t bytes : {1, 4096, 100, 10'000, 500'000}) {
      memory.MakeRoom(bytes);
      EXPECT_TRUE(memory.mapped());
      EXPECT_EQ(living, std::set<const char*>{memory.bytes().data()});
      EXPECT_GE(memory.bytes().size(), bytes);
      EXPECT_EQ(memory.bytes().size() % 4096, 0U);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.bytes().data()) % 4096, 0U);
    }
    memory.MakeRoom(600'000);  // too much to be kept
    EXPECT_FALSE(memory.mapped());
    EXPECT_TRUE(living.empty());
  }
  TensorMemory none(nullptr);
  none.MakeRoom(1);
  EXPECT_FALSE(none.mapped());
  TensorMemory refused([](std::span<char> /*bytes*/) { return nullptr; });
  refused.MakeRoom(1);
  EXPECT_FALSE(refused.mapped());
}

TEST(TensorMemoryTest, IsGivenUpWithItsMapping) {
  std::set<const char*> living;
  auto memory = std::make_unique<TensorMemory>(
      [&living](std::span<char> bytes) { return std::make_unique<Mapping>(&living, bytes); });
  memory->MakeRoom(5000);
  EXPECT_EQ(living.size(), 1U);
  memory.reset();
  EXPECT_TRUE(living.empty());
}

}  // namespace
}  // namespace santa
