#include "kernels/cpu/decode_plan.h"

#include "kernels/sampling/score.h"
#include "kernels/sampling/standard_error.h"

namespace santa::cpu {

DecodeShape DecodeShape::Of(const KvLayout& layout, const RowKernels& kernels) {
  DecodeShape shape = {};
  shape.num_kv_heads = layout.num_kv_heads;
  shape.group = layout.group_size();
  shape.head_dim = layout.head_dim;
  shape.padded_dim = kernels.padded_dim(layout.head_dim);
  shape.num_chunks = (shape.group + kChunkHeads - 1) / kChunkHeads;
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) shape.pitch_sum += shape.pitch(chunk);
  return shape;
}

PlannedItem PlanItem(const DecodeItem& item, const DecodeShape& shape, int32_t page_size) {
  PlannedItem plan = {};
  plan.item = &item;
  plan.begin = sampling::VisibleBegin(item.num_tokens, item.options.window);
  plan.end = item.num_tokens;
  plan.method = ReadsAllValues(item) ? Method::kExact : item.options.method;
  plan.full = plan.method == Method::kSketched ? plan.end / page_size * page_size : plan.end;
  plan.scale = sampling::EffectiveScale(item.options.scale, shape.head_dim);
  plan.split_tokens = kSplitTokens;
  if (plan.method == Method::kS2antaFlash || plan.method == Method::kS2antaProp) {
    plan.tiling = sampling::MakeTiling(plan.begin, plan.end, item.options.sample_count);
    plan.split_tokens = std::max(kSplitTokens, plan.tiling.size);
  }
  plan.tells_errors = item.relative_standard_error != nullptr && item.options.score_draws == 0;
  if (plan.method == Method::kS2antaFlash) {
    const int64_t least_budget = item.options.sample_count / plan.tiling.count;
    plan.tells_errors = plan.tells_errors && least_budget >= sampling::kLeastToldBudget;
  }
  // One independent draw says nothing of its error.
  if (plan.method == Method::kSanta && item.options.sample_count == 1) plan.tells_errors = false;
  plan.first_split = plan.begin / plan.split_tokens;
  plan.num_splits = (plan.end - 1) / plan.split_tokens - plan.first_split + 1;
  return plan;
}

}  // namespace santa::cpu
