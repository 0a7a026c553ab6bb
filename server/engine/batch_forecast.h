// How long batches take, and to form one: how long to wait with the next one while one is on the device, and which are
// small.
#ifndef SANTA_SERVER_ENGINE_BATCH_FORECAST_H_
#define SANTA_SERVER_ENGINE_BATCH_FORECAST_H_

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "server/engine/step.h"

namespace santa {

// A device works on one batch after another. What begins early only waits there, and work that arrives meanwhile can no
// longer join it: so a batch that is formed late is a larger one, which costs the device less an item, and none of its
// steps is answered later. It must be there before the device is done with the one ahead. How long that takes is told
// from the tokens that batches attended to of late, and how long it takes to form one from how long it took; as a
// forecast errs, the next batch begins a good part too early.
//
// Not thread safe.
class BatchForecast {
 public:
  using Duration = std::chrono::steady_clock::duration;

  // Tokens that the steps' queries see: what a batch's time goes by.
  template <typename Steps>
  static int64_t TokensOf(const Steps& steps) {
    int64_t tokens = 0;
    for (const Step* step : steps) {
      for (const StepItem& item : step->items) {
        if (item.q == nullptr) continue;
        const int64_t window = item.options.window;
        tokens += window > 0 ? std::min(item.position + 1, window) : item.position + 1;
      }
    }
    return tokens;
  }

  void Learn(int64_t tokens, Duration device_time) {
    if (tokens <= 0) return;
    const double sample = std::chrono::duration<double>(device_time).count() / static_cast<double>(tokens);
    seconds_per_token_ += (sample - seconds_per_token_) / (learned_ ? 8 : 1);
    learned_ = true;
  }

  // From when a batch was to be formed until the device had it all.
  void LearnForming(Duration took) {
    const double sample = std::chrono::duration<double>(took).count();
    forming_seconds_ += (sample - forming_seconds_) / 8;
  }

  // Whether a batch of so many tokens is expected to take no longer than that. Not before any was learnt.
  bool IsWithin(Duration longest, int64_t tokens) const {
    return learned_ && ExpectedSeconds(tokens) <= std::chrono::duration<double>(longest).count();
  }

  // For the batch after one of so many tokens, from when the device begins with that. Zero: at once.
  Duration Patience(int64_t tokens) const {
    const double expected = ExpectedSeconds(tokens);
    const double patience = std::min(kShare * expected, expected - kFormings * forming_seconds_ - kSpare);
    return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(std::max(0.0, patience)));
  }

 private:
  static constexpr double kShare = 0.6;  // of the forecast
  // Seconds that a batch may take longer to form than others of late, and for the device to take in.
  static constexpr double kFormings = 2;
  static constexpr double kSpare = 30e-6;

  double ExpectedSeconds(int64_t tokens) const { return seconds_per_token_ * static_cast<double>(tokens); }

  bool learned_ = false;
  double seconds_per_token_ = 0;
  double forming_seconds_ = 60e-6;  // until it is learnt: more than 16 items take
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_BATCH_FORECAST_H_
