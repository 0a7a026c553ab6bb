#include "kernels/cuda/decode_plan.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "kernels/sampling/pilot.h"
#include "kernels/sampling/score.h"
#include "kernels/sampling/target_error.h"
#include "kernels/sampling/tiles.h"

namespace santa::cuda {
namespace {

// Tokens of a split for up to so many visible ones.
struct SplitLength {
  int32_t visible;
  int32_t tokens;
};
constexpr SplitLength kExactLengths[] = {{1024, 64},    {2048, 128},   {4096, 256},
                                         {32768, 1024}, {65536, 2048}, {INT32_MAX, 4096}};
// For groups of more than 4: a split's partial results are as large as so many tokens' keys and values sooner.
constexpr SplitLength kLargeGroupLengths[] = {{1024, 64},    {2048, 128},   {4096, 256},
                                              {16384, 1024}, {65536, 2048}, {INT32_MAX, 4096}};
// A warp takes whole tiles of 256, and a block has four warps.
constexpr SplitLength kTileLengths[] = {{1024, 256}, {4096, 512}, {32768, 1024}, {65536, 2048}, {INT32_MAX, 4096}};
// Two tiles a warp sooner: the keys of the second are on their way while the first is weighed.
constexpr SplitLength kTwoTileLengths[] = {{1024, 256}, {4096, 512}, {16384, 1024}, {65536, 2048}, {INT32_MAX, 4096}};

const SplitLength* LengthsOf(Kernel kernel, const KvLayout& layout) {
  switch (kernel) {
    case Kernel::kExact:
      return layout.group_size() > 4 ? kLargeGroupLengths : kExactLengths;
    case Kernel::kS2antaFlash:
      return SizeOf(layout.dtype) == 1 ? kTwoTileLengths : kTileLengths;
    case Kernel::kS2antaProp:
      return kTwoTileLengths;
    default:
      return kTileLengths;
  }
}

// Of a whole split.
int32_t TokensOf(Kernel kernel, const KvLayout& layout, int32_t visible) {
  if (HasPilot(kernel)) return sampling::PilotRunTokens(visible);  // each draws for itself
  const SplitLength* length = LengthsOf(kernel, layout);
  while (visible > length->visible) ++length;
  return length->tokens;
}

// Whether a pilot gives the threshold of a draw for a group: not where an item's own says more (a target's). nvcc takes
// a while for each shape that has it, so that these are the usual ones.
bool HasPilot(const DecodeItem& item, const KvLayout& layout, int64_t visible, int64_t least_one_pass) {
  const AttentionOptions& options = item.options;
  const bool usual = (layout.head_dim == 64 || layout.head_dim == 128) && layout.group_size() <= 8 &&
                     layout.key_order == KeyOrder::kTokenMajor;
  const bool of_values = options.method == Method::kSketched && ValueBits(layout.sketch) > 0;
  const bool has_value_pass = layout.group_size() <= 4 && layout.page_size >= 64;
  return usual && (!of_values || has_value_pass) && options.target_relative_error == 0 &&
         options.sample_count >= sampling::kLeastPilotSamples && visible >= least_one_pass;
}

Kernel KernelOf(const DecodeItem& item, const KvLayout& layout, int64_t begin, int64_t end, int64_t least_one_pass) {
  const AttentionOptions& options = item.options;
  if (layout.key_order == KeyOrder::kFeatureMajor) {
    if (ReadsAllValues(item)) return Kernel::kAllRows;
    return options.method == Method::kCoordinated ? Kernel::kCoordinated : Kernel::kStoredScores;
  }
  if (IsExact(item)) return Kernel::kExact;
  if (sampling::MakeTiling(begin, end, options.sample_count).size == sampling::kMinTileSize) {
    if (options.method == Method::kS2antaFlash) return Kernel::kS2antaFlash;
    if (options.method == Method::kS2antaProp && options.budget_rounding == BudgetRounding::kSystematic) {
      return Kernel::kS2antaProp;
    }
  }
  const bool has_pilot = HasPilot(item, layout, end - begin, least_one_pass);
  if (options.method == Method::kCoordinated) return has_pilot ? Kernel::kCoordinatedOnePass : Kernel::kCoordinated;
  if (options.method == Method::kSketched) return has_pilot ? Kernel::kSketchedOnePass : Kernel::kSketched;
  return Kernel::kStoredScores;
}

}  // namespace

int32_t Splits::EndOf(int32_t i) const { return std::min(end, (begin / tokens + i + 1) * tokens); }

Splits CutSplits(Kernel kernel, const KvLayout& layout, int32_t begin, int32_t end) {
  const int32_t tokens = TokensOf(kernel, layout, end - begin);
  return {.begin = begin, .end = end, .tokens = tokens, .count = (end - 1) / tokens - begin / tokens + 1};
}

ItemPlan PlanItem(const DecodeItem& item, const KvLayout& layout, std::optional<int64_t> least_one_pass) {
  const int64_t begin = sampling::VisibleBegin(item.num_tokens, item.options.window);
  const int64_t end = item.num_tokens;
  ItemPlan plan;
  plan.kernel = KernelOf(item, layout, begin, end, least_one_pass.value_or(LeastOnePassTokens(item.options.method)));
  plan.begin = static_cast<int32_t>(begin);
  plan.end = static_cast<int32_t>(end);
  plan.splits = CutSplits(plan.kernel, layout, plan.begin, plan.end);
  plan.score_draws = item.options.score_draws;
  if (ReadsAllRows(plan.kernel)) return plan;
  plan.target_relative_error = item.options.target_relative_error;
  plan.sample_count = plan.has_target() ? sampling::kPilotSamples : item.options.sample_count;
  return plan;
}

int32_t ItemPlan::num_units() const {
  return HasPilot(kernel) ? (splits.count + kUnitsOfBlock - 1) / kUnitsOfBlock * kUnitsOfBlock : splits.count;
}

void OrderWork(std::span<const ItemPlan> plans, std::vector<int32_t>& order, WorkUnit* work,
               std::span<WorkRange, kNumKernels> ranges) {
  order.resize(plans.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [plans](int32_t a, int32_t b) {
    const ItemPlan& x = plans[a];
    const ItemPlan& y = plans[b];
    return std::tuple(x.kernel, -x.splits.tokens, -x.visible(), a) <
           std::tuple(y.kernel, -y.splits.tokens, -y.visible(), b);
  });
  std::fill(ranges.begin(), ranges.end(), WorkRange{});
  int32_t count = 0;
  for (const int32_t item : order) {
    const Splits& splits = plans[item].splits;
    WorkRange& range = ranges[static_cast<size_t>(plans[item].kernel)];
    if (range.count == 0) range.first = count;
    const int32_t units = plans[item].num_units();
    range.count += units;
    // EndOf by adding up: to divide for each unit takes longer than to write it.
    int32_t begin = splits.begin;
    for (int32_t i = 0, end = splits.EndOf(0); i < units; ++i) {  // behind the last split, empty ones
      work[count++] = {item, i, begin, end};
      begin = end;
      end = std::min(splits.end, end + splits.tokens);
    }
  }
}

}  // namespace santa::cuda
