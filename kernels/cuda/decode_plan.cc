#include "kernels/cuda/decode_plan.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <tuple>

#include "kernels/sampling/score.h"
#include "kernels/sampling/tiles.h"

namespace santa::cuda {
namespace {

constexpr int64_t kLeastSplit = 256;
constexpr int64_t kMostSplit = 1024;
constexpr int64_t kVeryLong = 131072;  // past it a split is twice kMostSplit
constexpr int64_t kSplitsAimedAt = 16;

Kernel KernelOf(const AttentionOptions& options, int64_t begin, int64_t end) {
  if (options.method == Method::kExact || options.sample_count >= end - begin) return Kernel::kExact;
  if (options.method == Method::kS2antaFlash &&
      sampling::MakeTiling(begin, end, options.sample_count).size == sampling::kMinTileSize) {
    return Kernel::kS2antaFlash;
  }
  return Kernel::kStoredScores;
}

}  // namespace

int32_t SplitTokens(int64_t visible) {
  if (visible > kVeryLong) return static_cast<int32_t>(2 * kMostSplit);
  const auto aim = static_cast<uint64_t>((visible + kSplitsAimedAt - 1) / kSplitsAimedAt);
  return static_cast<int32_t>(std::clamp(static_cast<int64_t>(std::bit_ceil(aim)), kLeastSplit, kMostSplit));
}

ItemPlan PlanItem(const DecodeItem& item) {
  const int64_t begin = sampling::VisibleBegin(item.num_tokens, item.options.window);
  const int64_t end = item.num_tokens;
  ItemPlan plan;
  plan.kernel = KernelOf(item.options, begin, end);
  plan.begin = static_cast<int32_t>(begin);
  plan.end = static_cast<int32_t>(end);
  plan.split_tokens = SplitTokens(end - begin);
  plan.num_splits = (plan.end - 1) / plan.split_tokens - plan.begin / plan.split_tokens + 1;
  plan.sample_count = plan.kernel == Kernel::kExact ? 0 : item.options.sample_count;
  return plan;
}

void OrderWork(std::span<const ItemPlan> plans, std::vector<int32_t>& order, WorkUnit* work,
               std::span<WorkRange, kNumKernels> ranges) {
  order.resize(plans.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [plans](int32_t a, int32_t b) {
    const ItemPlan& x = plans[a];
    const ItemPlan& y = plans[b];
    return std::tuple(x.kernel, -x.split_tokens, -x.visible(), a) <
           std::tuple(y.kernel, -y.split_tokens, -y.visible(), b);
  });
  std::fill(ranges.begin(), ranges.end(), WorkRange{});
  int32_t count = 0;
  for (const int32_t item : order) {
    WorkRange& range = ranges[static_cast<size_t>(plans[item].kernel)];
    if (range.count == 0) range.first = count;
    range.count += plans[item].num_splits;
    for (int32_t split = 0; split < plans[item].num_splits; ++split) work[count++] = {item, split};
  }
}

}  // namespace santa::cuda
