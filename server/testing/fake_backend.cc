#include "server/testing/fake_backend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/element.h"

namespace santa {

class FakeBackend::Mapping : public MappedMemory {
 public:
  Mapping(FakeBackend* backend, std::span<char> memory) : backend_(backend), memory_(memory) {
    const std::lock_guard<std::mutex> lock(backend_->mapped_mutex_);
    backend_->mapped_.push_back(memory_);
  }
  ~Mapping() override {
    const std::lock_guard<std::mutex> lock(backend_->mapped_mutex_);
    std::erase_if(backend_->mapped_, [this](std::span<char> other) { return other.data() == memory_.data(); });
  }

 private:
  FakeBackend* const backend_;
  const std::span<char> memory_;
};

FakeBackend::FakeBackend(const KvLayout& layout, int32_t num_pages)
    : layout_(layout),
      num_pages_(num_pages),
      cache_(layout.page_bytes() / SizeOf(layout.dtype) * num_pages, std::numeric_limits<float>::quiet_NaN()) {}

size_t FakeBackend::Offset(int32_t layer, int32_t page, bool value, int32_t kv_head, int32_t slot) const {
  size_t index = static_cast<size_t>(layer) * num_pages_ + page;
  index = index * 2 + (value ? 1 : 0);
  index = index * layout_.num_kv_heads + kv_head;
  index = index * layout_.page_size + slot;
  return index * layout_.head_dim;
}

std::span<const float> FakeBackend::Row(int32_t layer, int32_t page, bool value, int32_t kv_head, int32_t slot) const {
  return {cache_.data() + Offset(layer, page, value, kv_head, slot), static_cast<size_t>(layout_.head_dim)};
}

std::unique_ptr<MappedMemory> FakeBackend::MapMemory(std::span<char> memory) {
  if (!maps_memory_) return nullptr;
  return std::make_unique<Mapping>(this, memory);
}

int64_t FakeBackend::mappings(size_t least_bytes) const {
  const std::lock_guard<std::mutex> lock(mapped_mutex_);
  return std::count_if(mapped_.begin(), mapped_.end(),
                       [=](std::span<char> mapped) { return mapped.size() >= least_bytes; });
}

bool FakeBackend::Maps(const void* memory, size_t bytes) const {
  const auto* const begin = static_cast<const char*>(memory);
  const std::lock_guard<std::mutex> lock(mapped_mutex_);
  return std::any_of(mapped_.begin(), mapped_.end(), [&](std::span<char> mapped) {
    return begin >= mapped.data() && begin + bytes <= mapped.data() + mapped.size();
  });
}

absl::Status FakeBackend::CheckMapped(const DecodeItem& item) const {
  const size_t bytes = sizeof(float) * layout_.num_query_heads * layout_.head_dim;
  if (item.query_fault != nullptr && !Maps(item.q, bytes)) return absl::InternalError("q is not mapped");
  if (!item.maps_answer) return absl::OkStatus();
  if (!Maps(item.o, bytes)) return absl::InternalError("o is not mapped");
  if (reinterpret_cast<uintptr_t>(item.o) % 16 != 0) return absl::InternalError("o is not aligned");
  if (!Maps(item.lse, sizeof(float) * layout_.num_query_heads)) return absl::InternalError("lse is not mapped");
  return absl::OkStatus();
}

template <typename Visit>
void FakeBackend::ForEachRow(const KvAppend& append, Visit visit) const {
  const size_t row_bytes = layout_.head_dim * SizeOf(append.dtype);
  for (int64_t t = 0; t < append.num_tokens; ++t) {
    const int64_t token = append.position + t;
    const int32_t page = append.page_table[token / layout_.page_size];
    const auto slot = static_cast<int32_t>(token % layout_.page_size);
    for (int32_t head = 0; head < layout_.num_kv_heads; ++head) {
      const size_t source = (t * layout_.num_kv_heads + head) * row_bytes;
      visit(Offset(append.layer, page, false, head, slot), static_cast<const char*>(append.k) + source, append.dtype);
      visit(Offset(append.layer, page, true, head, slot), static_cast<const char*>(append.v) + source, append.dtype);
    }
  }
}

absl::Status FakeBackend::Supports(const AttentionOptions& options, int64_t /*num_tokens*/) const {
  if (options.method != unsupported_) return absl::OkStatus();
  return absl::UnimplementedError("the fake backend has not got this method");
}

absl::Status FakeBackend::Append(std::span<const KvAppend> appends) {
  if (absl::Status status = Meet(Call::kAppend); !status.ok()) return status;
  for (const KvAppend& append : appends) {
    const size_t bytes = SizeOf(append.dtype) * append.num_tokens * layout_.num_kv_heads * layout_.head_dim;
    if (append.mapped && (!Maps(append.k, bytes) || !Maps(append.v, bytes))) {
      return absl::InternalError("k or v is not mapped");
    }
    ForEachRow(append, [this](size_t offset, const char* row, DType dtype) {
      for (int d = 0; d < layout_.head_dim; ++d) cache_[offset + d] = ElementAsFloat(row, d, dtype);
    });
  }
  return absl::OkStatus();
}

absl::Status FakeBackend::Compare(std::span<const KvAppend> appends, std::span<bool> matches) {
  if (absl::Status status = Meet(Call::kCompare); !status.ok()) return status;
  for (size_t i = 0; i < appends.size(); ++i) {
    matches[i] = true;
    ForEachRow(appends[i], [this, match = &matches[i]](size_t offset, const char* row, DType dtype) {
      for (int d = 0; d < layout_.head_dim; ++d) {
        *match &= std::bit_cast<uint32_t>(cache_[offset + d]) == std::bit_cast<uint32_t>(ElementAsFloat(row, d, dtype));
      }
    });
  }
  return absl::OkStatus();
}

absl::Status FakeBackend::CopyPages(std::span<const PageCopy> copies) {
  if (absl::Status status = Meet(Call::kCopyPages); !status.ok()) return status;
  const size_t page_floats = layout_.layer_page_bytes() / SizeOf(layout_.dtype);
  for (const PageCopy& copy : copies) {
    for (int32_t layer = 0; layer < layout_.num_layers; ++layer) {
      const auto from = cache_.begin() + static_cast<ptrdiff_t>(Offset(layer, copy.from, false, 0, 0));
      const auto to = cache_.begin() + static_cast<ptrdiff_t>(Offset(layer, copy.to, false, 0, 0));
      std::copy(from, from + static_cast<ptrdiff_t>(page_floats), to);
    }
  }
  return absl::OkStatus();
}

absl::Status FakeBackend::Decode(std::span<const DecodeItem> items) {
  if (absl::Status status = Meet(Call::kDecode); !status.ok()) return status;
  for (const DecodeItem& item : items) {
    if (absl::Status status = CheckMapped(item); !status.ok()) return status;
    if (item.query_fault != nullptr) {
      *item.query_fault = {};
      const auto count = static_cast<int64_t>(layout_.num_query_heads) * layout_.head_dim;
      for (int64_t i = count; i-- > 0;) {
        const float value = ElementAsFloat(item.q, i, item.io_dtype);
        if (!std::isfinite(value)) *item.query_fault = {.element = i, .value = value};
      }
    }
    const bool exact = item.options.method == Method::kExact && item.options.score_draws == 0;
    const int64_t window = item.options.window;
    const int64_t visible = window > 0 ? std::min(window, item.num_tokens) : item.num_tokens;
    auto* o = static_cast<float*>(item.o);
    for (int32_t head = 0; head < layout_.num_query_heads; ++head) {
      std::vector<double> sum(layout_.head_dim);
      for (int64_t token = item.num_tokens - visible; token < item.num_tokens; ++token) {
        const std::span<const float> row =
            Row(item.layer, item.page_table[token / layout_.page_size], true, head / layout_.group_size(),
                static_cast<int32_t>(token % layout_.page_size));
        for (int d = 0; d < layout_.head_dim; ++d) sum[d] += row[d];
      }
      for (int d = 0; d < layout_.head_dim; ++d) {
        const double factor = exact ? 1 : 1 + sampled_error_;
        o[head * layout_.head_dim + d] = static_cast<float>(factor * sum[d] / static_cast<double>(visible));
      }
      item.lse[head] = static_cast<float>(std::log(static_cast<double>(visible)));
      if (item.relative_standard_error == nullptr) continue;
      item.relative_standard_error[head] = exact ? 0 : predicted_error_.load();
    }
    if (item.statistics == nullptr) continue;
    const int64_t rows = visible * layout_.num_kv_heads;
    const auto bytes = static_cast<int64_t>(2 * rows * layout_.row_bytes());
    *item.statistics = {
        .visible_tokens = visible, .value_rows_read = rows, .kv_bytes_read = bytes, .dense_kv_bytes = bytes};
  }
  return absl::OkStatus();
}

absl::Status FakeBackend::BeginDecode(std::span<const DecodeItem> items) {
  if (max_decodes_in_flight_ == 1) return Decode(items);
  auto begun = std::make_unique<Begun>();
  begun->items.assign(items.begin(), items.end());
  begun->o.resize(items.size());
  begun->lse.resize(items.size());
  begun->statistics.resize(items.size());
  std::vector<DecodeItem> now(items.begin(), items.end());
  for (const DecodeItem& item : items) {
    if (absl::Status status = CheckMapped(item); !status.ok()) return status;
  }
  for (size_t i = 0; i < now.size(); ++i) {
    begun->o[i].resize(static_cast<size_t>(layout_.num_query_heads) * layout_.head_dim);
    begun->lse[i].resize(layout_.num_query_heads);
    now[i].o = begun->o[i].data();
    now[i].lse = begun->lse[i].data();
    now[i].statistics = &begun->statistics[i];
    now[i].maps_answer = false;
  }
  if (absl::Status status = Decode(now); !status.ok()) return status;
  const std::lock_guard<std::mutex> lock(begun_mutex_);
  begun_.push_back(std::move(begun));
  return absl::OkStatus();
}

absl::Status FakeBackend::AwaitDecode(double* device_seconds) {
  if (max_decodes_in_flight_ == 1) return absl::OkStatus();
  std::unique_ptr<Begun> begun;
  {
    const std::lock_guard<std::mutex> lock(begun_mutex_);
    begun = std::move(begun_.front());
    begun_.pop_front();
  }
  if (absl::Status status = Meet(Call::kAwaitDecode); !status.ok()) return status;
  *device_seconds = 0.25;
  for (size_t i = 0; i < begun->items.size(); ++i) {
    const DecodeItem& item = begun->items[i];
    if (absl::Status status = CheckMapped(item); !status.ok()) return status;
    std::copy(begun->o[i].begin(), begun->o[i].end(), static_cast<float*>(item.o));
    std::copy(begun->lse[i].begin(), begun->lse[i].end(), item.lse);
    if (item.statistics != nullptr) *item.statistics = begun->statistics[i];
  }
  return absl::OkStatus();
}

}  // namespace santa
