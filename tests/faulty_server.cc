// The attention server, all of it, over a backend that fails when it is told to: what the test of the alerts runs.
//
// SIGUSR1: the device fails. SIGUSR2: from then on, every other batch answers its sampled items with their signs
// turned. SIGHUP: every batch takes a quarter of a second more, until the next SIGHUP.
#include <atomic>
#include <chrono>
#include <csignal>
#include <memory>
#include <span>
#include <thread>
#include <utility>

#include "kernels/attention.h"
#include "server/server_main.h"

namespace santa {
namespace {

std::atomic<bool> device_fails = false;
std::atomic<bool> answers_turn = false;
std::atomic<bool> batches_drag = false;
static_assert(std::atomic<bool>::is_always_lock_free, "signal handlers set them");

class FaultyBackend : public Backend {
 public:
  explicit FaultyBackend(std::unique_ptr<Backend> sound) : sound_(std::move(sound)) {}

  std::string_view name() const override { return sound_->name(); }
  std::string device() const override { return sound_->device(); }
  const KvLayout& layout() const override { return sound_->layout(); }
  int32_t num_pages() const override { return sound_->num_pages(); }
  absl::Status Supports(const AttentionOptions& options, int64_t num_tokens) const override {
    return sound_->Supports(options, num_tokens);
  }
  absl::Status Append(std::span<const KvAppend> appends) override { return sound_->Append(appends); }
  absl::Status Compare(std::span<const KvAppend> appends, std::span<bool> matches) override {
    return sound_->Compare(appends, matches);
  }
  absl::Status CopyPages(std::span<const PageCopy> copies) override { return sound_->CopyPages(copies); }
  absl::Status Decode(std::span<const DecodeItem> items) override {
    if (device_fails) return absl::InternalError("a fault that was asked for");
    if (batches_drag) std::this_thread::sleep_for(std::chrono::milliseconds(250));
    absl::Status status = sound_->Decode(items);
    if (!answers_turn) return status;
    bool sampled = false;
    for (const DecodeItem& item : items) {
      if (item.options.method == Method::kExact) continue;
      sampled = true;
      if (turn_) TurnSigns(item);
    }
    if (sampled) turn_ = !turn_;
    return status;
  }

 private:
  // The sign is the first bit of every type; numbers are little-endian.
  void TurnSigns(const DecodeItem& item) const {
    const size_t size = SizeOf(item.io_dtype);
    const size_t bytes = size * layout().num_query_heads * layout().head_dim;
    auto* const o = static_cast<unsigned char*>(item.o);
    for (size_t last = size - 1; last < bytes; last += size) o[last] ^= 0x80;
  }

  const std::unique_ptr<Backend> sound_;
  bool turn_ = true;
};

void OnSignal(int signal) {
  if (signal == SIGUSR1) device_fails = true;
  if (signal == SIGUSR2) answers_turn = true;
  if (signal == SIGHUP) batches_drag = !batches_drag;
}

}  // namespace
}  // namespace santa

int main(int argc, char** argv) {
  for (const int signal : {SIGUSR1, SIGUSR2, SIGHUP}) {
    struct sigaction action = {};
    action.sa_handler = santa::OnSignal;
    action.sa_flags = SA_RESTART;
    sigaction(signal, &action, nullptr);
  }
  return santa::ServerMain(argc, argv, [](std::unique_ptr<santa::Backend> sound) {
    return std::make_unique<santa::FaultyBackend>(std::move(sound));
  });
}
