// The codec of the Attend messages against protobuf's own, on messages good and bad.
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
#include "server/rpc/attend_request_reader.h"

namespace santa {
namespace {

using google::protobuf::util::MessageDifferencer;

constexpr int32_t kMaxItems = 20;
constexpr KvLayout kLayout = {.num_layers = 2, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8};

// Cut into slices at random places, empty ones among them.
grpc::ByteBuffer InSlices(const std::string& bytes, std::mt19937_64& random) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size() || slices.empty();) {
    const size_t length = std::min<size_t>(random() % 3 == 0 ? random() % 4 : random() % 200, bytes.size() - at);
    slices.emplace_back(bytes.data() + at, length);
    at += length;
  }
  return {slices.data(), slices.size()};
}

std::string Joined(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(bytes.Dump(&slices).ok());
  std::string joined;
  for (const grpc::Slice& slice : slices) joined.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return joined;
}

void FillTensor(v1::Tensor* tensor, int64_t bytes, std::mt19937_64& random) {
  tensor->set_dtype(v1::DATA_TYPE_BFLOAT16);
  for (const int64_t extent : {int64_t{1}, bytes / 16, int64_t{8}}) tensor->add_shape(extent);
  tensor->mutable_data()->resize(bytes);
  for (char& c : *tensor->mutable_data()) c = static_cast<char>(random());
}

v1::AttendRequest RandomRequest(std::mt19937_64& random) {
  v1::AttendRequest request;
  request.set_request_id(random() >> (random() % 64));
  request.set_layer(random() % 3);
  for (uint64_t i = 1 + random() % 4; i > 0; --i) {
    v1::AttendItem& item = *request.add_items();
    item.mutable_handle()->set_id(random());
    item.mutable_handle()->set_generation(random() % 100);
    item.set_position(static_cast<int64_t>(random() % 100000) - 5);
    FillTensor(item.mutable_q(), 16 * (random() % 40), random);
    if (random() % 2 == 0) {
      FillTensor(item.mutable_k(), 16 * (random() % 10), random);
      FillTensor(item.mutable_v(), 16 * (random() % 10), random);
    }
    if (random() % 4 == 0) continue;
    item.mutable_options()->set_method(v1::METHOD_S2ANTA_FLASH);
    item.mutable_options()->set_seed(random());
    item.mutable_options()->mutable_sink_logits()->Resize(random() % 5, 0.5F);
    item.mutable_options()->set_want_statistics(random() % 2 == 0);
  }
  return request;
}

// Unless the message has it already, as protobuf read it.
void PutBack(const TensorFields& fields, bool is_there, v1::Tensor* (v1::AttendItem::*place)(), v1::AttendItem* item) {
  if (!fields.present || is_there) return;
  v1::Tensor* const tensor = (item->*place)();
  tensor->set_dtype(static_cast<v1::DataType>(fields.dtype));
  tensor->mutable_shape()->Add(fields.extents.begin(), fields.extents.begin() + fields.num_extents);
  tensor->set_data(std::string(fields.data));
}

// The reader's message with the tensors put back.
v1::AttendRequest Whole(const AttendRequestReader& reader) {
  v1::AttendRequest whole = reader.request();
  for (int i = 0; i < whole.items_size(); ++i) {
    const ItemTensors& tensors = reader.tensors(i);
    v1::AttendItem& item = *whole.mutable_items(i);
    PutBack(tensors.q, item.has_q(), &v1::AttendItem::mutable_q, &item);
    PutBack(tensors.k, item.has_k(), &v1::AttendItem::mutable_k, &item);
    PutBack(tensors.v, item.has_v(), &v1::AttendItem::mutable_v, &item);
  }
  return whole;
}

// Both parsers refuse the bytes, or both read the same message.
void ExpectAsProtobuf(AttendRequestReader& reader, const std::string& bytes, std::mt19937_64& random, int* read) {
  v1::AttendRequest expected;
  const bool good = expected.ParseFromString(bytes);
  const absl::Status status = reader.Read(InSlices(bytes, random), kMaxItems);
  if (!good || expected.items_size() < 1 || expected.items_size() > kMaxItems) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << good << " " << expected.items_size();
    return;
  }
  ASSERT_TRUE(status.ok()) << status << "\n" << expected.DebugString();
  ++*read;
  // As bytes: a NaN in a sink equals itself then.
  expected.DiscardUnknownFields();
  v1::AttendRequest whole = Whole(reader);
  whole.DiscardUnknownFields();
  EXPECT_EQ(whole.SerializeAsString(), expected.SerializeAsString());
}

TEST(AttendRequestReaderTest, TakesTensorsOutOfGoodRequests) {
  std::mt19937_64 random(1);
  AttendRequestReader reader;
  for (int i = 0; i < 1000; ++i) {
    const v1::AttendRequest request = RandomRequest(random);
    ASSERT_TRUE(reader.Read(InSlices(request.SerializeAsString(), random), kMaxItems).ok());
    EXPECT_TRUE(MessageDifferencer::Equals(Whole(reader), request));
    for (int item = 0; item < request.items_size(); ++item) {
      // Not by way of protobuf, which would have the data in the message; and aligned.
      EXPECT_TRUE(reader.request().items(item).q().data().empty());
      for (const std::string_view data :
           {reader.tensors(item).q.data, reader.tensors(item).k.data, reader.tensors(item).v.data}) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(data.data()) % 64, 0U);
      }
    }
  }
}

TEST(AttendRequestReaderTest, ReadsWhatProtobufReadsOfMutatedRequests) {
  std::mt19937_64 random(2);
  AttendRequestReader reader;
  int read = 0;
  constexpr int kMutants = 20000;
  for (int i = 0; i < kMutants; ++i) {
    std::string bytes = RandomRequest(random).SerializeAsString();
    for (uint64_t changes = 1 + random() % 3; changes > 0 && !bytes.empty(); --changes) {
      const size_t at = random() % (random() % 2 == 0 ? std::min<size_t>(bytes.size(), 64) : bytes.size());
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
          break;
        case 1:
          bytes[at] = static_cast<char>(random());
          break;
        case 2:
          bytes.erase(at, 1 + random() % 8);
          break;
        case 3:
          bytes.insert(at, bytes.substr(at, 1 + random() % 16));
          break;
        default:
          bytes.resize(at);
      }
    }
    ExpectAsProtobuf(reader, bytes, random, &read);
  }
  EXPECT_GT(read, kMutants / 10);  // the mutants are not all unreadable, nor all readable
  EXPECT_LT(read, kMutants * 9 / 10);
}

TEST(AttendRequestReaderTest, MergesWhatComesTwiceAsProtobufDoes) {
  std::mt19937_64 random(3);
  AttendRequestReader reader;
  int read = 0;
  for (int i = 0; i < 500; ++i) {
    // Two items' fields in one item: every message in it comes twice.
    const v1::AttendRequest first = RandomRequest(random);
    const v1::AttendRequest second = RandomRequest(random);
    const std::string item = first.items(0).SerializeAsString() + second.items(0).SerializeAsString();
    std::string bytes = "\x1a";
    for (size_t length = item.size(); length > 0; length >>= 7) {
      bytes += static_cast<char>((length & 0x7f) | (length >= 0x80 ? 0x80 : 0));
    }
    ExpectAsProtobuf(reader, bytes + item, random, &read);
  }
  EXPECT_EQ(read, 500);
}

TEST(AttendRequestReaderTest, UnusualWaysToSayTheSame) {
  std::mt19937_64 random(4);
  AttendRequestReader reader;
  int read = 0;
  const std::string good = RandomRequest(random).SerializeAsString();
  for (const std::string& extra : {
           std::string("\x7b\x08\x01\x7c", 4),          // a group that nobody knows, closed
           std::string("\x7b\x08\x01", 3),              // and not closed
           std::string("\x00\x01", 2),                  // field 0
           std::string("\x18\x05", 2),                  // `items` as a number
           std::string("\x08\x81\x80\x00", 4),          // a long form of 1
           std::string("\x7a\x03xyz", 5),               // an unknown field
           std::string("\x7a\x05xyz", 5),               // that ends too late
           std::string("\x1a\x02\x1a\x00", 4),          // an item whose q is empty
           std::string("\x1a\x04\x1a\x02\x1a\x05", 6),  // data longer than its tensor
           std::string("\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11),
       }) {
    ExpectAsProtobuf(reader, good + extra, random, &read);
    ExpectAsProtobuf(reader, extra + good, random, &read);
  }
  EXPECT_GT(read, 6);
}

TEST(AttendRequestReaderTest, ManyItemsTakeNoMemory) {
  AttendRequestReader reader;
  std::string bytes;
  for (int i = 0; i < 100000; ++i) bytes.append("\x1a\x00", 2);
  grpc::Slice slice(bytes);
  const absl::Status status = reader.Read({&slice, 1}, kMaxItems);
  EXPECT_EQ(status.message(), "items is 100000 long; allowed is [1, 20]");
}

TEST(AttendRequestReaderTest, TinyTensorsThatAlignmentWouldBlowUpAreReadToo) {
  std::mt19937_64 random(5);
  AttendRequestReader reader;
  v1::AttendRequest request;
  for (int i = 0; i < 2000; ++i) request.add_items()->mutable_q()->set_data("12");
  ASSERT_TRUE(reader.Read(InSlices(request.SerializeAsString(), random), 2000).ok());
  EXPECT_TRUE(MessageDifferencer::Equals(Whole(reader), request));
}

TEST(AttendRequestReaderTest, QueriesMayBeLeftWhereTheyAre) {
  std::mt19937_64 random(7);
  AttendRequestReader reader;
  for (int round = 0; round < 300; ++round) {
    const v1::AttendRequest request = RandomRequest(random);
    const std::string bytes = request.SerializeAsString();
    ASSERT_TRUE(reader.Read(bytes, kMaxItems, round % 2 == 0).ok());
    EXPECT_TRUE(MessageDifferencer::Equals(Whole(reader), request));
    for (int i = 0; i < request.items_size(); ++i) {
      const ItemTensors& tensors = reader.tensors(i);
      const auto within = [&](std::string_view data) {
        return !data.empty() && data.data() >= bytes.data() && data.data() < bytes.data() + bytes.size();
      };
      EXPECT_EQ(tensors.q_in_place, round % 2 == 0);
      EXPECT_EQ(within(tensors.q.data), round % 2 == 0 && !tensors.q.data.empty());
      EXPECT_FALSE(within(tensors.k.data) || within(tensors.v.data));
    }
  }
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
