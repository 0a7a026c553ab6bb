#include "kernels/cpu/decoder.h"

#include <algorithm>

#include "kernels/cpu/convert.h"

namespace santa::cpu {
namespace {

constexpr int64_t kHeadsPerThread = 4;  // that each thread takes whole, at least: fewer leave too much to chance

}  // namespace

Decoder::Decoder(const KvCache& cache, ThreadPool& pool, int64_t min_shared_bytes)
    : cache_(cache),
      pool_(pool),
      min_shared_bytes_(min_shared_bytes),
      kernels_(GetRowKernels(cache.layout().dtype)),
      score_sketch_(GetSketchScorer()),
      shape_(DecodeShape::Of(cache.layout(), kernels_)),
      context_{cache_, kernels_, shape_},
      scratch_(pool.num_threads()),
      budget_scratch_(pool.num_threads()),
      feature_scratch_(pool.num_threads()),
      read_scratch_(pool.num_threads()),
      group_scratch_(pool.num_threads()),
      run_scratch_(pool.num_threads()),
      first_scratch_(pool.num_threads()),
      error_scratch_(pool.num_threads()),
      vectors_(pool.num_threads()) {
  for (std::vector<float>& vector : vectors_) vector.resize(shape_.head_dim + shape_.padded_dim);
}

void Decoder::Decode(std::span<const DecodeItem> items) {
  while (!items.empty()) {
    items = items.subspan(PlanWave(items));
    pool_.ShareLoops(WaveKvBytes() >= min_shared_bytes_);
    if (cache_.layout().key_order == KeyOrder::kFeatureMajor) {
      PackAllFeatures();
    } else {
      PackQueries();
    }
    GroupUnits();
    RunGroups();
    RunStored();
    RunGroupDraws();
    pool_.ParallelFor(static_cast<int64_t>(plans_.size()) * shape_.num_kv_heads, [this](int64_t index, int worker) {
      Merge(plans_[index / shape_.num_kv_heads], static_cast<int>(index % shape_.num_kv_heads), worker);
    });
    for (const PlannedItem& plan : plans_) WriteStatistics(plan);
  }
  pool_.ShareLoops(true);
}

int64_t Decoder::WaveKvBytes() const {
  int64_t rows = 0;
  for (const PlannedItem& plan : plans_) rows += 2 * plan.visible() * shape_.num_kv_heads;
  return rows * static_cast<int64_t>(cache_.layout().row_bytes());
}

bool Decoder::SketchesValues(const PlannedItem& plan) const {
  return plan.method == Method::kSketched && ValueBits(cache_.layout().sketch) > 0;
}

int64_t Decoder::ItemBytes(const PlannedItem& plan) const {
  const int64_t units = plan.num_units(shape_);
  int64_t bytes = units * shape_.group * shape_.padded_dim * static_cast<int64_t>(sizeof(float));
  if (plan.draws_for_groups()) {
    bytes += units * (3 * shape_.group * shape_.padded_dim * static_cast<int64_t>(sizeof(float)) +
                      sampling::kInclusionBins * static_cast<int64_t>(sizeof(uint32_t)) +
                      plan.blocks_per_split() * kScoreRows * static_cast<int64_t>(2 * sizeof(float)));
    if (plan.has_target()) {
      bytes += units * shape_.group * sampling::kInclusionBins * static_cast<int64_t>(sizeof(float));
    }
    if (SketchesValues(plan)) bytes += units * shape_.group * shape_.padded_dim * static_cast<int64_t>(sizeof(float));
  }
  if (plan.keeps_blocks()) {
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
  int64_t group_blocks = 0;
  head_blocks_ = 0;
  int64_t num_groups = 0;
  int64_t tiles = 0;
  int64_t draws = 0;
  bool has_target = false;
  bool sketches_values = false;
  for (const DecodeItem& item : items) {
    PlannedItem plan = PlanItem(item, shape_, cache_.layout().page_size);
    bytes += ItemBytes(plan);
    if (!plans_.empty() && bytes > kWaveBytes) break;
    plan.first_unit = static_cast<int64_t>(units_.size());
    plan.first_block = plan.draws_for_groups() ? group_blocks : blocks;
    plan.first_tile = tiles;
    plan.first_draw = draws;
    for (int32_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
      for (int32_t split = 0; split < plan.num_splits; ++split) {
        units_.push_back({static_cast<int32_t>(plans_.size()), kv_head, 1, split});
      }
    }
    if (plan.stores_scores()) blocks += plan.num_units(shape_) * plan.blocks_per_split();
    if (plan.draws_for_groups()) {
      group_blocks += plan.num_units(shape_) * plan.blocks_per_split();
      head_blocks_ = std::max(head_blocks_, plan.num_splits * plan.blocks_per_split());
      num_groups += shape_.num_kv_heads;
    }
    has_target = has_target || plan.has_target();
    sketches_values = sketches_values || SketchesValues(plan);
    if (plan.method == Method::kS2antaProp) tiles += heads * plan.tiling.count;
    if (plan.method == Method::kSanta) draws += heads * item.options.sample_count;
    plans_.push_back(plan);
  }
  whole_heads_ = num_groups >= kHeadsPerThread * pool_.num_threads();
  if (whole_heads_) group_blocks = head_blocks_ * pool_.num_threads();
  first_group_block_ = blocks;
  blocks += group_blocks;
  const auto units = static_cast<int64_t>(units_.size());
  queries_.AtLeast(plans_.size() * heads * shape_.padded_dim);
  if (cache_.layout().key_order == KeyOrder::kFeatureMajor) {
    features_.AtLeast(plans_.size() * shape_.num_kv_heads * shape_.head_dim);
    num_features_.AtLeast(plans_.size() * shape_.num_kv_heads);
  }
  if (kernels_.pack_bf16 != nullptr) bf16_queries_.AtLeast(plans_.size() * heads * shape_.padded_dim);
  partial_max_.AtLeast(units * shape_.group);
  partial_sum_.AtLeast(units * shape_.group);
  partial_output_.AtLeast(units * shape_.group * shape_.padded_dim);
  partial_rows_.AtLeast(units);
  partial_errors_.AtLeast(units * shape_.group);
  unit_masses_.AtLeast(units * shape_.group);
  scores_.AtLeast(blocks * BlockArrays::ScoresSize(shape_));
  group_masses_.AtLeast(blocks * BlockArrays::GroupsSize(shape_));
  tiles_.AtLeast(tiles);
  draws_.AtLeast(draws);
  totals_.AtLeast(plans_.size() * heads);
  if (num_groups > 0) {
    plain_queries_.AtLeast(plans_.size() * heads * shape_.head_dim);
    block_max_.AtLeast(group_blocks * shape_.num_chunks);
    squares_.AtLeast(group_blocks * kScoreRows);
    inclusions_.AtLeast(group_blocks * kScoreRows);
    if (has_target) spreads_.AtLeast(units * shape_.group * sampling::kInclusionBins);
    histograms_.AtLeast(units * sampling::kInclusionBins);
    error_numbers_.AtLeast(units * GroupErrors::NumbersSize(shape_));
    error_vectors_.AtLeast(units * GroupErrors::VectorsSize(shape_));
    group_lse_.AtLeast(plans_.size() * heads);
    if (sketches_values) {
      sketch_max_.AtLeast(units * shape_.group);
      sketch_sum_.AtLeast(units * shape_.group);
      sketch_output_.AtLeast(units * shape_.group * shape_.padded_dim);
      corrected_.AtLeast(plans_.size() * heads);
    }
    solutions_.AtLeast(plans_.size() * shape_.num_kv_heads);
  }
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
      if (plan.method == Method::kSketched) {
        std::copy_n(query, shape_.head_dim,
                    plain_queries_.data() + ((&plan - plans_.data()) * heads + head) * shape_.head_dim);
      }
      plan.bf16_queries = plan.bf16_queries && kernels_.pack_bf16(query, shape_.head_dim, packed_bf16);
      packed_bf16 += shape_.padded_dim;
    }
  }
}

void Decoder::PackAllFeatures() {
  const int64_t size = static_cast<int64_t>(shape_.group) * shape_.padded_dim;
  pool_.ParallelFor(static_cast<int64_t>(plans_.size()) * shape_.num_kv_heads, [&](int64_t index, int worker) {
    num_features_.data()[index] = PackFeatures(
        *plans_[index / shape_.num_kv_heads].item, shape_, static_cast<int>(index % shape_.num_kv_heads),
        feature_scratch_[worker], features_.data() + index * shape_.head_dim, queries_.data() + index * size);
  });
}

Partial Decoder::PartialAt(int64_t unit) const {
  return Partial{partial_max_.data(), partial_sum_.data(), partial_output_.data(), partial_rows_.data()}.Next(shape_,
                                                                                                              unit);
}

Partial Decoder::PartialOf(const PlannedItem& plan, int kv_head, int64_t split) const {
  Partial first = PartialAt(plan.first_unit);
  const bool for_heads = plan.stores_scores() || plan.method == Method::kS2antaFlash;
  if (for_heads && plan.tells_errors) first.errors = partial_errors_.data() + plan.first_unit * shape_.group;
  return first.Next(shape_, kv_head * plan.num_splits + split);
}

Unit Decoder::UnitAt(const PlannedItem& plan, int kv_head, int64_t split, int worker) {
  const int64_t group = (&plan - plans_.data()) * shape_.num_kv_heads + kv_head;
  const int64_t first_query = group * shape_.group * shape_.padded_dim;
  FeatureList features;
  if (cache_.layout().key_order == KeyOrder::kFeatureMajor) {
    features = {features_.data() + group * shape_.head_dim, num_features_.data()[group]};
  }
  return {.context = context_,
          .plan = plan,
          .kv_head = kv_head,
          .split = split,
          .queries = queries_.data() + first_query,
          .bf16_queries = plan.bf16_queries ? bf16_queries_.data() + first_query : nullptr,
          .features = features,
          .partial = PartialOf(plan, kv_head, split),
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

int64_t Decoder::FirstBlockNumber(const Unit& unit) const {
  const int64_t unit_in_item = unit.kv_head * unit.plan.num_splits + unit.split;
  return unit.plan.first_block + unit_in_item * unit.plan.blocks_per_split();
}

int64_t Decoder::FirstGroupBlockNumber(const Unit& unit) const {
  if (!whole_heads_) return FirstBlockNumber(unit);
  return (&unit.scratch - scratch_.data()) * head_blocks_ + unit.split * unit.plan.blocks_per_split();
}

GroupItem Decoder::GroupItemOf(const PlannedItem& plan) const {
  const int64_t first_head = (&plan - plans_.data()) * shape_.num_kv_heads * shape_.group;
  GroupItem item = {.lse = group_lse_.data() + first_head,
                    .solution = solutions_.data() + (&plan - plans_.data()) * shape_.num_kv_heads,
                    .histograms = histograms_.data() + plan.first_unit * sampling::kInclusionBins,
                    .runs_per_head = whole_heads_ ? 1 : plan.num_splits,
                    .spreads = plan.has_target()
                                   ? spreads_.data() + plan.first_unit * shape_.group * sampling::kInclusionBins
                                   : nullptr,
                    .totals = unit_masses_.data() + plan.first_unit,
                    .first_partial = PartialAt(plan.first_unit)};
  if (plan.tells_errors || plan.has_target()) {
    item.first_errors = {error_numbers_.data() + plan.first_unit * GroupErrors::NumbersSize(shape_),
                         error_vectors_.data() + plan.first_unit * GroupErrors::VectorsSize(shape_)};
  }
  if (SketchesValues(plan)) {
    item.first_sketch =
        Partial{sketch_max_.data(), sketch_sum_.data(), sketch_output_.data(), nullptr}.Next(shape_, plan.first_unit);
    item.corrected = corrected_.data() + first_head;
  }
  return item;
}

GroupUnit Decoder::GroupUnitOf(const Unit& unit, const GroupItem& item) const {
  const int64_t block = FirstGroupBlockNumber(unit);
  const int64_t heads = static_cast<int64_t>(shape_.num_kv_heads) * shape_.group;
  return {
      .unit = unit,
      .item = item,
      .first = BlockArraysAt(first_group_block_ + block),
      .block_max = block_max_.data() + block * shape_.num_chunks,
      .squares = squares_.data() + block * kScoreRows,
      .inclusions = inclusions_.data() + block * kScoreRows,
      .queries = plain_queries_.data() + ((&unit.plan - plans_.data()) * heads + unit.first_head()) * shape_.head_dim,
      .score_sketch = score_sketch_};
}

BlockArrays Decoder::BlockArraysAt(int64_t block) const {
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
    step(StoredUnit{unit, item, BlockArraysAt(FirstBlockNumber(unit))});
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

// The first step of the methods that draw for each head, and of EXACT, which takes no other; as S2ANTA_FLASH.
void Decoder::RunGroups() {
  pool_.ParallelFor(static_cast<int64_t>(groups_.size()), [this](int64_t index, int worker) {
    const UnitPlace& place = groups_[index];
    const PlannedItem& plan = plans_[place.item];
    if (plan.draws_for_groups()) return;
    std::vector<Unit>& units = group_scratch_[worker];
    units.clear();
    for (int head = 0; head < place.num_heads; ++head) {
      units.push_back(UnitAt(plan, place.kv_head + head, place.split, worker));
    }
    if (plan.method == Method::kExact) return ExactUnits(units);
    if (plan.method == Method::kS2antaFlash) return FlashUnits(units);
    std::vector<BlockArrays>& first = first_scratch_[worker];
    first.clear();
    for (const Unit& unit : units) first.push_back(BlockArraysAt(FirstBlockNumber(unit)));
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

// step(run of units, worker) for the units of the plans that draw for groups, one by one.
template <typename Step>
void Decoder::ForGroupUnits(Step step) {
  pool_.ParallelFor(static_cast<int64_t>(units_.size()), [&](int64_t index, int worker) {
    const UnitPlace& place = units_[index];
    const PlannedItem& plan = plans_[place.item];
    if (!plan.draws_for_groups()) return;
    const Unit unit = UnitAt(plan, place.kv_head, place.split, worker);
    const GroupItem item = GroupItemOf(plan);
    const GroupUnit group = GroupUnitOf(unit, item);
    step(GroupRun(&group, 1), worker);
  });
}

// step(plan, item, key/value head, worker) for each head of the plans that draw for groups.
template <typename Step>
void Decoder::ForGroups(Step step) {
  pool_.ParallelFor(static_cast<int64_t>(plans_.size()) * shape_.num_kv_heads, [&](int64_t index, int worker) {
    const PlannedItem& plan = plans_[index / shape_.num_kv_heads];
    if (!plan.draws_for_groups()) return;
    step(plan, GroupItemOf(plan), static_cast<int>(index % shape_.num_kv_heads), worker);
  });
}

// The methods that draw for groups. With heads enough for all threads, each takes a head through all steps: what one
// step leaves for the next stays in its caches, and threads do not wait for one another. Else each step is shared.
void Decoder::RunGroupDraws() {
  if (std::none_of(plans_.begin(), plans_.end(), [](const PlannedItem& plan) { return plan.draws_for_groups(); })) {
    return;
  }
  if (!whole_heads_) {
    return DrawForGroups([this](auto step) { ForGroupUnits(step); }, [this](auto step) { ForGroups(step); });
  }
  ForGroups([this](const PlannedItem& plan, const GroupItem& item, int kv_head, int worker) {
    std::vector<Unit>& units = group_scratch_[worker];
    std::vector<GroupUnit>& groups = run_scratch_[worker];
    units.clear();
    groups.clear();
    for (int64_t split = 0; split < plan.num_splits; ++split) units.push_back(UnitAt(plan, kv_head, split, worker));
    for (const Unit& unit : units) groups.push_back(GroupUnitOf(unit, item));
    DrawForGroups([&](auto step) { step(GroupRun(groups), worker); },
                  [&](auto step) { step(plan, item, kv_head, worker); });
  });
}

// The steps, each for all units or all heads before the next.
template <typename ForUnits, typename ForHeads>
void Decoder::DrawForGroups(ForUnits for_units, ForHeads for_heads) {
  for_units([](GroupRun groups, int) { std::for_each(groups.begin(), groups.end(), WeighGroup); });
  for_heads([this](const PlannedItem& plan, const GroupItem& item, int kv_head, int) {
    FindMass(context_, plan, item, kv_head);
  });
  for_units([](GroupRun groups, int) { CountSquares(groups); });
  for_heads([](const PlannedItem& plan, const GroupItem& item, int kv_head, int) { SolveGroup(plan, item, kv_head); });
  ReadGroups(for_units, for_heads, [](const GroupUnit&) { return true; });
  if (std::none_of(plans_.begin(), plans_.end(), [](const PlannedItem& plan) { return plan.has_target(); })) return;
  for_heads([this](const PlannedItem& plan, const GroupItem&, int kv_head, int worker) {
    if (plan.has_target()) AimAtTarget(plan, kv_head, worker);
  });
  ReadGroups(for_units, for_heads,
             [](const GroupUnit& group) { return group.unit.plan.has_target() && !group.solution().done; });
}

// Draws and reads the rows of the heads that are chosen, by any of their units.
template <typename ForUnits, typename ForHeads, typename Predicate>
void Decoder::ReadGroups(ForUnits for_units, ForHeads for_heads, Predicate chosen) {
  for_units([&](GroupRun groups, int) {
    if (chosen(groups.front())) std::for_each(groups.begin(), groups.end(), Include);
  });
  for_units([&](GroupRun groups, int worker) {
    if (chosen(groups.front())) ReadRows(groups, read_scratch_[worker]);
  });
  if (std::none_of(plans_.begin(), plans_.end(), [this](const PlannedItem& plan) { return SketchesValues(plan); })) {
    return;
  }
  for_heads([this](const PlannedItem& plan, const GroupItem& item, int kv_head, int) {
    if (item.corrects()) CheckSketches(context_, plan, item, kv_head);
  });
  for_units([this](GroupRun groups, int worker) {
    const GroupUnit& group = groups.front();
    if (group.item.corrects() && group.solution().reads_again) ReadRows(groups, read_scratch_[worker]);
  });
}

}  // namespace santa::cpu
