#include "ring/streaming_writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <new>
#include <random>
#include <string>

namespace santa {
namespace {

struct alignas(64) Room {
  char bytes[4096];
};

// Parts of any length, the empty one among them, at any place.
TEST(StreamingWriterTest, PartsLieOneBehindTheOther) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    Room room;
    std::fill(std::begin(room.bytes), std::end(room.bytes), '!');
    const size_t most = random() % 4096;
    StreamingWriter writer({room.bytes, most}, round % 3 == 0);
    std::string expected;
    while (true) {
      std::string part(random() % (round % 2 == 0 ? 40 : 700), 0);
      for (char& c : part) c = static_cast<char>(random());
      const bool fits = expected.size() + part.size() <= most;
      ASSERT_EQ(writer.Append(part.data(), part.size()), fits);
      if (!fits) break;
      expected += part;
    }
    ASSERT_EQ(writer.Finish(), expected.size());
    ASSERT_EQ(std::string(room.bytes, expected.size()), expected);
    for (size_t i = most; i < 4096; ++i) ASSERT_EQ(room.bytes[i], '!') << "past the room";
  }
}

}  // namespace
}  // namespace santa
