#include "kernels/bench/workload.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/safetensors.h"
#include "client/tensor.h"
#include "kernels/reference/estimators.h"
#include "kernels/reference/number_format.h"

namespace santa::bench {
namespace {

// In all slots: larger than any last-level cache, a GPU's several times.
constexpr int64_t kLeastBytes = int64_t{256} << 20;
constexpr int64_t kLeastGpuBytes = int64_t{640} << 20;
constexpr int64_t kChunkTokens = 256;

DType TimedType(DType cache) { return cache == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat16; }

}  // namespace

Workload::Workload(const Options& options)
    : options_(options),
      tokens_(options.sequence_tokens()),
      num_slots_(std::max<int64_t>(
          2, ((options.backend == "cuda" ? kLeastGpuBytes : kLeastBytes) + dense_bytes() - 1) / dense_bytes())),
      queries_(options.batch * options.query_heads * options.head_dim) {
  for (const int64_t tokens : tokens_) {
    first_page_.push_back(pages_per_slot_);
    pages_per_slot_ += (tokens + options.page_size - 1) / options.page_size;
  }
  page_table_.resize(num_slots_ * pages_per_slot_);
  std::mt19937_64 random(options.seed);
  std::iota(page_table_.begin(), page_table_.end(), 0);
  if (!options.pages_in_order) std::shuffle(page_table_.begin(), page_table_.end(), random);
}

absl::StatusOr<Workload> Workload::Make(const Options& options) {
  Workload workload(options);
  if (options.input.empty()) {
    workload.random_.emplace(options, workload.queries_);
  } else if (absl::Status status = workload.ReadInput(); !status.ok()) {
    return status;
  }
  const DType timed = TimedType(options.dtype);
  for (const float number : workload.queries_) {
    workload.timed_queries_.push_back(static_cast<uint16_t>(reference::Encode(timed, reference::Round(timed, number))));
  }
  return workload;
}

// Reads q, k and v, and repeats their features to D: queries are then smaller by as much as keeps the scores.
absl::Status Workload::ReadInput() {
  const absl::StatusOr<Safetensors> file = Safetensors::Open(options_.input);
  if (!file.ok()) return file.status();
  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>> read;
  for (const char* name : {"q", "k", "v"}) {
    const absl::StatusOr<TensorView> tensor = file->Get(name);
    if (!tensor.ok()) return tensor.status();
    absl::StatusOr<std::vector<float>> floats = ToFloats(*tensor);
    if (!floats.ok()) return floats.status();
    read[name] = {tensor->shape, *std::move(floats)};
  }
  const std::vector<int64_t>& q = read["q"].first;
  const std::vector<int64_t>& k = read["k"].first;
  const int64_t dims = options_.head_dim;
  if (q.size() != 3 || k.size() != 3 || read["v"].first != k || q[0] != k[0] || q[2] != k[2] ||
      q[0] * q[1] * k[1] == 0 || q[2] == 0 || dims % q[2] != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--input is '", options_.input,
                                                   "', whose q, k and v are not [sources, G, D], [sources, tokens, D] "
                                                   "and the same, with D a divisor of --head_dim, ",
                                                   dims));
  }
  sources_ = k[0];
  source_tokens_ = k[1];
  const auto widen = [&](const std::vector<float>& rows, std::vector<float>& wide) {
    for (auto row = rows.begin(); row != rows.end(); row += q[2]) {
      for (int64_t d = 0; d < dims; d += q[2]) wide.insert(wide.end(), row, row + q[2]);
    }
  };
  widen(read["k"].second, keys_);
  widen(read["v"].second, values_);
  std::vector<float> queries;
  widen(read["q"].second, queries);
  const DType rounded = options_.dtype == DType::kFloat8E4M3 ? DType::kFloat16 : options_.dtype;
  const double smaller = std::sqrt(static_cast<double>(q[2]) / static_cast<double>(dims));
  const int64_t group = options_.query_heads / options_.kv_heads;
  float* out = queries_.data();
  for (int64_t item = 0; item < options_.batch; ++item) {
    for (int64_t head = 0; head < options_.query_heads; ++head) {
      const int64_t from = (Source(item, head / group) * q[1] + head % group % q[1]) * dims;
      for (int64_t d = 0; d < dims; ++d)
        *out++ = static_cast<float>(reference::Round(rounded, smaller * queries[from + d]));
    }
  }
  return absl::OkStatus();
}

int64_t Workload::dense_bytes() const {
  int64_t visible = 0;
  for (const int64_t tokens : tokens_) visible += options_.window > 0 ? std::min(options_.window, tokens) : tokens;
  return visible * options_.kv_heads * 2 * static_cast<int64_t>(options_.layout().row_bytes());
}

void Workload::CopyRow(int64_t sequence, int64_t token, int64_t kv_head, bool value, float* row) const {
  const int64_t item = sequence % options_.batch;
  if (random_) return random_->Copy(sequence, tokens_[item], token, kv_head, value, row);
  // The last tokens; before them, in a longer sequence, all of them again and again, each time begun at another
  // place: a systematic draw with the period of the data would take the same rows every time.
  const int64_t back = tokens_[item] - 1 - token;
  const int64_t turned = back / source_tokens_ * (source_tokens_ * 382 / 1000 + 1);
  const int64_t at = (source_tokens_ - 1 - back % source_tokens_ + turned) % source_tokens_;
  const int64_t from = (Source(item, kv_head) * source_tokens_ + at) * options_.head_dim;
  std::copy_n((value ? values_ : keys_).data() + from, options_.head_dim, row);
}

absl::Status Workload::Store(Backend& backend) const {
  const int64_t dim = options_.head_dim;
  std::vector<float> k(kChunkTokens * options_.kv_heads * dim);
  std::vector<float> v(k.size());
  for (int64_t sequence = 0; sequence < num_slots_ * options_.batch; ++sequence) {
    const int64_t item = sequence % options_.batch;
    for (int64_t begin = 0; begin < tokens_[item]; begin += kChunkTokens) {
      const int64_t end = std::min(begin + kChunkTokens, tokens_[item]);
      int64_t at = 0;
      for (int64_t token = begin; token < end; ++token) {
        for (int64_t head = 0; head < options_.kv_heads; ++head, at += dim) {
          CopyRow(sequence, token, head, false, &k[at]);
          CopyRow(sequence, token, head, true, &v[at]);
        }
      }
      const KvAppend append = {.page_table = PageTable(sequence / options_.batch, item),
                               .position = begin,
                               .num_tokens = end - begin,
                               .k = k.data(),
                               .v = v.data()};
      if (absl::Status status = backend.Append({&append, 1}); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

std::vector<DecodeItem> Workload::TimedItems(Method method, int64_t slot, uint64_t draw_seed) const {
  timed_statistics_.resize(options_.batch);
  timed_errors_.resize(options_.batch * options_.query_heads);
  std::vector<DecodeItem> items;
  for (int64_t i = 0; i < options_.batch; ++i) {
    items.push_back({.page_table = PageTable(slot, i),
                     .num_tokens = tokens_[i],
                     .sampling_key = static_cast<uint64_t>(i),
                     .options = options_.attention(method, draw_seed),
                     .io_dtype = TimedType(options_.dtype),
                     .q = timed_queries_.data() + i * options_.query_heads * options_.head_dim,
                     .statistics = &timed_statistics_[i],
                     .relative_standard_error =
                         options_.standard_errors == 0 ? nullptr : timed_errors_.data() + i * options_.query_heads});
  }
  return items;
}

absl::StatusOr<Workload::Call> Workload::Decode(Backend& backend, Method method, int64_t slot,
                                                uint64_t draw_seed) const {
  Call call;
  call.o.resize(queries_.size());
  if (options_.standard_errors != 0) call.relative_standard_error.resize(options_.batch * options_.query_heads);
  call.lse.resize(options_.batch * options_.query_heads);
  std::vector<DecodeStatistics> statistics(options_.batch);
  std::vector<DecodeItem> items;
  const int64_t width = options_.query_heads * options_.head_dim;
  for (int64_t i = 0; i < options_.batch; ++i) {
    items.push_back({.page_table = PageTable(slot, i),
                     .num_tokens = tokens_[i],
                     .sampling_key = static_cast<uint64_t>(i),
                     .options = options_.attention(method, draw_seed),
                     .q = queries_.data() + i * width,
                     .o = call.o.data() + i * width,
                     .lse = call.lse.data() + i * options_.query_heads,
                     .statistics = &statistics[i],
                     .relative_standard_error = options_.standard_errors == 0
                                                    ? nullptr
                                                    : call.relative_standard_error.data() + i * options_.query_heads});
  }
  const auto start = std::chrono::steady_clock::now();
  if (absl::Status status = backend.Decode(items); !status.ok()) return status;
  call.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const DecodeStatistics& each : statistics) {
    call.statistics.visible_tokens += each.visible_tokens;
    call.statistics.value_rows_read += each.value_rows_read;
    call.statistics.kv_bytes_read += each.kv_bytes_read;
    call.statistics.dense_kv_bytes += each.dense_kv_bytes;
  }
  return call;
}

reference::Output Workload::Reference(int64_t slot) const {
  const int64_t sequence = slot * options_.batch;
  const int64_t group = options_.query_heads / options_.kv_heads;
  reference::Output all;
  // One key/value head at a time: in fp64 a long sequence is large.
  for (int64_t head = 0; head < options_.kv_heads; ++head) {
    reference::Step step;
    step.num_query_heads = static_cast<int32_t>(group);
    step.num_kv_heads = 1;
    step.head_dim = static_cast<int32_t>(options_.head_dim);
    step.num_tokens = tokens_[0];
    step.options = options_.attention(Method::kExact, 0);
    const auto first = queries_.begin() + head * group * options_.head_dim;
    step.q.assign(first, first + group * options_.head_dim);
    std::vector<float> row(options_.head_dim);
    for (int64_t token = 0; token < tokens_[0]; ++token) {
      for (const bool value : {false, true}) {
        CopyRow(sequence, token, head, value, row.data());
        std::vector<double>& rows = value ? step.v : step.k;
        for (int64_t d = 0; d < options_.head_dim; ++d) rows.push_back(reference::Round(options_.dtype, row[d]));
      }
    }
    const reference::Output output = reference::Exact(step);
    all.o.insert(all.o.end(), output.o.begin(), output.o.end());
    all.lse.insert(all.lse.end(), output.lse.begin(), output.lse.end());
  }
  return all;
}

}  // namespace santa::bench
