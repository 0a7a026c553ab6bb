// A backend whose answers a test can predict: attention is the plain mean of the visible value rows.
#ifndef SANTA_SERVER_TESTING_FAKE_BACKEND_H_
#define SANTA_SERVER_TESTING_FAKE_BACKEND_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/attention.h"

namespace santa {

// Stores every dtype as fp32. Takes only layouts whose dtype is kFloat32, so that nothing is rounded.
//
// o[h] is the mean of the visible value rows of h's key/value head (of the last `window`, if there is one), lse[h] the
// natural log of their number, whatever q and the other options are. o is written as fp32 whatever io_dtype says, which
// must therefore be kFloat32. Pages start out as NaN.
//
// As single threaded as any backend, AwaitDecode apart; but the hook may be used to meet the device thread at a call.
class FakeBackend : public Backend {
 public:
  enum class Call { kAppend, kCompare, kCopyPages, kDecode, kAwaitDecode };

  FakeBackend(const KvLayout& layout, int32_t num_pages);

  // Runs at the start of every call, before it touches the cache; when it returns an error, so does the call.
  void set_hook(std::function<absl::Status(Call)> hook) { hook_ = std::move(hook); }

  // More than 1: BeginDecode computes, and AwaitDecode, which meets the hook too, writes the outputs. Not later than
  // the first call.
  void set_max_decodes_in_flight(int number) { max_decodes_in_flight_ = number; }

  // MapMemory maps. A call that names mapped memory which is not, or not any more, fails.
  void set_maps_memory() { maps_memory_ = true; }
  int64_t mappings(size_t least_bytes) const;  // that live, of so many bytes or more

  // The relative error of every method but EXACT, and of score draws; they have none at first.
  void set_sampled_error(double error) { sampled_error_ = error; }

  // What every method but EXACT says of its error, of every head; NaN, nothing, at first.
  void set_predicted_error(float error) { predicted_error_ = error; }

  // A method that Supports refuses.
  void set_unsupported(Method method) { unsupported_ = method; }

  // K row, or V row, of a token: D values.
  std::span<const float> Row(int32_t layer, int32_t page, bool value, int32_t kv_head, int32_t slot) const;

  std::string_view name() const override { return "fake"; }
  std::string device() const override { return "a test"; }
  const KvLayout& layout() const override { return layout_; }
  int32_t num_pages() const override { return num_pages_; }
  absl::Status Supports(const AttentionOptions& options, int64_t num_tokens) const override;
  absl::Status Append(std::span<const KvAppend> appends) override;
  absl::Status Compare(std::span<const KvAppend> appends, std::span<bool> matches) override;
  absl::Status CopyPages(std::span<const PageCopy> copies) override;
  absl::Status Decode(std::span<const DecodeItem> items) override;
  absl::Status BeginDecode(std::span<const DecodeItem> items) override;
  absl::Status AwaitDecode(double* device_seconds) override;
  std::unique_ptr<MappedMemory> MapMemory(std::span<char> memory) override;
  int max_decodes_in_flight() const override { return max_decodes_in_flight_; }

 private:
  class Mapping;
  // A decode that was begun: its outputs, and where they are to go.
  struct Begun {
    std::vector<DecodeItem> items;
    std::vector<std::vector<float>> o, lse;
    std::vector<DecodeStatistics> statistics;
  };
  size_t Offset(int32_t layer, int32_t page, bool value, int32_t kv_head, int32_t slot) const;
  // Calls visit(offset in the cache, source row, its dtype) for each row of an append.
  template <typename Visit>
  void ForEachRow(const KvAppend& append, Visit visit) const;
  absl::Status Meet(Call call) const { return hook_ ? hook_(call) : absl::OkStatus(); }
  bool Maps(const void* memory, size_t bytes) const;
  absl::Status CheckMapped(const DecodeItem& item) const;

  const KvLayout layout_;
  const int32_t num_pages_;
  std::vector<float> cache_;  // [layer][page][K|V][kv_head][slot][D]
  std::function<absl::Status(Call)> hook_;
  int max_decodes_in_flight_ = 1;
  std::atomic<double> sampled_error_{0};
  std::atomic<float> predicted_error_{std::numeric_limits<float>::quiet_NaN()};
  std::optional<Method> unsupported_;
  bool maps_memory_ = false;
  mutable std::mutex mapped_mutex_;
  std::vector<std::span<char>> mapped_;
  std::mutex begun_mutex_;
  std::deque<std::unique_ptr<Begun>> begun_;
};

}  // namespace santa

#endif  // SANTA_SERVER_TESTING_FAKE_BACKEND_H_
