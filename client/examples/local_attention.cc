#include "client/examples/local_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/examples/simd.h"

namespace santa {
namespace {

constexpr int64_t kBlock = KvHistory::kBlockTokens;
constexpr float kMasked = -1e30f;  // exp of it is 0, and it takes part in a maximum like any number

// Queries that look at the same key/value head. A tile's buffers are reused by its thread.
struct QueryTile {
  static constexpr int64_t kMaxRows = 96;

  int64_t rows = 0;
  std::vector<float> q;                    // [rows][D], scaled
  std::vector<float> o;                    // [rows][D]: sum of exp(s - highest) v
  float highest[kMaxRows], sum[kMaxRows];  // of s, of exp(s - highest)
  int64_t visible[kMaxRows];               // each row sees the tokens below it
  std::vector<float> s;                    // [rows][kBlock]

  void Reset(int64_t num_rows, int64_t head_dim) {
    rows = num_rows;
    q.resize(rows * head_dim);
    o.assign(rows * head_dim, 0);
    s.resize(rows * kBlock);
    std::fill_n(highest, rows, kMasked);
    std::fill_n(sum, rows, 0.0f);
  }
};

// Adds block i of the head to every row of the tile.
void AddBlock(const KvHistory& history, int32_t layer, int32_t head, int64_t i, QueryTile& tile) {
  const int64_t dim = history.head_dim();
  std::fill(tile.s.begin(), tile.s.end(), 0.0f);
  MatMulAdd(tile.rows, kBlock, dim, tile.q.data(), dim, history.Keys(layer, head, i), kBlock, tile.s.data(), kBlock);
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* s = tile.s.data() + r * kBlock;
    const int64_t seen = std::clamp<int64_t>(tile.visible[r] - i * kBlock, 0, kBlock);
    std::fill(s + seen, s + kBlock, kMasked);
    const float highest = std::max(tile.highest[r], MaxOf(s, kBlock));
    const float shrink = std::exp(tile.highest[r] - highest);
    if (shrink != 1) Scale(tile.o.data() + r * dim, dim, shrink);
    tile.sum[r] = tile.sum[r] * shrink + ExpAndSum(s, kBlock, highest);
    tile.highest[r] = highest;
  }
  MatMulAdd(tile.rows, dim, kBlock, tile.s.data(), kBlock, history.Values(layer, head, i), dim, tile.o.data(), dim);
}

// Fills tile.o with the rows' attention over all that they see. Every row sees at least token 0.
void Attend(const KvHistory& history, int32_t layer, int32_t head, QueryTile& tile) {
  const int64_t dim = history.head_dim();
  const int64_t longest = *std::max_element(tile.visible, tile.visible + tile.rows);
  Scale(tile.q.data(), tile.rows * dim, 1 / std::sqrt(static_cast<float>(dim)));
  for (int64_t i = 0; i * kBlock < longest; ++i) AddBlock(history, layer, head, i, tile);
  for (int64_t r = 0; r < tile.rows; ++r) Scale(tile.o.data() + r * dim, dim, 1 / tile.sum[r]);
}

QueryTile& ThreadsTile() {
  thread_local QueryTile tile;
  return tile;
}

}  // namespace

void AttendCausal(const KvHistory& history, int32_t layer, int64_t first, int64_t n, int32_t num_query_heads,
                  const float* q, float* o, ThreadPool& pool) {
  const int64_t dim = history.head_dim();
  const int64_t stride = num_query_heads * dim;  // from a token to the next
  const int64_t query_blocks = (n + QueryTile::kMaxRows - 1) / QueryTile::kMaxRows;
  pool.ParallelFor(query_blocks * num_query_heads, [&](int64_t task) {
    const int64_t query_head = task % num_query_heads;
    const int64_t begin = task / num_query_heads * QueryTile::kMaxRows;
    QueryTile& tile = ThreadsTile();
    tile.Reset(std::min(QueryTile::kMaxRows, n - begin), dim);
    for (int64_t r = 0; r < tile.rows; ++r) {
      std::copy_n(q + (begin + r) * stride + query_head * dim, dim, tile.q.data() + r * dim);
      tile.visible[r] = first + begin + r + 1;
    }
    Attend(history, layer, query_head * history.num_kv_heads() / num_query_heads, tile);
    for (int64_t r = 0; r < tile.rows; ++r) {
      std::copy_n(tile.o.data() + r * dim, dim, o + (begin + r) * stride + query_head * dim);
    }
  });
}

int64_t LocalAttention::Add(KvHistory history) {
  sequences_.emplace(next_, std::move(history));
  return next_++;
}

absl::StatusOr<int64_t> LocalAttention::Fork(int64_t parent, uint64_t /*sampling_key*/) {
  const auto found = sequences_.find(parent);
  if (found == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", parent));
  return Add(found->second);
}

absl::Status LocalAttention::Release(int64_t sequence) {
  if (sequences_.erase(sequence) == 0) return absl::NotFoundError(absl::StrCat("no sequence ", sequence));
  return absl::OkStatus();
}

absl::Status LocalAttention::Attend(int32_t layer, std::span<const AttentionStep> steps) {
  std::vector<const KvHistory*> histories;
  for (const AttentionStep& step : steps) {
    const auto found = sequences_.find(step.sequence);
    if (found == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", step.sequence));
    if (found->second.length(layer) != step.position) {
      return absl::OutOfRangeError(absl::StrCat("sequence ", step.sequence, " holds ", found->second.length(layer),
                                                " tokens; the step's position is ", step.position));
    }
    found->second.Append(layer, 1, step.k, step.v);
    histories.push_back(&found->second);
  }
  if (steps.empty()) return absl::OkStatus();
  const int32_t kv_heads = histories[0]->num_kv_heads();
  const int64_t group = num_query_heads_ / kv_heads;
  pool_->ParallelFor(static_cast<int64_t>(steps.size()) * kv_heads, [&](int64_t task) {
    const AttentionStep& step = steps[task / kv_heads];
    const KvHistory& history = *histories[task / kv_heads];
    const auto head = static_cast<int32_t>(task % kv_heads);
    const int64_t values = group * history.head_dim();
    QueryTile& tile = ThreadsTile();
    tile.Reset(group, history.head_dim());
    std::copy_n(step.q + head * values, values, tile.q.data());
    std::fill_n(tile.visible, group, step.position + 1);
    santa::Attend(history, layer, head, tile);
    std::copy_n(tile.o.data(), values, step.o + head * values);
  });
  return absl::OkStatus();
}

}  // namespace santa
