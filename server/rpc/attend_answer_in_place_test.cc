// Answers that are put together where they are read: what protobuf reads there, and where the device writes.
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "server/rpc/attend_answer_writer.h"

namespace santa {
namespace {

using google::protobuf::util::MessageDifferencer;

constexpr KvLayout kLayout = {.num_layers = 2, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8};
constexpr DType kIoTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr v1::DataType kDataTypes[] = {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_BFLOAT16, v1::DATA_TYPE_FLOAT16};

struct alignas(64) Room {
  char bytes[1 << 14];
};

class AnswerInPlaceTest : public ::testing::Test {
 protected:
  // What others may have written there.
  void Scribble() {
    for (char& c : room_->bytes) c = static_cast<char>(random_());
  }
  // Without its padding.
  v1::AttendResponse Read(size_t length) const {
    v1::AttendResponse read;
    EXPECT_TRUE(read.ParseFromArray(room_->bytes, static_cast<int>(length)));
    for (v1::AttendResult& result : *read.mutable_results()) result.clear_padding();
    return read;
  }

  const std::unique_ptr<Room> room_ = std::make_unique<Room>();
  std::mt19937_64 random_{1};
  AttendAnswerWriter writer_;
};

TEST_F(AnswerInPlaceTest, ProtobufReadsWhatIsPutTogether) {
  enum Kind { kRefused, kFailed, kAnswered, kWithStatistics };
  for (int round = 0; round < 500; ++round) {
    Scribble();
    v1::AttendResponse expected;
    expected.set_request_id(random_() % 3 == 0 ? 0 : random_() >> (random_() % 64));
    writer_.Reset(expected.request_id(), kLayout);
    const size_t count = random_() % 5;
    std::vector<Kind> kinds;
    std::vector<size_t> types;
    for (size_t i = 0; i < count; ++i) {
      kinds.push_back(static_cast<Kind>(random_() % 4));
      types.push_back(random_() % 3);
      if (kinds[i] == kRefused) {
        writer_.AddRefused(absl::OutOfRangeError("no"));
      } else {
        writer_.AddAnswered(kIoTypes[types[i]], kinds[i] != kAnswered);
      }
    }
    ASSERT_TRUE(writer_.AllocateIn(room_->bytes));
    for (size_t i = 0; i < count; ++i) {
      v1::AttendResult& result = *expected.add_results();
      if (kinds[i] == kRefused) {
        result.mutable_status()->set_code(11);
        result.mutable_status()->set_message("no");
        continue;
      }
      std::string o(4 * 8 * SizeOf(kIoTypes[types[i]]), 0);
      for (char& c : o) c = static_cast<char>(random_());
      const float lse[] = {0.5F, -1.0F, 2.0F, static_cast<float>(i)};
      EXPECT_EQ(reinterpret_cast<uintptr_t>(writer_.o(i)) % 64, 0U);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(writer_.lse(i)) % alignof(float), 0U);
      std::memcpy(writer_.o(i), o.data(), o.size());
      std::memcpy(writer_.lse(i), lse, sizeof(lse));
      if (kinds[i] == kFailed) {
        result.mutable_status()->set_code(8);
        result.mutable_status()->set_message(std::string(300, 'x'));
        writer_.SetFailed(i, absl::ResourceExhaustedError(std::string(300, 'x')));
        continue;
      }
      result.mutable_status();
      result.mutable_o()->set_dtype(kDataTypes[types[i]]);
      for (const int64_t extent : {1, 4, 8}) result.mutable_o()->add_shape(extent);
      result.mutable_o()->set_data(o);
      result.mutable_lse()->Add(std::begin(lse), std::end(lse));
      if (kinds[i] != kWithStatistics) continue;
      result.mutable_statistics()->set_visible_tokens(static_cast<int64_t>(random_() >> (random_() % 64)));
      result.mutable_statistics()->set_device_seconds(0.25);
      writer_.SetStatistics(i, result.statistics());
    }
    const absl::StatusOr<size_t> length = writer_.Copy(room_->bytes);
    ASSERT_TRUE(length.ok()) << length.status();
    const v1::AttendResponse read = Read(*length);
    EXPECT_TRUE(MessageDifferencer::Equals(read, expected)) << read.DebugString() << expected.DebugString();
  }
}

TEST_F(AnswerInPlaceTest, ARefusalIsCutToItsPlace) {
  writer_.Reset(1, kLayout);
  writer_.AddAnswered(DType::kFloat32, false);
  writer_.AddAnswered(DType::kFloat32, false);
  ASSERT_TRUE(writer_.AllocateIn(room_->bytes));
  std::memset(writer_.o(1), 7, 4 * 8 * 4);
  const std::string o(static_cast<const char*>(writer_.o(1)), 4 * 8 * 4);
  const std::string text(5000, 'x');
  writer_.SetFailed(0, absl::UnavailableError(text));
  const v1::AttendResponse read = Read(*writer_.Copy(room_->bytes));
  ASSERT_EQ(read.results_size(), 2);
  EXPECT_EQ(read.results(0).status().code(), 14);
  EXPECT_GE(read.results(0).status().message().size(), 400U);
  EXPECT_TRUE(text.starts_with(read.results(0).status().message()));
  EXPECT_EQ(read.results(1).o().data(), o);
}

TEST_F(AnswerInPlaceTest, ARoomThatIsTooSmallIsNotTaken) {
  for (size_t bytes = 0; bytes < sizeof(room_->bytes); bytes += 64) {
    writer_.Reset(1, kLayout);
    for (int i = 0; i < 3; ++i) writer_.AddAnswered(DType::kFloat32, true);
    const std::span<char> room(room_->bytes, bytes);
    if (writer_.AllocateIn(room)) {
      EXPECT_GT(bytes, 3 * (4 * 8 * 4 + AttendAnswerWriter::StatisticsRoom(4)));
      return;
    }
    writer_.Allocate();  // by the other way
    EXPECT_TRUE(static_cast<char*>(writer_.o(0)) < room_->bytes ||
                static_cast<char*>(writer_.o(0)) >= room_->bytes + sizeof(room_->bytes));
  }
  FAIL() << "no room was enough";
}

}  // namespace
}  // namespace santa
