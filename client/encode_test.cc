#include "client/encode.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/wire.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::client_internal {
namespace {

std::shared_ptr<v1::AttendRequest> RandomRequest(std::mt19937_64& random) {
  auto request = std::make_shared<v1::AttendRequest>();
  request->set_request_id(random());
  for (uint64_t i = random() % 20; i > 0; --i) {
    v1::AttendItem& item = *request->add_items();
    item.mutable_handle()->set_id(random());
    item.set_position(static_cast<int64_t>(random() >> (random() % 64)));
    for (v1::Tensor* tensor : {item.mutable_q(), item.mutable_k(), item.mutable_v()}) {
      tensor->set_dtype(static_cast<v1::DataType>(random() % 3));
      for (uint64_t extents = random() % 12; extents > 0; --extents) {
        tensor->add_shape(static_cast<int64_t>(random() >> (random() % 64)));
      }
      tensor->mutable_data()->resize(random() % (random() % 2 == 0 ? 10000 : 600));
      for (char& c : *tensor->mutable_data()) c = static_cast<char>(random());
    }
    item.mutable_options()->mutable_sink_logits()->Resize(random() % 300, 0.5F);
  }
  return request;
}

std::vector<grpc::Slice> Slices(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(bytes.Dump(&slices).ok());
  return slices;
}

TEST(EncodeTest, TheBytesAreProtobufs) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 300; ++i) {
    const auto request = RandomRequest(random);
    const grpc::ByteBuffer bytes = EncodeByReference(request);
    std::string joined;
    for (const grpc::Slice& slice : Slices(bytes)) {
      joined.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    EXPECT_EQ(joined, request->SerializeAsString());
    v1::AttendRequest read;
    EXPECT_TRUE(Decode(bytes, &read));
    EXPECT_EQ(read.SerializeAsString(), joined);
  }
}

TEST(EncodeTest, ALongTensorIsNotCopiedAndLivesAsLongAsTheBytes) {
  auto request = std::make_shared<v1::AttendRequest>();
  request->add_items()->mutable_q()->set_data(std::string(100000, 'q'));
  const std::weak_ptr<v1::AttendRequest> alive = request;
  const char* const data = request->items(0).q().data().data();
  {
    const grpc::ByteBuffer bytes = EncodeByReference(request);
    request.reset();
    EXPECT_FALSE(alive.expired());
    bool found = false;
    for (const grpc::Slice& slice : Slices(bytes)) found |= reinterpret_cast<const char*>(slice.begin()) == data;
    EXPECT_TRUE(found);
  }
  EXPECT_TRUE(alive.expired());
}

struct alignas(64) Room {
  char bytes[1 << 20];
};

TEST(EncodeTest, IntoARoomTheyAreTheSame) {
  const auto room = std::make_unique<Room>();
  std::mt19937_64 random(2);
  for (int i = 0; i < 300; ++i) {
    const auto request = RandomRequest(random);
    const std::string expected = request->SerializeAsString();
    ASSERT_EQ(EncodeInto(*request, room->bytes), expected.size());
    ASSERT_EQ(std::string(room->bytes, expected.size()), expected);
    if (expected.empty()) continue;
    EXPECT_EQ(EncodeInto(*request, std::span(room->bytes, expected.size() - 1)), 0);
    EXPECT_EQ(EncodeInto(*request, std::span(room->bytes, expected.size())), expected.size());
  }
}

// Its tensors as dtypes and shapes tell them.
void GiveSizes(std::mt19937_64& random, v1::AttendRequest* request) {
  constexpr std::array kTypes = {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_BFLOAT16, v1::DATA_TYPE_FLOAT16};
  for (v1::AttendItem& item : *request->mutable_items()) {
    for (v1::Tensor* tensor : {item.mutable_q(), item.mutable_k(), item.mutable_v()}) {
      tensor->set_dtype(kTypes[random() % kTypes.size()]);
      tensor->clear_shape();
      for (uint64_t extents = random() % 4; extents > 0; --extents) tensor->add_shape(random() % 12);
      tensor->mutable_data()->resize(*DataBytes(*tensor));
      for (char& c : *tensor->mutable_data()) c = static_cast<char>(random());
    }
    if (random() % 4 == 0) item.clear_k(), item.clear_v();
    item.mutable_options()->mutable_sink_logits()->Resize(random() % 200, 0.5F);  // more, and protobuf writes it
  }
}

TEST(EncodeTest, PlacedTensorsMakeTheSameBytes) {
  const auto room = std::make_unique<Room>();
  std::mt19937_64 random(6);
  for (int i = 0; i < 300; ++i) {
    const auto request = RandomRequest(random);
    GiveSizes(random, request.get());
    const std::string expected = request->SerializeAsString();
    v1::AttendRequest form = *request;
    for (v1::AttendItem& item : *form.mutable_items()) {
      item.mutable_q()->clear_data();
      if (item.has_k()) item.mutable_k()->clear_data();
      if (item.has_v()) item.mutable_v()->clear_data();
    }
    std::vector<TensorRooms> rooms;
    ASSERT_EQ(PlaceInto(form, room->bytes, &rooms), expected.size());
    ASSERT_EQ(rooms.size(), form.items_size());
    for (size_t item = 0; item < rooms.size(); ++item) {
      const v1::AttendItem& whole = request->items(static_cast<int>(item));
      for (const auto& [tensor, to] : {std::pair(&whole.q(), rooms[item].q), std::pair(&whole.k(), rooms[item].k),
                                       std::pair(&whole.v(), rooms[item].v)}) {
        ASSERT_EQ(to.size(), tensor->data().size());
        std::copy_n(tensor->data().data(), to.size(), to.data());
      }
    }
    ASSERT_EQ(std::string(room->bytes, expected.size()), expected);
    if (!expected.empty()) {
      EXPECT_EQ(PlaceInto(form, std::span(room->bytes, expected.size() - 1), &rooms), 0);
    }
  }
}

// Whoever adds a field adds it to the writer too.
TEST(EncodeTest, IntoARoomGoesEveryField) {
  const auto room = std::make_unique<Room>();
  v1::AttendRequest request;
  request.set_request_id(1);
  request.set_layer(2);
  v1::AttendItem& item = *request.add_items();
  item.mutable_handle()->set_generation(3);
  item.set_position(4);
  for (v1::Tensor* tensor : {item.mutable_q(), item.mutable_k(), item.mutable_v()}) {
    tensor->set_dtype(v1::DATA_TYPE_FLOAT16);
    tensor->add_shape(5);
    tensor->set_data("6");
  }
  item.mutable_options()->set_seed(7);
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  for (const google::protobuf::Message* message :
       std::initializer_list<const google::protobuf::Message*>{&request, &item, &item.q(), &item.k(), &item.v()}) {
    message->GetReflection()->ListFields(*message, &fields);
    ASSERT_EQ(fields.size(), message->GetDescriptor()->field_count()) << message->GetTypeName();
  }
  const std::string expected = request.SerializeAsString();
  ASSERT_EQ(EncodeInto(request, room->bytes), expected.size());
  EXPECT_EQ(std::string(room->bytes, expected.size()), expected);

  // Those of a later version, which it hands on.
  request.mutable_items(0)->mutable_k()->GetReflection()->MutableUnknownFields(item.mutable_k())->AddVarint(100, 8);
  const std::string with_more = request.SerializeAsString();
  ASSERT_GT(with_more.size(), expected.size());
  ASSERT_EQ(EncodeInto(request, room->bytes), with_more.size());
  EXPECT_EQ(std::string(room->bytes, with_more.size()), with_more);
}

v1::AttendResponse RandomResponse(std::mt19937_64& random) {
  v1::AttendResponse response;
  response.set_request_id(random() >> (random() % 64));
  for (uint64_t i = random() % 5; i > 0; --i) {
    v1::AttendResult& result = *response.add_results();
    if (random() % 8 == 0) {
      result.mutable_status()->set_code(3);
      result.mutable_status()->set_message("q is not finite");
      continue;
    }
    result.mutable_status();
    result.mutable_o()->set_dtype(v1::DATA_TYPE_BFLOAT16);
    for (uint64_t extents = random() % 4; extents > 0; --extents) result.mutable_o()->add_shape(random() % 1000);
    result.mutable_o()->mutable_data()->resize(random() % (random() % 2 == 0 ? 10000 : 60));
    for (char& c : *result.mutable_o()->mutable_data()) c = static_cast<char>(random());
    result.mutable_lse()->Resize(static_cast<int>(random() % 40), 0.5F);
    if (random() % 2 == 0) result.mutable_statistics()->set_value_rows_read(static_cast<int64_t>(random()));
    result.mutable_padding()->resize(random() % 200);
  }
  return response;
}

void ClearPaddings(v1::AttendResponse* response) {
  for (v1::AttendResult& result : *response->mutable_results()) result.clear_padding();
}

// Of an answer whose outputs were left where they were.
void ExpectSame(const AttendAnswer& found, const v1::AttendResponse& expected) {
  EXPECT_EQ(found.request_id(), expected.request_id());
  ASSERT_EQ(found.num_items(), expected.results_size());
  for (int i = 0; i < found.num_items(); ++i) {
    const v1::AttendResult& result = expected.results(i);
    EXPECT_EQ(found.outputs(i).o, result.o().data());
    const std::span<const float> lse = found.outputs(i).lse;  // which may be NaNs
    ASSERT_EQ(lse.size(), result.lse_size());
    EXPECT_TRUE(lse.empty() || std::memcmp(lse.data(), result.lse().data(), lse.size_bytes()) == 0);
    EXPECT_EQ(found.result(i).status().SerializeAsString(), result.status().SerializeAsString());
    EXPECT_EQ(found.result(i).statistics().SerializeAsString(), result.statistics().SerializeAsString());
  }
}

TEST(EncodeTest, OutputsOfAResponseAreLeftWhereTheyAre) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 1000; ++i) {
    const v1::AttendResponse response = RandomResponse(random);
    const std::string bytes = response.SerializeAsString();
    std::optional<AttendAnswer> answer;
    ASSERT_TRUE(DecodeInPlace(bytes, &answer));
    ExpectSame(*answer, response);
    for (int item = 0; item < answer->num_items(); ++item) {
      const std::string_view o = answer->outputs(item).o;
      EXPECT_TRUE(o.empty() || (o.data() > bytes.data() && o.data() < bytes.data() + bytes.size()));
    }
  }
}

TEST(EncodeTest, AResponseIsReadAsProtobufReadsIt) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 1000; ++i) {
    const v1::AttendResponse response = RandomResponse(random);
    std::optional<AttendAnswer> read;
    ASSERT_TRUE(DecodeFrom(response.SerializeAsString(), &read));
    v1::AttendResponse expected = response;
    ClearPaddings(&expected);
    EXPECT_EQ(read->TakeResponse().SerializeAsString(), expected.SerializeAsString());
  }
}

TEST(EncodeTest, BytesThatAreHardlyAResponseAreReadAsProtobufReadsThem) {
  std::mt19937_64 random(4);
  constexpr int kMutants = 20000;
  int read = 0;
  for (int i = 0; i < kMutants; ++i) {
    std::string bytes = RandomResponse(random).SerializeAsString();
    for (uint64_t changes = 1 + random() % 3; changes > 0 && !bytes.empty(); --changes) {
      const size_t at = random() % std::min<size_t>(bytes.size(), random() % 2 == 0 ? 64 : bytes.size());
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, 1 + random() % 8);
          break;
        case 2:
          bytes.insert(at, bytes.substr(at, 1 + random() % 64));
          break;
        default:
          bytes.resize(at);
      }
    }
    v1::AttendResponse expected;
    std::optional<AttendAnswer> copied, left;
    const bool good = expected.ParseFromString(bytes);
    ASSERT_EQ(DecodeFrom(bytes, &copied), good);
    ASSERT_EQ(DecodeInPlace(bytes, &left), good);
    if (!good) continue;
    ++read;
    ClearPaddings(&expected);
    v1::AttendResponse found = copied->TakeResponse();
    ClearPaddings(&found);
    EXPECT_EQ(found.SerializeAsString(), expected.SerializeAsString());
    ExpectSame(*left, expected);
  }
  EXPECT_GT(read, kMutants / 10);
  EXPECT_LT(read, kMutants * 9 / 10);
}

TEST(EncodeTest, BytesThatAreNoMessageAreTold) {
  grpc::Slice slice(std::string("\x1a\x7f", 2));
  v1::AttendRequest request;
  EXPECT_FALSE(Decode(grpc::ByteBuffer(&slice, 1), &request));
}

}  // namespace
}  // namespace santa::client_internal
