#include "kernels/cpu/group_merge.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/sink.h"
#include "kernels/sampling/inclusion.h"
#include "kernels/sampling/standard_error.h"

namespace santa::cpu {
namespace {

// The larger; NaN if one is.
float NanMax(float a, float b) { return a > b || a != a ? a : b; }

// One head's numbers of GroupErrors over its units, each in units of exp(-its max): a factor brings them together.
struct ErrorTotals {
  void Add(const float* numbers, int head, float factor) {
    sums.t += numbers[0];
    sums.pairs += numbers[1];
    steps += factor * factor * numbers[2 + 2 * head];
    mass_steps += factor * factor * numbers[2 + 2 * head + 1];
  }

  // o = unit * merged. ratio: what a row adds is a - b o, else a; vector is then the sum of tau (step of b) (step of
  // a).
  double SquaredError(const float* merged, const float* vector, int dims, const GroupAnswer& answer, bool ratio) {
    double all = steps;
    if (ratio) {
      double cross = 0;  // o . vector
      for (int d = 0; d < dims; ++d) cross += answer.unit * merged[d] * vector[d];
      all += answer.norm * mass_steps - 2 * cross;
    }
    // Rounding may leave less than nothing.
    sums.steps = static_cast<float>(answer.unit * answer.unit * (all < 0 ? 0 : all));
    return sampling::SquaredError(sums);
  }

  sampling::StepSums sums;
  double steps = 0;
  double mass_steps = 0;
};

// One head's units, in the order of their splits, and what they refer to.
struct HeadUnits {
  HeadUnits(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head, int in_group)
      : shape(context.shape), item(item), in_group(in_group), count(plan.num_splits), first(kv_head * count) {
    corrected = item.corrects() && item.corrected[kv_head * shape.group + in_group];
    // COORDINATED's weights are probabilities already.
    ratio = plan.method == Method::kSketched;
    const float of_all = item.lse[kv_head * shape.group + in_group];
    max = ratio ? -std::numeric_limits<float>::infinity() : of_all;
    for (int64_t split = 0; ratio && split < count; ++split) {
      if (has_rows(split)) max = NanMax(max, partial(split).max[in_group]);
      if (corrected) max = NanMax(max, sketch(split).max[in_group]);
    }
  }

  Partial partial(int64_t split) const { return item.partial(shape, first + split); }
  Partial sketch(int64_t split) const { return item.sketch(shape, first + split); }
  bool has_rows(int64_t split) const { return *partial(split).rows > 0; }
  // Of what a unit has, in units of the head's largest.
  float factor(const Partial& of_unit) const { return ratio ? std::exp(of_unit.max[in_group] - max) : 1; }

  double RowMass() const {
    double mass = 0;
    for (int64_t split = 0; split < count; ++split) {
      if (has_rows(split)) mass += factor(partial(split)) * partial(split).sum[in_group];
    }
    return mass;
  }
  double SketchMass() const {
    double mass = 0;
    for (int64_t split = 0; corrected && split < count; ++split) {
      mass += factor(sketch(split)) * sketch(split).sum[in_group];
    }
    return mass;
  }
  int64_t rows() const {
    int64_t rows = 0;
    for (int64_t split = 0; split < count; ++split) rows += *partial(split).rows;
    return rows;
  }

  const DecodeShape& shape;
  const GroupItem& item;
  const int in_group;
  const int64_t count;
  const int64_t first;  // unit
  bool corrected;       // goes by the value sketch
  bool ratio;
  float max;
};

}  // namespace

GroupAnswer MergeGroupHead(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head,
                           int in_group, bool errors, std::vector<float>& scratch, float* merged) {
  const HeadUnits units(context, plan, item, kv_head, in_group);
  const int dims = context.shape.padded_dim;
  const int64_t head = int64_t{kv_head} * context.shape.group + in_group;
  scratch.assign(static_cast<size_t>(dims), 0.0f);
  ErrorTotals totals;
  std::fill_n(merged, dims, 0.0f);
  for (int64_t split = 0; split < units.count; ++split) {
    const auto add = [&](float* sums, const float* packed, float factor) {
      context.kernels.add_scaled(sums, packed + int64_t{in_group} * dims, factor, dims);
    };
    if (units.corrected) add(merged, units.sketch(split).output, units.factor(units.sketch(split)));
    if (!units.has_rows(split)) continue;
    const float factor = units.factor(units.partial(split));
    add(merged, units.partial(split).output, factor);
    if (!errors) continue;
    const GroupErrors of_unit = item.errors(context.shape, units.first + split);
    totals.Add(of_unit.numbers, in_group, factor);
    if (units.ratio) add(scratch.data(), of_unit.vectors, factor * factor);
  }
  // Without a row, nor a sketch to stand for all, there is no telling but by what chose none.
  const bool unread = units.rows() == 0;
  const bool none = units.ratio && unread && !units.corrected;
  const double of_tokens =
      none || !units.ratio ? item.lse[head] : units.max + std::log(units.SketchMass() + units.RowMass());
  const WithSink all(*plan.item, head, of_tokens);
  GroupAnswer answer = {.lse = all.lse, .unit = none ? 0 : units.ratio ? std::exp(units.max - all.lse) : all.share};
  if (!errors) return answer;
  for (int d = 0; d < dims; ++d) answer.norm += std::pow(answer.unit * merged[d], 2);
  answer.squared_error = unread ? std::numeric_limits<double>::quiet_NaN()
                                : totals.SquaredError(merged, scratch.data(), dims, answer, units.ratio);
  return answer;
}

void CheckSketches(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head) {
  item.solution[kv_head].reads_again = false;
  for (int in_group = 0; in_group < context.shape.group; ++in_group) {
    const HeadUnits units(context, plan, item, kv_head, in_group);
    if (!units.corrected) continue;
    const double of_sketch = units.SketchMass();
    if (!(of_sketch + units.RowMass() < sampling::kLeastCorrectedMass * of_sketch)) continue;
    item.corrected[kv_head * context.shape.group + in_group] = false;
    item.solution[kv_head].reads_again = true;
  }
}

}  // namespace santa::cpu
