#include "kernels/cuda/decode_plan.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "kernels/sampling/score.h"
#include "kernels/sampling/tiles.h"

namespace santa::cuda {
namespace {

// Tokens of the long splits, and of the short ones that the last quarter of a long item is cut into.
struct SplitLengths {
  int32_t visible;  // up to so many visible tokens
  int32_t long_tokens, short_tokens;
};
constexpr SplitLengths kExactLengths[] = {{1024, 64, 64},   {2048, 128, 128},    {4096, 256, 256},
                                          {8192, 512, 512}, {65536, 1024, 1024}, {INT32_MAX, 2048, 1024}};
// A warp takes whole tiles, and a block has four warps.
constexpr SplitLengths kTileLengths[] = {
    {4096, 256, 256}, {8192, 512, 512}, {65536, 1024, 1024}, {INT32_MAX, 2048, 1024}};

Kernel KernelOf(const AttentionOptions& options, int64_t begin, int64_t end) {
  if (options.method == Method::kExact || options.sample_count >= end - begin) return Kernel::kExact;
  if (options.method == Method::kS2antaFlash &&
      sampling::MakeTiling(begin, end, options.sample_count).size == sampling::kMinTileSize) {
    return Kernel::kS2antaFlash;
  }
  return Kernel::kStoredScores;
}

}  // namespace

int32_t Splits::BeginOf(int32_t i) const {
  const int32_t first = begin / long_tokens * long_tokens;
  return std::max(
      begin, i < num_long ? first + i * long_tokens : first + num_long * long_tokens + (i - num_long) * short_tokens);
}

int32_t Splits::EndOf(int32_t i) const { return i + 1 < count ? BeginOf(i + 1) : end; }

Splits CutSplits(Kernel kernel, int32_t begin, int32_t end) {
  const SplitLengths* lengths = kernel == Kernel::kExact ? kExactLengths : kTileLengths;
  while (end - begin > lengths->visible) ++lengths;
  Splits splits{.begin = begin, .end = end, .long_tokens = lengths->long_tokens, .short_tokens = lengths->short_tokens};
  const int32_t first = begin / splits.long_tokens;
  const int32_t all_long = (end - 1) / splits.long_tokens - first + 1;
  splits.num_long = splits.long_tokens == splits.short_tokens ? all_long : all_long * 3 / 4;
  const int32_t left = end - (first + splits.num_long) * splits.long_tokens;
  splits.count = splits.num_long + (left <= 0 ? 0 : (left - 1) / splits.short_tokens + 1);
  return splits;
}

ItemPlan PlanItem(const DecodeItem& item) {
  const int64_t begin = sampling::VisibleBegin(item.num_tokens, item.options.window);
  const int64_t end = item.num_tokens;
  ItemPlan plan;
  plan.kernel = KernelOf(item.options, begin, end);
  plan.begin = static_cast<int32_t>(begin);
  plan.end = static_cast<int32_t>(end);
  plan.splits = CutSplits(plan.kernel, plan.begin, plan.end);
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
    return std::tuple(x.kernel, -x.splits.long_tokens, -x.visible(), a) <
           std::tuple(y.kernel, -y.splits.long_tokens, -y.visible(), b);
  });
  std::fill(ranges.begin(), ranges.end(), WorkRange{});
  int32_t count = 0;
  for (auto from = order.begin(); from != order.end();) {
    const Kernel kernel = plans[*from].kernel;
    const auto to = std::find_if(from, order.end(), [&](int32_t item) { return plans[item].kernel != kernel; });
    const int32_t first = count;
    for (const bool long_ones : {true, false}) {
      for (auto item = from; item != to; ++item) {
        const Splits& splits = plans[*item].splits;
        const int32_t end = long_ones ? splits.num_long : splits.count;
        for (int32_t i = long_ones ? 0 : splits.num_long; i < end; ++i) {
          work[count++] = {*item, i, splits.BeginOf(i), splits.EndOf(i)};
        }
      }
    }
    ranges[static_cast<size_t>(kernel)] = {first, count - first};
    from = to;
  }
}

}  // namespace santa::cuda
