// Queries read from mapped memory and answers written there: the same, bit for bit, as by way of copies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/reference/number_format.h"

namespace santa::testing {
namespace {

constexpr KvLayout kLayout = {
    .num_layers = 1, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 128, .sketch = Sketch::kK4};
constexpr int64_t kNumbers = int64_t{8} * 128;
constexpr int64_t kTokens = 700;
constexpr DType kIoTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// Whole pages, which the backend has mapped.
class Pages {
 public:
  Pages(Backend& backend, size_t bytes)
      : bytes_(bytes),
        memory_(static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))),
        mapped_(backend.MapMemory({memory_, bytes})) {}
  ~Pages() {
    mapped_.reset();
    munmap(memory_, bytes_);
  }

  bool mapped() const { return mapped_ != nullptr; }
  char* at(size_t offset) const { return memory_ + offset; }

 private:
  const size_t bytes_;
  char* const memory_;
  std::unique_ptr<MappedMemory> mapped_;
};

class MappedMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto memory = CudaDeviceMemory(0); !memory.ok()) GTEST_SKIP() << memory.status().message();
    pages_.resize((kTokens + kLayout.page_size - 1) / kLayout.page_size);
    std::iota(pages_.begin(), pages_.end(), 0);
    auto backend = MakeCudaBackend({.layout = kLayout, .num_pages = static_cast<int32_t>(pages_.size())});
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    const std::vector<float> k = Numbers(kTokens * 2 * 128), v = Numbers(kTokens * 2 * 128);
    const KvAppend append = {.page_table = pages_.data(), .num_tokens = kTokens, .k = k.data(), .v = v.data()};
    ASSERT_TRUE(backend_->Append({&append, 1}).ok());
    memory_ = std::make_unique<Pages>(*backend_, size_t{1} << 20);
    ASSERT_TRUE(memory_->mapped());
  }

  std::vector<float> Numbers(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> numbers(count);
    for (float& number : numbers) number = normal(random_);
    return numbers;
  }

  // A random query of this type, as bytes.
  std::vector<char> Query(DType dtype) {
    std::vector<char> bytes;
    for (const float x : Numbers(kNumbers)) {
      const uint32_t bits = reference::Encode(dtype, reference::Round(dtype, x));
      bytes.insert(bytes.end(), reinterpret_cast<const char*>(&bits),
                   reinterpret_cast<const char*>(&bits) + SizeOf(dtype));
    }
    return bytes;
  }

  DecodeItem Item(DType dtype, const AttentionOptions& options, const void* q, void* o, float* lse) const {
    return {.page_table = pages_.data(),
            .num_tokens = kTokens,
            .sampling_key = 7,
            .options = options,
            .io_dtype = dtype,
            .q = q,
            .o = o,
            .lse = lse};
  }

  struct Answer {
    std::vector<char> o = std::vector<char>(kNumbers * sizeof(float));
    std::vector<float> lse = std::vector<float>(kLayout.num_query_heads);
    bool operator==(const Answer&) const = default;
  };
  Answer Copied(DType dtype, const AttentionOptions& options, const std::vector<char>& q) const {
    Answer answer;
    const DecodeItem item = Item(dtype, options, q.data(), answer.o.data(), answer.lse.data());
    EXPECT_TRUE(backend_->Decode({&item, 1}).ok());
    return answer;
  }

  // An item with a place of its own for everything, `q` at this offset from a multiple of 16 bytes.
  struct Place {
    char* q;
    char* o;
    float* lse;
    QueryFault fault = {.element = 99};
  };
  Place PlaceOf(int item, int misaligned) const {
    constexpr size_t kEach = 16384;
    char* const begin = memory_->at(kEach * item);
    return {.q = begin + misaligned, .o = begin + 8192, .lse = reinterpret_cast<float*>(begin + 8192 + 4096)};
  }
  static Answer AnswerAt(const Place& place, DType dtype) {
    Answer answer;
    std::memcpy(answer.o.data(), place.o, kNumbers * SizeOf(dtype));
    std::copy_n(place.lse, kLayout.num_query_heads, answer.lse.data());
    return answer;
  }

  std::mt19937_64 random_{1};
  std::vector<int32_t> pages_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Pages> memory_;
};

TEST_F(MappedMemoryTest, AnswersAsByCopiesAtEveryAlignment) {
  for (const DType dtype : kIoTypes) {
    std::vector<Place> places;
    std::vector<DecodeItem> items;
    std::vector<Answer> expected;
    for (int misaligned = 0; misaligned < 16; ++misaligned) {
      const std::vector<char> q = Query(dtype);
      expected.push_back(Copied(dtype, {}, q));
      Place place = PlaceOf(misaligned, misaligned);
      std::memset(place.q - misaligned, 0xff, q.size() + 32);  // NaNs all around
      std::memcpy(place.q, q.data(), q.size());
      places.push_back(place);
    }
    for (Place& place : places) {
      items.push_back(Item(dtype, {}, place.q, place.o, place.lse));
      items.back().query_fault = &place.fault;
      items.back().maps_answer = true;
    }
    ASSERT_TRUE(backend_->Decode(items).ok());
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(places[i].fault.element, -1) << Name(dtype) << ", offset " << i;
      EXPECT_TRUE(AnswerAt(places[i], dtype) == expected[i]) << Name(dtype) << ", offset " << i;
    }
  }
}

// Each alone may be mapped, and an item beside them that has neither.
TEST_F(MappedMemoryTest, QueriesAndAnswersAreMappedEachByItself) {
  const std::vector<char> q = Query(DType::kFloat32);
  const Answer expected = Copied(DType::kFloat32, {}, q);
  Place fetched = PlaceOf(0, 5), written = PlaceOf(1, 0);
  std::memcpy(fetched.q, q.data(), q.size());
  Answer of_fetched, of_neither;
  DecodeItem items[3] = {
      Item(DType::kFloat32, {}, fetched.q, of_fetched.o.data(), of_fetched.lse.data()),
      Item(DType::kFloat32, {}, q.data(), of_neither.o.data(), of_neither.lse.data()),
      Item(DType::kFloat32, {}, q.data(), written.o, written.lse),
  };
  items[0].query_fault = &fetched.fault;
  items[2].maps_answer = true;
  ASSERT_TRUE(backend_->Decode(items).ok());
  EXPECT_EQ(fetched.fault.element, -1);
  EXPECT_TRUE(of_fetched == expected);
  EXPECT_TRUE(of_neither == expected);
  EXPECT_TRUE(AnswerAt(written, DType::kFloat32) == expected);
}

// With every method: what is not finite must not lead a draw astray. The items beside it are none the wiser.
TEST_F(MappedMemoryTest, TellsTheFirstNumberThatIsNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  struct Case {
    std::vector<int> elements;
    float value;
  };
  const Case cases[] = {{{0}, NAN}, {{kNumbers - 1}, kInfinity}, {{130, 131, 900}, -kInfinity}, {{257, 256}, NAN}};
  for (const DType dtype : kIoTypes) {
    const std::vector<char> q = Query(dtype);
    for (const Method method : kAllMethods) {
      const AttentionOptions options = {.method = method, .sample_count = DrawsValues(method) ? 64u : 0u};
      if (!backend_->Supports(options, kTokens).ok()) continue;
      const Answer expected = Copied(dtype, options, q);
      for (const Case& with : cases) {
        Place bad = PlaceOf(0, 3), good = PlaceOf(1, 0);
        std::memcpy(bad.q, q.data(), q.size());
        std::memcpy(good.q, q.data(), q.size());
        for (const int element : with.elements) {
          const uint32_t bits = reference::Encode(dtype, with.value);
          std::memcpy(bad.q + element * SizeOf(dtype), &bits, SizeOf(dtype));
        }
        std::vector<DecodeItem> items;
        for (Place* place : {&bad, &good}) {
          items.push_back(Item(dtype, options, place->q, place->o, place->lse));
          items.back().query_fault = &place->fault;
          items.back().maps_answer = true;
        }
        ASSERT_TRUE(backend_->Decode(items).ok());
        EXPECT_EQ(bad.fault.element, *std::min_element(with.elements.begin(), with.elements.end()));
        if (std::isnan(with.value)) {
          EXPECT_TRUE(std::isnan(bad.fault.value)) << bad.fault.value;
        } else {
          EXPECT_EQ(bad.fault.value, with.value);
        }
        EXPECT_EQ(good.fault.element, -1);
        EXPECT_TRUE(AnswerAt(good, dtype) == expected) << Name(dtype) << ", " << Name(method);
      }
    }
  }
}

// Beside tokens that are copied, of several lengths.
TEST_F(MappedMemoryTest, TokensAreStoredAsByCopies) {
  for (const DType dtype : kIoTypes) {
    const size_t each = size_t{2} * 128 * SizeOf(dtype);         // of a token's K or V
    const std::vector<char> k = Query(dtype), v = Query(dtype);  // of four tokens
    std::memcpy(memory_->at(0), k.data(), k.size());
    std::memcpy(memory_->at(8192), v.data(), v.size());
    const auto at = [&](int64_t position, int64_t first, int64_t count, bool mapped) -> KvAppend {
      return {.page_table = pages_.data(),
              .position = position,
              .num_tokens = count,
              .dtype = dtype,
              .k = (mapped ? memory_->at(0) : k.data()) + first * each,
              .v = (mapped ? memory_->at(8192) : v.data()) + first * each,
              .mapped = mapped};
    };
    const KvAppend appends[] = {at(60, 0, 3, true), at(100, 1, 2, false), at(200, 3, 1, true), at(300, 0, 1, false)};
    ASSERT_TRUE(backend_->Append(appends).ok());
    const KvAppend same[] = {at(60, 0, 3, false), at(100, 1, 2, true), at(200, 3, 1, false),
                             at(300, 0, 1, true), at(60, 1, 3, false), at(200, 2, 1, true)};
    bool matches[6] = {};
    ASSERT_TRUE(backend_->Compare(same, matches).ok());
    EXPECT_THAT(matches, ::testing::ElementsAre(true, true, true, true, false, false)) << Name(dtype);
  }
}

// Whoever shares the memory may write it at any time: it harms nobody but the item.
TEST_F(MappedMemoryTest, MemoryThatChangesMeanwhile) {
  const std::vector<char> q = Query(DType::kBFloat16), other = Query(DType::kBFloat16);
  const Answer expected = Copied(DType::kBFloat16, {}, q);
  for (int turn = 0; turn < 20; ++turn) {
    Place changed = PlaceOf(0, 1), good = PlaceOf(1, 0);
    std::memcpy(changed.q, q.data(), q.size());
    std::memcpy(good.q, q.data(), q.size());
    std::vector<DecodeItem> items;
    for (Place* place : {&changed, &good}) {
      items.push_back(
          Item(DType::kBFloat16, {.method = Method::kS2antaFlash, .sample_count = 16}, place->q, place->o, place->lse));
      items.back().query_fault = &place->fault;
      items.back().maps_answer = true;
    }
    items[1].options = {};
    ASSERT_TRUE(backend_->BeginDecode(items).ok());
    std::memset(changed.q, 0xff, q.size());
    std::memcpy(changed.q + 64, other.data(), 512);
    double seconds = 0;
    ASSERT_TRUE(backend_->AwaitDecode(&seconds).ok());
    EXPECT_TRUE(AnswerAt(good, DType::kBFloat16) == expected);
    EXPECT_EQ(good.fault.element, -1);
  }
}

TEST_F(MappedMemoryTest, MemoryThatIsMappedAlreadyIsNotMappedTwice) {
  EXPECT_EQ(backend_->MapMemory({memory_->at(0), 4096}), nullptr);
  const std::vector<char> q = Query(DType::kFloat32);
  EXPECT_TRUE(Copied(DType::kFloat32, {}, q) == Copied(DType::kFloat32, {}, q));  // and the device is none the worse
}

}  // namespace
}  // namespace santa::testing
