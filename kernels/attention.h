// The contract between the attention server and its backends: a paged KV cache and decode attention over it.
//
// One decode step of one layer: H query heads share H_kv key/value heads in groups of G = H / H_kv; head dimension D;
// n visible tokens. For query head h in the group of key/value head g:
//
//     s[h,i] = cap(scale * dot(q[h], k[g,i]))            i over the visible tokens
//     lse[h] = ln(sum_i exp(s[h,i]) + exp(sink[h]))      natural log; the sink's term only where sinks are given
//     o[h]   = sum_i exp(s[h,i] - lse[h]) v[g,i]         exactly, or an estimate of it (see Method)
//
// cap(s) = c * tanh(s / c) with a soft cap c, else s.
//
// Everything here is plain data and raw host pointers: validation, sequences and wire formats live one layer up.
#ifndef SANTA_KERNELS_ATTENTION_H_
#define SANTA_KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/types.h"

namespace santa {

// The shape of the cache; fixed for a backend's life. Memory of one layer is [page][K|V][kv_head][token][D], so that
// one head of one page of K (or V) is one contiguous run; with feature-major keys that of K is [D][token].
struct KvLayout {
  int32_t num_layers = 0;       // [1, 65536]
  int32_t num_query_heads = 0;  // H, a multiple of num_kv_heads, at most 65536
  int32_t num_kv_heads = 0;     // H_kv >= 1
  int32_t head_dim = 0;         // D, a multiple of 8 in [8, 256]
  int32_t page_size = 64;       // tokens, a power of two in [16, 256]
  DType dtype = DType::kBFloat16;
  Sketch sketch = Sketch::kNone;  // kNone with feature-major keys
  KeyOrder key_order = KeyOrder::kTokenMajor;

  int32_t group_size() const { return num_query_heads / num_kv_heads; }
  // Bytes of the K (or V) row of one token and head; of one head of one page of K (or V); of a page in all layers.
  size_t row_bytes() const { return static_cast<size_t>(head_dim) * SizeOf(dtype); }
  size_t head_page_bytes() const { return row_bytes() * page_size; }
  size_t layer_page_bytes() const { return head_page_bytes() * 2 * num_kv_heads; }
  size_t page_bytes() const { return layer_page_bytes() * num_layers; }
  // Of the sketch of one head of one page of K or V, at `bits` a feature: codes, and a step and a smallest number for
  // every column. Of a page in all layers, 0 without a sketch.
  size_t sketch_head_bytes(int bits) const {
    return bits == 0 ? 0 : static_cast<size_t>(page_size) * head_dim * bits / 8 + static_cast<size_t>(head_dim) * 4;
  }
  size_t sketch_page_bytes() const {
    return (sketch_head_bytes(KeyBits(sketch)) + sketch_head_bytes(ValueBits(sketch))) * num_kv_heads * num_layers;
  }
};

// OK, or INVALID_ARGUMENT naming field, value and range.
absl::Status Validate(const KvLayout& layout);

// The scales of an fp8 cache, one for each layer and key/value head: x is stored as x / scale (a division in fp32, then
// rounded), and what is stored counts as itself times scale. Both empty: all 1, as for every other storage type.
struct KvScales {
  std::vector<float> k;  // [num_layers][H_kv], finite and > 0
  std::vector<float> v;

  bool empty() const { return k.empty() && v.empty(); }
};

// OK, or INVALID_ARGUMENT naming field, value and range; so also for scales of a cache that is not fp8.
absl::Status Validate(const KvScales& scales, const KvLayout& layout);

inline constexpr uint32_t kMaxSampleCount = 1u << 20;
inline constexpr uint32_t kMaxScoreDraws = 1024;

struct AttentionOptions {
  Method method = Method::kExact;
  // S: [1, kMaxSampleCount] for a method that draws values; 0 for EXACT and BERNOULLI_QK, and where there is a
  // target_relative_error. Of COORDINATED and SKETCHED rows of a key/value head, at most; about so many where a backend
  // goes by a pilot (kernels/sampling/pilot.h).
  uint32_t sample_count = 0;
  uint64_t seed = 0;
  float scale = 0;      // 0: 1 / sqrt(D); otherwise finite and > 0
  uint32_t window = 0;  // 0: every token; otherwise only the last `window` ones, the query's own among them
  float soft_cap = 0;   // 0: none; otherwise finite and > 0
  BudgetRounding budget_rounding = BudgetRounding::kSystematic;
  // Of COORDINATED and SKETCHED, in place of a sample count: |o^ - o| / |o| of every head, root mean square. 0: none;
  // otherwise in (0, 1). A small first draw tells how many rows are to be read, all of them where that is cheaper.
  float target_relative_error = 0;
  // R, ternary queries that stand for q (kernels/sampling/ternary_query.h): scores are then those of their mean, and of
  // K only the features that some of them has for some head of the group are read. [1, kMaxScoreDraws] for
  // BERNOULLI_QK; 0 (exact scores) or that for the methods that draw values; 0 for EXACT and with a
  // target_relative_error. SKETCHED has none (SupportsLayout). Scores are unbiased; their softmax, o and lse are not,
  // and lse is too large on average.
  uint32_t score_draws = 0;
};

// Fewer tokens than that are answered exactly whatever the target.
inline constexpr int64_t kLeastTokensForTarget = 512;

// OK, or INVALID_ARGUMENT naming field, value and range.
absl::Status Validate(const AttentionOptions& options);

struct DecodeStatistics {
  int64_t visible_tokens = 0;
  int64_t key_rows_read = 0;    // summed over key/value heads; a row of which some features were read is one
  int64_t value_rows_read = 0;  // distinct rows that contributed, summed over key/value heads
  int64_t kv_bytes_read = 0;    // bytes of K, V and sketches that the answer needed, each counted once
  int64_t dense_kv_bytes = 0;   // bytes of K and V of all visible tokens: what EXACT needs
};

// Where a query that nobody has looked at is not finite.
struct QueryFault {
  int64_t element = -1;  // the first that is NaN or infinite, counted in [H][D]; -1: none is
  float value = 0;       // it
};

// Host memory that a device reads and writes where it lies (Backend::MapMemory), as long as this lives.
class MappedMemory {
 public:
  virtual ~MappedMemory() = default;
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

 protected:
  MappedMemory() = default;
};

// One query token of one sequence in one layer. Pointers are not owned and must stay valid until Decode returns.
struct DecodeItem {
  int32_t layer = 0;
  const int32_t* page_table = nullptr;  // token i lies in page page_table[i / page_size] at i % page_size
  int64_t num_tokens = 0;               // >= 1: the query's position is num_tokens - 1
  // Identifies the sequence in the random offset: equal keys, seeds, layers and positions draw alike, whatever the
  // batch, the pages or the number of threads.
  uint64_t sampling_key = 0;
  AttentionOptions options;
  const float* sink_logits = nullptr;      // [H], or null: no sinks
  DType io_dtype = DType::kFloat32;        // of q and o
  const void* q = nullptr;                 // [H][D], of any alignment; finite unless there is a query_fault
  void* o = nullptr;                       // [H][D], written; not aliasing q
  float* lse = nullptr;                    // [H], written
  DecodeStatistics* statistics = nullptr;  // written if not null
  // [H], or null. Written with sqrt(E|o^ - o|^2) / |o|, estimated from the rows that were read; 0 where the answer is
  // exact, NaN where the rows tell nothing of it (kernels/sampling/standard_error.h) or a backend does not. NaN
  // with score draws too: the rows do not tell how far off the scores are.
  float* relative_standard_error = nullptr;
  // Not null: q lies in mapped memory and nobody has looked at it. Others may write it even now: the device brings it
  // into memory of its own, once, and looks at that. Written; with a fault, what else is written means nothing.
  QueryFault* query_fault = nullptr;
  bool maps_answer = false;  // o and lse lie in mapped memory, o aligned to 16 bytes and lse to 4
};

// The tokens that the item's query sees.
int64_t VisibleTokens(const DecodeItem& item);

// Whether all visible value rows are to be read: by its method, or because there are as many samples as visible tokens,
// or so few of them that no target is worth a draw.
bool ReadsAllValues(const DecodeItem& item);

// Whether it is to be answered exactly: from all value rows and exact scores.
bool IsExact(const DecodeItem& item);

// Of an answer to `item` that read so many value rows, over all key/value heads, of its visible tokens; and of its key
// rows so many features, of all D * H_kv. Nothing: all.
DecodeStatistics MakeStatistics(const KvLayout& layout, const DecodeItem& item, int64_t value_rows_read,
                                std::optional<int64_t> key_features_read = std::nullopt);

// OK, or UNIMPLEMENTED naming the pair: SKETCHED needs a layout with a sketch, score draws one with feature-major keys,
// and SKETCHED takes no score draws.
absl::Status SupportsLayout(const AttentionOptions& options, const KvLayout& layout);

// Tokens to store: k and v are [num_tokens][H_kv][D] of `dtype`, converted to the layout's dtype: round to nearest
// even, beyond its range to infinity (fp8: to +-448); NaN to NaN.
struct KvAppend {
  int32_t layer = 0;
  const int32_t* page_table = nullptr;  // as in DecodeItem; covers position + num_tokens
  int64_t position = 0;                 // of the first token
  int64_t num_tokens = 0;               // >= 0
  DType dtype = DType::kFloat32;
  const void* k = nullptr;
  const void* v = nullptr;
  bool mapped = false;  // k and v lie in mapped memory, aligned to 16 bytes; nobody writes them
};

struct PageCopy {
  int32_t from = 0;
  int32_t to = 0;
};

// A device's KV cache and attention over it. Owns the memory of every page, all of it allocated at construction.
// Not thread safe: one call is made at a time, but for AwaitDecode, and where max_decodes_in_flight() > 1 by one thread
// (the engine's device thread). Arguments are trusted; a status other than OK means that the device failed.
//
// Calls take effect in the order in which they are made, whenever they return: a Decode sees what was appended before
// it and nothing that was appended after. What the arguments of a call point to may change once it has returned; but
// what lies in mapped memory stays the device's until a Decode, this one or one behind it, has been awaited, or the
// call has failed.
class Backend {
 public:
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  virtual std::string_view name() const = 0;  // "cpu"
  virtual std::string device() const = 0;     // what it runs on, in words, for people
  virtual const KvLayout& layout() const = 0;
  virtual int32_t num_pages() const = 0;  // page ids are [0, num_pages)

  // OK, or UNIMPLEMENTED naming what this backend has not got. Decode may be asked for nothing else. Thread safe.
  virtual absl::Status Supports(const AttentionOptions& /*options*/, int64_t /*num_tokens*/) const {
    return absl::OkStatus();
  }

  // Stores the tokens of every append, no two of which write the same place.
  virtual absl::Status Append(std::span<const KvAppend> appends) = 0;

  // matches[i]: whether the cache holds, bit for bit, what Append(appends[i]) would store.
  virtual absl::Status Compare(std::span<const KvAppend> appends, std::span<bool> matches) = 0;

  // Copies whole pages in every layer, in order; `to` and `from` differ.
  virtual absl::Status CopyPages(std::span<const PageCopy> copies) = 0;

  // Answers every item. An item's outputs depend on that item and the tokens it sees alone, bit for bit.
  virtual absl::Status Decode(std::span<const DecodeItem> items) = 0;

  // As Decode, but may return before the outputs (o, lse, statistics) are written: AwaitDecode, called once for every
  // BeginDecode that returned OK, in the same order, returns when they are. One other thread than the one that makes
  // all other calls may call it. At most max_decodes_in_flight() may be begun and not awaited.
  virtual absl::Status BeginDecode(std::span<const DecodeItem> items) { return Decode(items); }

  // Sets *device_seconds to the time that the device worked on the items, where it can tell.
  virtual absl::Status AwaitDecode(double* /*device_seconds*/) { return absl::OkStatus(); }

  // Makes host memory the device's to read and write where it lies; what is gained is the copies. It begins and ends on
  // whole pages, outlives what is returned, and no Decode that was begun with it and not awaited does. Null: the device
  // does not reach memory of this kind; then nothing of it may be said to be mapped. May take milliseconds. Thread
  // safe, as is the end of what is returned, which comes before the backend's.
  virtual std::unique_ptr<MappedMemory> MapMemory(std::span<char> /*memory*/) { return nullptr; }

  // 1: BeginDecode does all the work before it returns.
  virtual int max_decodes_in_flight() const { return 1; }

 protected:
  Backend() = default;
};

}  // namespace santa

#endif  // SANTA_KERNELS_ATTENTION_H_
