// The reader of AttendRequests against protobuf's own parser, on messages good and bad.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "server/rpc/attend_request_reader.h"

namespace santa {
namespace {

using google::protobuf::util::MessageDifferencer;

constexpr int32_t kMaxItems = 20;

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

void PutBack(const TensorFields& fields, v1::Tensor* (v1::AttendItem::*place)(), v1::AttendItem* item) {
  if (!fields.present) return;
  v1::Tensor* const tensor = (item->*place)();
  tensor->set_dtype(static_cast<v1::DataType>(fields.dtype));
  const int kept = std::min(fields.num_extents, TensorFields::kMostExtents);
  tensor->mutable_shape()->Add(fields.extents.begin(), fields.extents.begin() + kept);
  tensor->mutable_shape()->Resize(fields.num_extents, 0);
  tensor->set_data(std::string(fields.data));
}

v1::AttentionOptions MessageOf(const OptionFields& options) {
  v1::AttentionOptions message;
  message.set_method(static_cast<v1::Method>(options.method));
  message.set_sample_count(options.sample_count);
  message.set_seed(options.seed);
  message.set_scale(options.scale);
  message.set_window(options.window);
  message.set_soft_cap(options.soft_cap);
  message.mutable_sink_logits()->Add(options.sink_logits.begin(), options.sink_logits.end());
  message.set_budget_rounding(static_cast<v1::BudgetRounding>(options.budget_rounding));
  message.set_want_statistics(options.want_statistics);
  message.set_target_relative_error(options.target_relative_error);
  message.set_score_draws(options.score_draws);
  return message;
}

// What the reader has read, as a message.
v1::AttendRequest Whole(const AttendRequestReader& reader) {
  v1::AttendRequest whole;
  whole.set_request_id(reader.request_id());
  whole.set_layer(reader.layer());
  for (const ItemFields& fields : reader.items()) {
    v1::AttendItem& item = *whole.add_items();
    if (fields.has_handle) {
      item.mutable_handle()->set_id(fields.handle.id);
      item.mutable_handle()->set_generation(fields.handle.generation);
    }
    item.set_position(fields.position);
    PutBack(fields.tensors.q, &v1::AttendItem::mutable_q, &item);
    PutBack(fields.tensors.k, &v1::AttendItem::mutable_k, &item);
    PutBack(fields.tensors.v, &v1::AttendItem::mutable_v, &item);
    *item.mutable_options() = MessageOf(fields.options);
  }
  return whole;
}

// The message without what the reader does not tell: fields that nobody knows, the values of a tensor's extents past
// the first ones, and whether options are absent or empty.
v1::AttendRequest AsRead(v1::AttendRequest request) {
  request.DiscardUnknownFields();
  for (v1::AttendItem& item : *request.mutable_items()) {
    item.mutable_options();
    for (v1::Tensor* const tensor :
         {item.has_q() ? item.mutable_q() : nullptr, item.has_k() ? item.mutable_k() : nullptr,
          item.has_v() ? item.mutable_v() : nullptr}) {
      if (tensor == nullptr) continue;
      for (int i = TensorFields::kMostExtents; i < tensor->shape_size(); ++i) tensor->set_shape(i, 0);
    }
  }
  return request;
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
  EXPECT_EQ(Whole(reader).SerializeAsString(), AsRead(expected).SerializeAsString());
}

TEST(AttendRequestReaderTest, TakesTensorsOutOfGoodRequests) {
  std::mt19937_64 random(1);
  AttendRequestReader reader;
  for (int i = 0; i < 1000; ++i) {
    const v1::AttendRequest request = RandomRequest(random);
    ASSERT_TRUE(reader.Read(InSlices(request.SerializeAsString(), random), kMaxItems).ok());
    EXPECT_TRUE(MessageDifferencer::Equals(Whole(reader), AsRead(request)));
    for (const ItemFields& item : reader.items()) {
      // Not by way of protobuf, whose strings are not aligned so.
      for (const std::string_view data : {item.tensors.q.data, item.tensors.k.data, item.tensors.v.data}) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(data.data()) % 64, 0U);
      }
    }
  }
}

// One to three changes somewhere, often at the beginning, where tensors of any size leave other fields a chance.
std::string Mutant(std::string bytes, std::mt19937_64& random) {
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
  return bytes;
}

TEST(AttendRequestReaderTest, ReadsWhatProtobufReadsOfMutatedRequests) {
  std::mt19937_64 random(2);
  AttendRequestReader reader;
  int read = 0;
  constexpr int kMutants = 20000;
  for (int i = 0; i < kMutants; ++i) {
    const std::string bytes = Mutant(RandomRequest(random).SerializeAsString(), random);
    ExpectAsProtobuf(reader, bytes, random, &read);
  }
  EXPECT_GT(read, kMutants / 10);  // the mutants are not all unreadable, nor all readable
  EXPECT_LT(read, kMutants * 9 / 10);
}

// A number of any length, often one that its field does not hold.
uint64_t RandomNumber(std::mt19937_64& random) { return random() >> (random() % 64); }

// Sets about half of the fields that are no tensors: by reflection, so that one that is new to the API and unknown to
// the reader shows.
void FillFields(google::protobuf::Message* message, std::mt19937_64& random) {
  const auto* const reflection = message->GetReflection();
  const auto* const descriptor = message->GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* const field = descriptor->field(i);
    if (random() % 2 == 0) continue;
    if (field->is_repeated()) {
      if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_FLOAT) continue;
      for (uint64_t count = random() % 5; count > 0; --count) reflection->AddFloat(message, field, 0.5F);
      continue;
    }
    const uint64_t number = RandomNumber(random);
    switch (field->cpp_type()) {
      case google::protobuf::FieldDescriptor::CPPTYPE_UINT64:
        reflection->SetUInt64(message, field, number);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_INT64:
        reflection->SetInt64(message, field, static_cast<int64_t>(number));
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_UINT32:
        reflection->SetUInt32(message, field, static_cast<uint32_t>(number));
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_FLOAT:
        reflection->SetFloat(message, field, static_cast<float>(number) * 0.25F);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_BOOL:
        reflection->SetBool(message, field, true);
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_ENUM:
        reflection->SetEnumValue(message, field, static_cast<int>(number));
        break;
      case google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE:
        if (field->message_type() == v1::Tensor::descriptor()) {
          FillTensor(static_cast<v1::Tensor*>(reflection->MutableMessage(message, field)), 0, random);
        } else {
          FillFields(reflection->MutableMessage(message, field), random);
        }
        break;
      default:
        FAIL() << "no test for " << field->full_name();
    }
  }
}

// The message's fields in any order, some of them twice.
std::string Shuffled(const google::protobuf::Message& message, std::mt19937_64& random) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (size_t i = fields.size(); i > 0; --i) {
    if (random() % 8 == 0) fields.push_back(fields[i - 1]);
  }
  std::shuffle(fields.begin(), fields.end(), random);
  std::string bytes;
  for (const auto* const field : fields) {
    const std::unique_ptr<google::protobuf::Message> alone(message.New());
    alone->CopyFrom(message);
    std::vector<const google::protobuf::FieldDescriptor*> others;
    alone->GetReflection()->ListFields(*alone, &others);
    for (const auto* const other : others) {
      if (other != field) alone->GetReflection()->ClearField(alone.get(), other);
    }
    bytes += alone->SerializeAsString();
  }
  return bytes;
}

void AppendItem(const std::string& item, std::string* request) {
  *request += '\x1a';
  for (size_t length = item.size();; length >>= 7) {
    *request += static_cast<char>((length & 0x7f) | (length >= 0x80 ? 0x80 : 0));
    if (length < 0x80) break;
  }
  *request += item;
}

TEST(AttendRequestReaderTest, ReadsWhatProtobufReadsOfFieldsInAnyOrder) {
  std::mt19937_64 random(8);
  AttendRequestReader reader;
  int read = 0;
  constexpr int kRequests = 20000;
  for (int i = 0; i < kRequests; ++i) {
    v1::AttendRequest request;
    FillFields(&request, random);
    std::string bytes = Shuffled(request, random);
    for (uint64_t items = 1 + random() % 3; items > 0; --items) {
      v1::AttendItem item;
      FillFields(&item, random);
      AppendItem(Shuffled(item, random), &bytes);
    }
    ExpectAsProtobuf(reader, bytes, random, &read);
    int of_mutants = 0;
    ExpectAsProtobuf(reader, Mutant(bytes, random), random, &of_mutants);
  }
  EXPECT_EQ(read, kRequests);
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
    std::string bytes;
    AppendItem(item, &bytes);
    ExpectAsProtobuf(reader, bytes, random, &read);
  }
  EXPECT_EQ(read, 500);
}

TEST(AttendRequestReaderTest, UnusualWaysToSayTheSame) {
  std::mt19937_64 random(4);
  AttendRequestReader reader;
  int read = 0;
  const std::string good = RandomRequest(random).SerializeAsString();
  for (const std::string& extra : {
           std::string("\x7b\x08\x01\x7c", 4),                                      // a group that nobody knows, closed
           std::string("\x7b\x08\x01", 3),                                          // and not closed
           std::string("\x00\x01", 2),                                              // field 0
           std::string("\x18\x05", 2),                                              // `items` as a number
           std::string("\x08\x81\x80\x00", 4),                                      // a long form of 1
           std::string("\x7a\x03xyz", 5),                                           // an unknown field
           std::string("\x7a\x05xyz", 5),                                           // that ends too late
           std::string("\x1a\x02\x1a\x00", 4),                                      // an item whose q is empty
           std::string("\x1a\x04\x1a\x02\x1a\x05", 6),                              // data longer than its tensor
           std::string("\x1a\x07\x32\x05\x3d\x00\x00\x80\x3f", 9),                  // a sink by itself
           std::string("\x1a\x0d\x32\x0b\x3a\x04zzz\x3f\x3d\x00\x00\x80\x3f", 15),  // and behind a run of them
           std::string("\x1a\x0e\x32\x0c\x3a\x04zzz\x3f\x3a\x04zzz\x3f", 16),       // two runs
           std::string("\x1a\x07\x32\x05\x3a\x03zzz", 9),                           // one of no whole number
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
  EXPECT_TRUE(MessageDifferencer::Equals(Whole(reader), AsRead(request)));
}

TEST(AttendRequestReaderTest, QueriesMayBeLeftWhereTheyAre) {
  std::mt19937_64 random(7);
  AttendRequestReader reader;
  for (int round = 0; round < 300; ++round) {
    const v1::AttendRequest request = RandomRequest(random);
    const std::string bytes = request.SerializeAsString();
    ASSERT_TRUE(reader.Read(bytes, kMaxItems, round % 2 == 0).ok());
    EXPECT_TRUE(MessageDifferencer::Equals(Whole(reader), AsRead(request)));
    for (const ItemFields& item : reader.items()) {
      const ItemTensors& tensors = item.tensors;
      const auto within = [&](std::string_view data) {
        return !data.empty() && data.data() >= bytes.data() && data.data() < bytes.data() + bytes.size();
      };
      EXPECT_EQ(tensors.q_in_place, round % 2 == 0);
      EXPECT_EQ(within(tensors.q.data), round % 2 == 0 && !tensors.q.data.empty());
      EXPECT_FALSE(within(tensors.k.data) || within(tensors.v.data));
    }
  }
}

}  // namespace
}  // namespace santa
