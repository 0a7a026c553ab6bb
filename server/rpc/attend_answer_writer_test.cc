// The writer of AttendResponses: protobuf's own parser reads what it writes.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "server/rpc/attend_answer_writer.h"

namespace santa {
namespace {

using google::protobuf::util::MessageDifferencer;

constexpr KvLayout kLayout = {.num_layers = 2, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8};

std::string Joined(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(bytes.Dump(&slices).ok());
  std::string joined;
  for (const grpc::Slice& slice : slices) joined.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return joined;
}

// An item that was answered, as protobuf has it.
v1::AttendResult Answered(DType dtype, const std::string& o, const std::vector<float>& lse) {
  v1::AttendResult result;
  result.mutable_status();
  result.mutable_o()->set_dtype(dtype == DType::kFloat32    ? v1::DATA_TYPE_FLOAT32
                                : dtype == DType::kBFloat16 ? v1::DATA_TYPE_BFLOAT16
                                                            : v1::DATA_TYPE_FLOAT16);
  for (const int64_t extent : {1, 4, 8}) result.mutable_o()->add_shape(extent);
  result.mutable_o()->set_data(o);
  result.mutable_lse()->Add(lse.begin(), lse.end());
  return result;
}

v1::AttendStatistics RandomStatistics(std::mt19937_64& random) {
  v1::AttendStatistics statistics;
  statistics.set_visible_tokens(static_cast<int64_t>(random()));
  statistics.set_kv_bytes_read(static_cast<int64_t>(random() % 1000));
  statistics.set_device_seconds(0.25);
  for (int head = 0; head < kLayout.num_query_heads; ++head) statistics.add_relative_standard_error(0.5F);
  return statistics;
}

struct alignas(64) Room {
  char bytes[1 << 16];
};

TEST(AttendAnswerWriterTest, ProtobufReadsWhatItWrites) {
  const auto memory = std::make_unique<Room>();
  Room& room = *memory;
  std::mt19937_64 random(6);
  AttendAnswerWriter writer;
  for (int round = 0; round < 500; ++round) {
    v1::AttendResponse expected;
    expected.set_request_id(random() % 3 == 0 ? 0 : random() >> (random() % 64));
    writer.Reset(expected.request_id(), kLayout);
    std::vector<DType> dtypes;
    const size_t count = random() % 5;
    std::vector<int> kinds;  // 0: refused, 1: failed later, 2: answered, 3: with statistics
    for (size_t i = 0; i < count; ++i) {
      kinds.push_back(static_cast<int>(random() % 4));
      dtypes.push_back(static_cast<DType>(random() % 3));
      if (kinds[i] == 0) {
        writer.AddRefused(absl::OutOfRangeError("no"));
      } else {
        writer.AddAnswered(dtypes[i], kinds[i] == 3);
      }
    }
    writer.Allocate();
    for (size_t i = 0; i < count; ++i) {
      if (kinds[i] <= 1) {
        v1::ItemStatus* const status = expected.add_results()->mutable_status();
        status->set_code(kinds[i] == 0 ? 11 : 8);
        status->set_message(kinds[i] == 0 ? "no" : std::string(300, 'x'));
        if (kinds[i] == 1) writer.SetFailed(i, absl::ResourceExhaustedError(std::string(300, 'x')));
        continue;
      }
      std::string o(4 * 8 * SizeOf(dtypes[i]), 0);
      for (char& c : o) c = static_cast<char>(random());
      const std::vector<float> lse = {0.5F, -1.0F, std::numeric_limits<float>::infinity(), static_cast<float>(i)};
      EXPECT_EQ(reinterpret_cast<uintptr_t>(writer.o(i)) % 64, 0U);
      std::memcpy(writer.o(i), o.data(), o.size());
      std::memcpy(writer.lse(i), lse.data(), sizeof(float) * lse.size());
      v1::AttendResult& result = *expected.add_results();
      result = Answered(dtypes[i], o, lse);
      if (kinds[i] == 3) {
        *result.mutable_statistics() = RandomStatistics(random);
        writer.SetStatistics(i, result.statistics());
      }
    }
    const grpc::ByteBuffer bytes = writer.Take();
    v1::AttendResponse read;
    ASSERT_TRUE(read.ParseFromString(Joined(bytes)));
    EXPECT_TRUE(MessageDifferencer::Equals(read, expected)) << read.DebugString() << expected.DebugString();
    EXPECT_EQ(Joined(bytes).size(), expected.ByteSizeLong());  // nothing is said at greater length
    const size_t size = expected.ByteSizeLong();
    ASSERT_LE(size, sizeof(room.bytes));
    if (size > 0) {
      EXPECT_EQ(writer.Copy(std::span(room.bytes, size - 1)).status().code(), absl::StatusCode::kResourceExhausted);
    }
    EXPECT_EQ(*writer.Copy(room.bytes), size);
    EXPECT_EQ(std::string(room.bytes, size), Joined(bytes));
  }
}

TEST(AttendAnswerWriterTest, AnyStatisticsFitTheRoom) {
  constexpr int kHeads = 65536;  // the most that a layout has
  v1::AttendStatistics statistics;
  const auto* const reflection = statistics.GetReflection();
  const auto* const descriptor = statistics.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* const field = descriptor->field(i);
    if (field->is_repeated()) {  // a number for each query head
      ASSERT_EQ(field->name(), "relative_standard_error");
      for (int head = 0; head < kHeads; ++head) reflection->AddFloat(&statistics, field, -1);
      continue;
    }
    switch (field->cpp_type()) {
      case google::protobuf::FieldDescriptor::CPPTYPE_INT64:
        reflection->SetInt64(&statistics, field, -1);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_INT32:
        reflection->SetInt32(&statistics, field, -1);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_DOUBLE:
        reflection->SetDouble(&statistics, field, -1);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_FLOAT:
        reflection->SetFloat(&statistics, field, -1);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_BOOL:
        reflection->SetBool(&statistics, field, true);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_ENUM:
        reflection->SetEnumValue(&statistics, field, -1);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_STRING:
        ASSERT_EQ(field->name(), "trace_id") << "has no bounded length";
        reflection->SetString(&statistics, field, std::string(32, 'f'));
        break;
      default:
        FAIL() << field->name() << " has no bounded length";
    }
  }
  EXPECT_LE(statistics.ByteSizeLong(), AttendAnswerWriter::StatisticsRoom(kHeads));
}

}  // namespace
}  // namespace santa
