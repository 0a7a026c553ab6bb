#include "client/encode.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::client_internal {
namespace {

namespace v1 = ::santa::attention::v1;

std::shared_ptr<v1::AttendRequest> RandomRequest(std::mt19937_64& random) {
  auto request = std::make_shared<v1::AttendRequest>();
  request->set_request_id(random());
  for (uint64_t i = random() % 20; i > 0; --i) {
    v1::AttendItem& item = *request->add_items();
    item.mutable_handle()->set_id(random());
    for (v1::Tensor* tensor : {item.mutable_q(), item.mutable_k(), item.mutable_v()}) {
      tensor->add_shape(1);
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

TEST(EncodeTest, IntoARoomTheyAreTheSame) {
  struct alignas(64) Room {
    char bytes[1 << 20];
  };
  const auto room = std::make_unique<Room>();
  std::mt19937_64 random(2);
  for (int i = 0; i < 300; ++i) {
    const auto request = RandomRequest(random);
    const std::string expected = request->SerializeAsString();
    ASSERT_EQ(EncodeInto(*request, room->bytes), expected.size());
    ASSERT_EQ(std::string(room->bytes, expected.size()), expected);
    EXPECT_EQ(EncodeInto(*request, std::span(room->bytes, expected.size() - 1)), 0);
    EXPECT_EQ(EncodeInto(*request, std::span(room->bytes, expected.size())), expected.size());
  }
}

TEST(EncodeTest, BytesThatAreNoMessageAreTold) {
  grpc::Slice slice(std::string("\x1a\x7f", 2));
  v1::AttendRequest request;
  EXPECT_FALSE(Decode(grpc::ByteBuffer(&slice, 1), &request));
}

}  // namespace
}  // namespace santa::client_internal
