// Which methods are answered exactly instead, in which layers, because their audited error passed a bound.
#ifndef SANTA_SERVER_ENGINE_FALLBACK_TABLE_H_
#define SANTA_SERVER_ENGINE_FALLBACK_TABLE_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "kernels/attention.h"

namespace santa {

// A method falls back in a layer when the root mean square of its relative errors there passes the bound: over the
// first kItems audited items, and from then on over a running mean in which an item weighs 1 / kItems. After a while it
// is tried again, with what was known of it forgotten. Thread safe.
class FallbackTable {
 public:
  static constexpr int kItems = 8;

  // bound > 0; 0: nothing ever falls back.
  FallbackTable(double bound, absl::Duration duration) : bound_(bound), duration_(duration) {}

  // Takes in one audited item. The root mean square error, if the method falls back in the layer now by it. An error
  // that is no finite number counts as endless.
  std::optional<double> Add(Method method, int32_t layer, double relative_error, absl::Time now);

  // Costs next to nothing while there is no fallback at all.
  bool Contains(Method method, int32_t layer, absl::Time now);

  // Layers in which the method has fallen back.
  int64_t CountLayers(Method method, absl::Time now) const;

 private:
  struct Entry {
    double mean_square = 0;
    int64_t items = 0;
    absl::Time until = absl::InfinitePast();  // answered exactly until then
  };

  const double bound_;
  const absl::Duration duration_;
  std::atomic<bool> any_{false};  // whether there ever was one
  mutable std::mutex mutex_;
  absl::flat_hash_map<std::pair<Method, int32_t>, Entry> entries_;
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_FALLBACK_TABLE_H_
