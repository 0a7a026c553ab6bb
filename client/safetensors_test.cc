#include "client/safetensors.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

namespace santa {
namespace {

// A file's bytes from its header's text and its data.
std::string MakeFile(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape + "],\"data_offsets\":[" + offsets + "]}";
}

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::string SampleFile() {
  return MakeFile("{\"__metadata__\":{\"format\":\"pt\"}," + Entry("b", "I32", "2", "8,16") + "," +
                      Entry("a", "BF16", "2,2", "0,8") + "," + Entry("none", "F32", "0,7", "8,8") + "}",
                  "0123456789abcdef");
}

TEST(SafetensorsTest, ReadsTensorsAndMetadata) {
  const std::string bytes = SampleFile();
  const absl::StatusOr<Safetensors> file = Safetensors::Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 3);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  const absl::StatusOr<TensorView> a = file->Get("a");
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(a->type, ElementType::kBFloat16);
  EXPECT_EQ(a->shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(a->data, "01234567");
  EXPECT_EQ(file->Get("b")->data, "89abcdef");
  EXPECT_TRUE(file->Get("none")->data.empty());
  const absl::Status missing = file->Get("q").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(missing.message()).find("\"none\""), std::string::npos) << missing;
}

TEST(SafetensorsTest, WritesWhatItReads) {
  const std::string path = ::testing::TempDir() + "/round_trip.safetensors";
  const Tensor q = FromFloats(std::vector<float>{1, 2, 3, 4, 5, 6}, {1, 2, 3}, ElementType::kFloat16);
  const Tensor scalar{.type = ElementType::kInt64, .shape = {}, .data = std::string(8, 'x')};
  const Tensor bytes{.type = ElementType::kUint8, .shape = {3}, .data = "abc"};
  const absl::Status written = WriteSafetensors(
      path, {{"q", q.view()}, {"s", scalar.view()}, {"\"quoted\"\n", bytes.view()}}, {{"key", "värde"}});
  ASSERT_TRUE(written.ok()) << written;
  const absl::StatusOr<Safetensors> file = Safetensors::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 3);
  EXPECT_EQ(file->Get("q")->data, q.data);
  EXPECT_EQ(file->Get("q")->shape, q.shape);
  EXPECT_EQ(file->Get("q")->type, q.type);
  EXPECT_TRUE(file->Get("s")->shape.empty());
  EXPECT_EQ(file->Get("\"quoted\"\n")->data, "abc");
  EXPECT_EQ(file->metadata().at("key"), "värde");
  uint64_t header = 0;
  std::memcpy(&header, ReadAll(path).data(), 8);
  EXPECT_EQ(header % 8, 0);
}

TEST(SafetensorsTest, ViewsOutliveCopiesAndMoves) {
  const std::string path = ::testing::TempDir() + "/views.safetensors";
  const Tensor q = FromFloats(std::vector<float>{1, 2}, {2}, ElementType::kFloat32);
  ASSERT_TRUE(WriteSafetensors(path, {{"q", q.view()}}).ok());
  Safetensors copy;
  {
    absl::StatusOr<Safetensors> file = Safetensors::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    copy = *file;
  }
  EXPECT_EQ(copy.Get("q")->data, q.data);
}

TEST(SafetensorsTest, RefusesToWriteWhatItCouldNotRead) {
  const std::string path = ::testing::TempDir() + "/never_written.safetensors";
  const Tensor q = FromFloats(std::vector<float>{1, 2}, {2}, ElementType::kFloat32);
  Tensor wrong = q;
  wrong.shape = {3};
  EXPECT_EQ(WriteSafetensors(path, {{"q", wrong.view()}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors(path, {{"__metadata__", q.view()}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors(path, {{"\xff\xfe", q.view()}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Safetensors::Open(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(WriteSafetensors(::testing::TempDir() + "/no/such/folder/x", {{"q", q.view()}}).ok());
  EXPECT_EQ(Safetensors::Open(::testing::TempDir()).status().code(), absl::StatusCode::kInvalidArgument);
}

struct BadFile {
  const char* name;
  std::string bytes;
  const char* message;  // a part of it
};

class MalformedSafetensors : public ::testing::TestWithParam<BadFile> {};

TEST_P(MalformedSafetensors, IsRefusedWithItsReason) {
  const absl::Status status = Safetensors::Parse(GetParam().bytes, "bad.safetensors").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("bad.safetensors"), std::string::npos) << status;
  EXPECT_NE(std::string(status.message()).find(GetParam().message), std::string::npos) << status;
}

const std::string kEight(8, 'd');  // NOLINT(cert-err58-cpp)

INSTANTIATE_TEST_SUITE_P(
    All, MalformedSafetensors,
    ::testing::Values(
        BadFile{"Empty", "", "too few"},
        BadFile{"HeaderPastEnd", std::string("\x09\0\0\0\0\0\0\0{}", 10), "does not fit"},
        BadFile{"HugeHeader", std::string(8, '\xff') + "{}", "does not fit"},
        BadFile{"NotJson", MakeFile("{\"a\":", ""), "not a JSON object"},
        BadFile{"NotAnObject", MakeFile("[]", ""), "not a JSON object"},
        BadFile{"NotUtf8", MakeFile("{\"\xff\":1}", ""), "not a JSON object"},
        BadFile{"EntryNotAnObject", MakeFile("{\"a\":3}", ""), "not a JSON object"},
        BadFile{"NoDtype", MakeFile(R"({"a":{"shape":[],"data_offsets":[0,8]}})", kEight), "dtype"},
        BadFile{"UnknownDtype", MakeFile("{" + Entry("a", "F8_E4M3", "8", "0,8") + "}", kEight), "F8_E4M3"},
        BadFile{"NoShape", MakeFile(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", kEight), "shape"},
        BadFile{"NegativeExtent", MakeFile("{" + Entry("a", "F32", "-2", "0,8") + "}", kEight), "shape"},
        BadFile{"FractionalExtent", MakeFile("{" + Entry("a", "F32", "2.0", "0,8") + "}", kEight), "shape"},
        BadFile{"ExtentOf64Bits", MakeFile("{" + Entry("a", "F32", "18446744073709551615", "0,8") + "}", kEight),
                "shape"},
        BadFile{"OverflowingShape",
                MakeFile("{" + Entry("a", "F32", "4611686018427387904,4611686018427387904", "0,8") + "}", kEight),
                "64 bits"},
        BadFile{"NoOffsets", MakeFile(R"({"a":{"dtype":"F32","shape":[2]}})", kEight), "data_offsets"},
        BadFile{"ThreeOffsets", MakeFile("{" + Entry("a", "F32", "2", "0,8,8") + "}", kEight), "data_offsets"},
        BadFile{"NegativeOffset", MakeFile("{" + Entry("a", "F32", "2", "-8,0") + "}", kEight), "data_offsets"},
        BadFile{"BackwardOffsets", MakeFile("{" + Entry("a", "F32", "2", "8,0") + "}", kEight), "data_offsets"},
        BadFile{"OffsetsPastEnd", MakeFile("{" + Entry("a", "F32", "4", "0,16") + "}", kEight), "data_offsets"},
        BadFile{"SizeDiffersFromShape", MakeFile("{" + Entry("a", "F32", "3", "0,8") + "}", kEight), "needs 12"},
        BadFile{"Overlap",
                MakeFile("{" + Entry("a", "U8", "6", "0,6") + "," + Entry("b", "U8", "4", "4,8") + "}", kEight),
                "inside"},
        BadFile{"Gap", MakeFile("{" + Entry("a", "U8", "2", "0,2") + "," + Entry("b", "U8", "4", "4,8") + "}", kEight),
                "past the end"},
        BadFile{"LeftOver", MakeFile("{" + Entry("a", "U8", "4", "0,4") + "}", kEight), "the file at 8"},
        BadFile{"SameNameTwice",
                MakeFile("{" + Entry("a", "U8", "4", "0,4") + "," + Entry("a", "U8", "4", "4,8") + "}", kEight),
                "two tensors"},
        BadFile{"MetadataNotAnObject", MakeFile(R"({"__metadata__":[]})", ""), "__metadata__"},
        BadFile{"MetadataNotStrings", MakeFile(R"({"__metadata__":{"a":1}})", ""), "__metadata__"},
        BadFile{"DeeplyNested", MakeFile("{\"a\":" + std::string(200'000, '['), ""), "not a JSON object"}),
    [](const auto& info) { return info.param.name; });

// Whatever the bytes are, a file is read or refused; where it is read, its views lie inside it.
void ExpectReadOrRefused(const std::string& bytes) {
  const absl::StatusOr<Safetensors> file = Safetensors::Parse(bytes);
  if (!file.ok()) {
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    return;
  }
  for (const auto& [name, tensor] : file->tensors()) {
    EXPECT_TRUE(Validate(tensor).ok());
    if (tensor.data.empty()) continue;
    EXPECT_GE(tensor.data.data(), bytes.data());
    EXPECT_LE(tensor.data.data() + tensor.data.size(), bytes.data() + bytes.size());
  }
}

TEST(SafetensorsFuzzTest, TruncatedAnywhere) {
  const std::string bytes = SampleFile();
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(Safetensors::Parse(bytes.substr(0, size)).ok()) << size;
  }
}

TEST(SafetensorsFuzzTest, GarbageAndMutations) {
  std::mt19937 random(20240607);
  const std::string sample = SampleFile();
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = sample;
    for (uint32_t change = random() % 4 + 1; change > 0; --change) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, random() % 4);
          break;
        case 2:
          bytes.insert(at, 1, "0123456789,[]{}\":-"[random() % 18]);
          break;
        default:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
      }
    }
    ExpectReadOrRefused(bytes);
  }
  for (int round = 0; round < 2'000; ++round) {
    std::string bytes(random() % 200, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    if (bytes.size() >= 8 && round % 2 == 0) {
      std::memset(bytes.data(), 0, 8);
      bytes[0] = static_cast<char>(bytes.size() - 8);
    }
    ExpectReadOrRefused(bytes);
  }
}

}  // namespace
}  // namespace santa
