#include "ring/prefetching_copy.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace santa {
namespace {

TEST(PrefetchingCopyTest, CopiesWhatItIsToldTo) {
  std::mt19937_64 random(1);
  std::string from(20000, 0);
  for (char& c : from) c = static_cast<char>(random());
  for (int i = 0; i < 2000; ++i) {
    const size_t count = random() % (random() % 2 == 0 ? 70 : 10000);
    const size_t at = random() % (from.size() - count);
    const size_t to_at = random() % 64;
    std::string to(to_at + count + 64, 'x');
    PrefetchingCopy(to.data() + to_at, from.data() + at, count, random() % 30000);
    ASSERT_EQ(to, std::string(to_at, 'x') + from.substr(at, count) + std::string(64, 'x'));
  }
}

}  // namespace
}  // namespace santa
