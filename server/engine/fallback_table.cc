#include "server/engine/fallback_table.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace santa {

std::optional<double> FallbackTable::Add(Method method, int32_t layer, double relative_error, absl::Time now) {
  if (!(bound_ > 0)) return std::nullopt;
  if (!std::isfinite(relative_error)) relative_error = std::numeric_limits<double>::infinity();
  std::lock_guard<std::mutex> lock(mutex_);
  Entry& entry = entries_[{method, layer}];
  if (entry.until > now) return std::nullopt;  // of a step that was answered before
  ++entry.items;
  const double weight = 1.0 / static_cast<double>(std::min<int64_t>(entry.items, kItems));
  entry.mean_square += weight * (relative_error * relative_error - entry.mean_square);
  if (!std::isfinite(entry.mean_square)) entry.mean_square = std::numeric_limits<double>::infinity();
  const double error = std::sqrt(entry.mean_square);
  if (error <= bound_ || (entry.items < kItems && std::isfinite(error))) return std::nullopt;
  entry = {.until = now + duration_};
  any_ = true;
  return error;
}

bool FallbackTable::Contains(Method method, int32_t layer, absl::Time now) {
  if (!any_.load(std::memory_order_relaxed)) return false;
  std::lock_guard<std::mutex> lock(mutex_);
  const auto entry = entries_.find({method, layer});
  return entry != entries_.end() && entry->second.until > now;
}

int64_t FallbackTable::CountLayers(Method method, absl::Time now) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::count_if(entries_.begin(), entries_.end(),
                       [&](const auto& entry) { return entry.first.first == method && entry.second.until > now; });
}

}  // namespace santa
