// The end of a call: an item's partials become its answer.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/decoder.h"
#include "kernels/cpu/sink.h"
#include "kernels/sampling/standard_error.h"

namespace santa::cpu {

// Merges the partials of one key/value head, in the order of its splits.
void Decoder::Merge(const PlannedItem& plan, int kv_head, int worker) {
  if (plan.draws_for_groups()) return MergeGroup(plan, kv_head, worker);
  const DecodeItem& item = *plan.item;
  float* merged = vectors_[worker].data() + shape_.head_dim;
  for (int in_group = 0; in_group < shape_.group; ++in_group) {
    const int64_t head = static_cast<int64_t>(kv_head) * shape_.group + in_group;
    const auto partial = [&](int64_t split) { return PartialOf(plan, kv_head, split); };
    float max = partial(0).max[in_group];
    for (int64_t split = 1; split < plan.num_splits; ++split) max = std::max(max, partial(split).max[in_group]);
    float sum = 0;
    for (int64_t split = 0; split < plan.num_splits; ++split) {
      sum += std::exp(partial(split).max[in_group] - max) * partial(split).sum[in_group];
    }
    const WithSink all(item, head, max + std::log(static_cast<double>(sum)));
    sampling::StepSums errors;
    std::fill_n(merged, shape_.padded_dim, 0.0f);
    for (int64_t split = 0; split < plan.num_splits; ++split) {
      // Stored scores leave plain sums of the drawn rows, whatever the splits' maxima.
      const Partial part = partial(split);
      const float factor = plan.stores_scores() ? 1.0f : std::exp(part.max[in_group] - max);
      kernels_.add_scaled(merged, part.output + static_cast<int64_t>(in_group) * shape_.padded_dim, factor,
                          shape_.padded_dim);
      if (part.errors == nullptr) continue;
      errors.t += part.errors[in_group].t;
      errors.pairs += part.errors[in_group].pairs;
      errors.steps += factor * factor * part.errors[in_group].steps;
    }
    // A sum that is NaN, from a cache row that is, must show in a mean of drawn rows too.
    const double divisor = plan.stores_scores() ? item.options.sample_count + 0.0 * sum : sum;
    WriteOutput(plan, head, static_cast<float>(all.share / divisor), worker);
    item.lse[head] = static_cast<float>(all.lse);
    if (item.relative_standard_error != nullptr) item.relative_standard_error[head] = ErrorOf(plan, errors, merged);
  }
}

// The standard error of a head, relative to it: `merged` and what it errs by share their factor.
float Decoder::ErrorOf(const PlannedItem& plan, const sampling::StepSums& errors, const float* merged) const {
  if (!plan.tells_errors) return std::numeric_limits<float>::quiet_NaN();
  if (plan.method == Method::kExact) return 0;
  float norm = 0;
  for (int d = 0; d < shape_.padded_dim; ++d) norm += merged[d] * merged[d];
  float squared_error = sampling::SquaredError(errors);
  if (plan.method == Method::kS2antaFlash) squared_error = errors.steps;
  if (plan.method == Method::kSanta) {
    const auto draws = static_cast<float>(plan.item->options.sample_count);
    squared_error = sampling::SquaredError({.t = draws, .t_squared = draws, .z_squared = errors.steps}, norm);
  }
  return sampling::RelativeError(squared_error, norm);
}

// o of a head: the merged sums times `factor`.
void Decoder::WriteOutput(const PlannedItem& plan, int64_t head, float factor, int worker) {
  const DecodeItem& item = *plan.item;
  float* output = vectors_[worker].data();
  kernels_.unpack(output + shape_.head_dim, shape_.head_dim, factor, output);
  Convert(DType::kFloat32, output, item.io_dtype,
          static_cast<uint8_t*>(item.o) + static_cast<size_t>(head) * shape_.head_dim * SizeOf(item.io_dtype),
          shape_.head_dim);
}

void Decoder::MergeGroup(const PlannedItem& plan, int kv_head, int worker) {
  const DecodeItem& item = *plan.item;
  const bool errors = plan.tells_errors;
  if (!errors && item.relative_standard_error != nullptr) {
    std::fill_n(item.relative_standard_error + static_cast<int64_t>(kv_head) * shape_.group, shape_.group,
                std::numeric_limits<float>::quiet_NaN());
  }
  for (int in_group = 0; in_group < shape_.group; ++in_group) {
    const int64_t head = static_cast<int64_t>(kv_head) * shape_.group + in_group;
    const GroupAnswer answer = MergeGroupHead(context_, plan, GroupItemOf(plan), kv_head, in_group, errors,
                                              error_scratch_[worker], vectors_[worker].data() + shape_.head_dim);
    WriteOutput(plan, head, static_cast<float>(answer.unit), worker);
    item.lse[head] = static_cast<float>(answer.lse);
    if (!errors) continue;
    item.relative_standard_error[head] =
        sampling::RelativeError(static_cast<float>(answer.squared_error), static_cast<float>(answer.norm));
  }
}

// After the pilot: how many rows the target needs.
void Decoder::AimAtTarget(const PlannedItem& plan, int kv_head, int worker) {
  std::vector<PilotHead> heads;
  for (int in_group = 0; in_group < shape_.group; ++in_group) {
    const GroupAnswer answer = MergeGroupHead(context_, plan, GroupItemOf(plan), kv_head, in_group, /*errors=*/true,
                                              error_scratch_[worker], vectors_[worker].data() + shape_.head_dim);
    heads.push_back({.norm = answer.norm, .squared_error = answer.squared_error});
  }
  SolveTarget(shape_, plan, GroupItemOf(plan), kv_head, heads.data());
}

void Decoder::WriteStatistics(const PlannedItem& plan) const {
  if (plan.item->statistics == nullptr) return;
  int64_t value_rows = 0;
  for (int64_t unit = 0; unit < plan.num_units(shape_); ++unit) {
    value_rows += partial_rows_.data()[plan.first_unit + unit];
  }
  for (int kv_head = 0; plan.draws_for_groups() && kv_head < shape_.num_kv_heads; ++kv_head) {
    value_rows += solutions_.data()[(&plan - plans_.data()) * shape_.num_kv_heads + kv_head].spent_rows;
  }
  std::optional<int64_t> features;
  if (plan.item->options.score_draws > 0) {
    const int32_t* of_item = num_features_.data() + (&plan - plans_.data()) * shape_.num_kv_heads;
    features = std::accumulate(of_item, of_item + shape_.num_kv_heads, int64_t{0});
  }
  *plan.item->statistics = MakeStatistics(cache_.layout(), *plan.item, value_rows, features);
}

}  // namespace santa::cpu
