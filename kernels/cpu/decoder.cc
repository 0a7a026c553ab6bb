#include "kernels/cpu/decoder.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/convert.h"

namespace santa::cpu {

Decoder::Decoder(const KvCache& cache, ThreadPool& pool)
    : cache_(cache),
      pool_(pool),
      kernels_(GetRowKernels(cache.layout().dtype)),
      shape_(DecodeShape::Of(cache.layout(), kernels_)),
      context_{cache_, kernels_, shape_},
      scratch_(pool.num_threads()),
      budget_scratch_(pool.num_threads()),
      group_scratch_(pool.num_threads()),
      first_scratch_(pool.num_threads()),
      vectors_(pool.num_threads()) {
  for (std::vector<float>& vector : vectors_) vector.resize(shape_.head_dim + shape_.padded_dim);
}

void Decoder::Decode(std::span<const DecodeItem> items) {
  while (!items.empty()) {
    items = items.subspan(PlanWave(items));
    PackQueries();
    GroupUnits();
    RunGroups();
    RunStored();
    pool_.ParallelFor(static_cast<int64_t>(plans_.size()) * shape_.num_kv_heads, [this](int64_t index, int worker) {
      Merge(plans_[index / shape_.num_kv_heads], static_cast<int>(index % shape_.num_kv_heads), worker);
    });
    for (const PlannedItem& plan : plans_) WriteStatistics(plan);
  }
}

int64_t Decoder::ItemBytes(const PlannedItem& plan) const {
  const int64_t units = plan.num_units(shape_);
  int64_t bytes = units * shape_.group * shape_.padded_dim * static_cast<int64_t>(sizeof(float));
  if (plan.stores_scores()) {
    bytes += units * plan.blocks_per_split() *
             (BlockArrays::ScoresSize(shape_) * static_cast<int64_t>(sizeof(float)) +
              BlockArrays::GroupsSize(shape_) * static_cast<int64_t>(sizeof(uint64_t)));
  }
  return bytes;
}

// Takes as many of the items as fit, at least one; returns how many.
int64_t Decoder::PlanWave(std::span<const DecodeItem> items) {
  plans_.clear();
  units_.clear();
  const int64_t heads = static_cast<int64_t>(shape_.num_kv_heads) * shape_.group;
  int64_t bytes = 0;
  int64_t blocks = 0;
  int64_t tiles = 0;
  int64_t draws = 0;
  for (const DecodeItem& item : items) {
    PlannedItem plan = PlanItem(item, shape_);
    bytes += ItemBytes(plan);
    if (!plans_.empty() && bytes > kWaveBytes) break;
    plan.first_unit = static_cast<int64_t>(units_.size());
    plan.first_block = blocks;
    plan.first_tile = tiles;
    plan.first_draw = draws;
    for (int32_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
      for (int32_t split = 0; split < plan.num_splits; ++split) {
        units_.push_back({static_cast<int32_t>(plans_.size()), kv_head, 1, split});
      }
    }
    if (plan.stores_scores()) blocks += plan.num_units(shape_) * plan.blocks_per_split();
    if (plan.method == Method::kS2antaProp) tiles += heads * plan.tiling.count;
    if (plan.method == Method::kSanta) draws += heads * item.options.sample_count;
    plans_.push_back(plan);
  }
  const auto units = static_cast<int64_t>(units_.size());
  queries_.AtLeast(plans_.size() * heads * shape_.padded_dim);
  if (kernels_.pack_bf16 != nullptr) bf16_queries_.AtLeast(plans_.size() * heads * shape_.padded_dim);
  partial_max_.AtLeast(units * shape_.group);
  partial_sum_.AtLeast(units * shape_.group);
  partial_output_.AtLeast(units * shape_.group * shape_.padded_dim);
  partial_rows_.AtLeast(units);
  unit_masses_.AtLeast(units * shape_.group);
  scores_.AtLeast(blocks * BlockArrays::ScoresSize(shape_));
  group_masses_.AtLeast(blocks * BlockArrays::GroupsSize(shape_));
  tiles_.AtLeast(tiles);
  draws_.AtLeast(draws);
  totals_.AtLeast(plans_.size() * heads);
  return static_cast<int64_t>(plans_.size());
}

void Decoder::PackQueries() {
  const int64_t heads = static_cast<int64_t>(shape_.num_kv_heads) * shape_.group;
  float* query = vectors_[0].data();
  float* packed = queries_.data();
  uint16_t* packed_bf16 = bf16_queries_.data();
  for (PlannedItem& plan : plans_) {
    const DecodeItem& item = *plan.item;
    // For all heads or none: what a head's answer is made with depends on the item and the machine, nothing else.
    plan.bf16_queries = kernels_.pack_bf16 != nullptr;
    for (int64_t head = 0; head < heads; ++head, packed += shape_.padded_dim) {
      const size_t offset = static_cast<size_t>(head) * shape_.head_dim * SizeOf(item.io_dtype);
      Convert(item.io_dtype, static_cast<const uint8_t*>(item.q) + offset, DType::kFloat32, query, shape_.head_dim);
      kernels_.pack(query, shape_.head_dim, packed);
      plan.bf16_queries = plan.bf16_queries && kernels_.pack_bf16(query, shape_.head_dim, packed_bf16);
      packed_bf16 += shape_.padded_dim;
    }
  }
}

Partial Decoder::PartialAt(int64_t unit) const {
  return {partial_max_.data() + unit * shape_.group, partial_sum_.data() + unit * shape_.group,
          partial_output_.data() + unit * shape_.group * shape_.padded_dim, partial_rows_.data() + unit};
}

Unit Decoder::UnitAt(const PlannedItem& plan, int kv_head, int64_t split, int worker) {
  const int64_t first_query =
      ((&plan - plans_.data()) * shape_.num_kv_heads + kv_head) * shape_.group * shape_.padded_dim;
  return {.context = context_,
          .plan = plan,
          .kv_head = kv_head,
          .split = split,
          .queries = queries_.data() + first_query,
          .bf16_queries = plan.bf16_queries ? bf16_queries_.data() + first_query : nullptr,
          .partial = PartialAt(plan.first_unit + kv_head * plan.num_splits + split),
          .scratch = scratch_[worker]};
}

StoredItem Decoder::StoredItemOf(const PlannedItem& plan) const {
  const int64_t heads = static_cast<int64_t>(shape_.num_kv_heads) * shape_.group;
  return {.tiles = tiles_.data() + plan.first_tile,
          .draws = draws_.data() + plan.first_draw,
          .unit_masses = unit_masses_.data() + plan.first_unit * shape_.group,
          .totals = totals_.data() + (&plan - plans_.data()) * heads,
          .first_partial = PartialAt(plan.first_unit)};
}

BlockArrays Decoder::FirstBlockOf(const Unit& unit) const {
  const int64_t unit_in_item = unit.kv_head * unit.plan.num_splits + unit.split;
  const int64_t block = unit.plan.first_block + unit_in_item * unit.plan.blocks_per_split();
  return {scores_.data() + block * BlockArrays::ScoresSize(shape_),
          group_masses_.data() + block * BlockArrays::GroupsSize(shape_)};
}

template <typename Predicate, typename Step>
void Decoder::ForStoredUnits(Predicate predicate, Step step) {
  pool_.ParallelFor(static_cast<int64_t>(units_.size()), [&](int64_t index, int worker) {
    const UnitPlace& place = units_[index];
    const PlannedItem& plan = plans_[place.item];
    if (!predicate(plan)) return;
    const Unit unit = UnitAt(plan, place.kv_head, place.split, worker);
    const StoredItem item = StoredItemOf(plan);
    step(StoredUnit{unit, item, FirstBlockOf(unit)});
  });
}

// As many heads a group as leave every thread a few groups.
void Decoder::GroupUnits() {
  constexpr int64_t kMaxHeads = 8;
  constexpr int64_t kGroupsPerThread = 4;
  const int64_t heads =
      std::clamp<int64_t>(static_cast<int64_t>(units_.size()) / (kGroupsPerThread * pool_.num_threads()), 1,
                          std::min<int64_t>(kMaxHeads, shape_.num_kv_heads));
  groups_.clear();
  for (const PlannedItem& plan : plans_) {
    const auto item = static_cast<int32_t>(&plan - plans_.data());
    for (int32_t split = 0; split < plan.num_splits; ++split) {
      for (int64_t head = 0; head < shape_.num_kv_heads; head += heads) {
        groups_.push_back({item, static_cast<int32_t>(head),
                           static_cast<int32_t>(std::min(heads, shape_.num_kv_heads - head)), split});
      }
    }
  }
}

// The first step of every method; the only one of EXACT and S2ANTA_FLASH.
void Decoder::RunGroups() {
  pool_.ParallelFor(static_cast<int64_t>(groups_.size()), [this](int64_t index, int worker) {
    const UnitPlace& place = groups_[index];
    const PlannedItem& plan = plans_[place.item];
    std::vector<Unit>& units = group_scratch_[worker];
    units.clear();
    for (int head = 0; head < place.num_heads; ++head) {
      units.push_back(UnitAt(plan, place.kv_head + head, place.split, worker));
    }
    if (plan.method == Method::kExact) return ExactUnits(units);
    if (plan.method == Method::kS2antaFlash) return FlashUnits(units);
    std::vector<BlockArrays>& first = first_scratch_[worker];
    first.clear();
    for (const Unit& unit : units) first.push_back(FirstBlockOf(unit));
    if (plan.method == Method::kS2antaProp) return StoreTiles(units, first.data(), StoredItemOf(plan));
    StoreScores(units, first.data());
  });
}

// The further steps of the methods that store scores.
void Decoder::RunStored() {
  const auto stores = [](const PlannedItem& plan) { return plan.stores_scores(); };
  const auto globally = [](const PlannedItem& plan) { return plan.draws_globally(); };
  if (std::none_of(plans_.begin(), plans_.end(), stores)) return;
  if (std::any_of(plans_.begin(), plans_.end(), globally)) ForStoredUnits(globally, WeighHeads);
  pool_.ParallelFor(static_cast<int64_t>(plans_.size()) * shape_.num_kv_heads, [this](int64_t index, int worker) {
    const PlannedItem& plan = plans_[index / shape_.num_kv_heads];
    const int kv_head = static_cast<int>(index % shape_.num_kv_heads);
    if (plan.draws_globally()) {
      PlaceDraws(context_, plan, StoredItemOf(plan), kv_head);
    } else if (plan.stores_scores()) {
      ShareBudgets(context_, plan, StoredItemOf(plan), kv_head, budget_scratch_[worker]);
    }
  });
  ForStoredUnits(stores, GatherDraws);
}

// Merges the partials of one key/value head, in the order of its splits.
void Decoder::Merge(const PlannedItem& plan, int kv_head, int worker) {
  const DecodeItem& item = *plan.item;
  float* output = vectors_[worker].data();
  float* merged = output + shape_.head_dim;
  const int64_t first_unit = plan.first_unit + kv_head * plan.num_splits;
  for (int in_group = 0; in_group < shape_.group; ++in_group) {
    const int64_t head = static_cast<int64_t>(kv_head) * shape_.group + in_group;
    const auto partial = [&](int64_t split) { return PartialAt(first_unit + split); };
    float max = partial(0).max[in_group];
    for (int64_t split = 1; split < plan.num_splits; ++split) max = std::max(max, partial(split).max[in_group]);
    float sum = 0;
    for (int64_t split = 0; split < plan.num_splits; ++split) {
      sum += std::exp(partial(split).max[in_group] - max) * partial(split).sum[in_group];
    }
    // With a sink beside the tokens: lse over both, and the tokens' share of the probability.
    double lse = max + std::log(static_cast<double>(sum));
    double share = 1;
    if (item.sink_logits != nullptr) {
      const double sink = item.sink_logits[head];
      const double largest = std::max(lse, sink);
      const double lse_with_sink = largest + std::log(std::exp(lse - largest) + std::exp(sink - largest));
      share = std::exp(lse - lse_with_sink);
      lse = lse_with_sink;
    }
    std::fill_n(merged, shape_.padded_dim, 0.0f);
    for (int64_t split = 0; split < plan.num_splits; ++split) {
      // Stored scores leave plain sums of the drawn rows, whatever the splits' maxima.
      const float factor = plan.stores_scores() ? 1.0f : std::exp(partial(split).max[in_group] - max);
      kernels_.add_scaled(merged, partial(split).output + static_cast<int64_t>(in_group) * shape_.padded_dim, factor,
                          shape_.padded_dim);
    }
    // A sum that is NaN, from a cache row that is, must show in a mean of drawn rows too.
    const double divisor = plan.stores_scores() ? item.options.sample_count + 0.0 * sum : sum;
    kernels_.unpack(merged, shape_.head_dim, static_cast<float>(share / divisor), output);
    Convert(DType::kFloat32, output, item.io_dtype,
            static_cast<uint8_t*>(item.o) + static_cast<size_t>(head) * shape_.head_dim * SizeOf(item.io_dtype),
            shape_.head_dim);
    item.lse[head] = static_cast<float>(lse);
  }
}

void Decoder::WriteStatistics(const PlannedItem& plan) const {
  if (plan.item->statistics == nullptr) return;
  const auto row_bytes = static_cast<int64_t>(cache_.layout().row_bytes());
  const int64_t key_rows = plan.visible() * shape_.num_kv_heads;
  int64_t value_rows = 0;
  for (int64_t unit = 0; unit < plan.num_units(shape_); ++unit) {
    value_rows += partial_rows_.data()[plan.first_unit + unit];
  }
  *plan.item->statistics = {.visible_tokens = plan.visible(),
                            .value_rows_read = value_rows,
                            .kv_bytes_read = (key_rows + value_rows) * row_bytes,
                            .dense_kv_bytes = 2 * key_rows * row_bytes};
}

}  // namespace santa::cpu
