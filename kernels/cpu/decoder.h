// Decode attention over a KvCache: plans the work, runs its steps on the pool's threads, merges.
#ifndef SANTA_KERNELS_CPU_DECODER_H_
#define SANTA_KERNELS_CPU_DECODER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/decode_plan.h"
#include "kernels/cpu/group_draw.h"
#include "kernels/cpu/group_merge.h"
#include "kernels/cpu/group_rows.h"
#include "kernels/cpu/grow_buffer.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/stored_scores.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/unit.h"

namespace santa::cpu {

// Not thread safe. Scratch grows to the largest call seen, to about kWaveBytes and what one item needs.
class Decoder {
 public:
  // Items of a call are taken in waves whose partials and stored scores fit in this.
  static constexpr int64_t kWaveBytes = int64_t{64} << 20;

  // `cache` and `pool` must outlive it. min_shared_bytes: as in CpuBackendOptions.
  Decoder(const KvCache& cache, ThreadPool& pool, int64_t min_shared_bytes);

  void Decode(std::span<const DecodeItem> items);

  const char* target() const { return kernels_.target; }

 private:
  // Where units begin: one, or a group of neighbouring heads.
  struct UnitPlace {
    int32_t item;  // of the wave
    int32_t kv_head;
    int32_t num_heads;
    int32_t split;
  };

  int64_t PlanWave(std::span<const DecodeItem> items);
  int64_t WaveKvBytes() const;
  void PackQueries();
  void PackAllFeatures();
  void GroupUnits();
  void RunGroups();
  void RunStored();
  void RunGroupDraws();
  void Merge(const PlannedItem& plan, int kv_head, int worker);
  float ErrorOf(const PlannedItem& plan, const sampling::StepSums& errors, const float* merged) const;
  void MergeGroup(const PlannedItem& plan, int kv_head, int worker);
  void AimAtTarget(const PlannedItem& plan, int kv_head, int worker);
  void WriteOutput(const PlannedItem& plan, int64_t head, float factor, int worker);
  void WriteStatistics(const PlannedItem& plan) const;

  Unit UnitAt(const PlannedItem& plan, int kv_head, int64_t split, int worker);
  StoredItem StoredItemOf(const PlannedItem& plan) const;
  GroupItem GroupItemOf(const PlannedItem& plan) const;
  GroupUnit GroupUnitOf(const Unit& unit, const GroupItem& item) const;
  int64_t FirstBlockNumber(const Unit& unit) const;
  int64_t FirstGroupBlockNumber(const Unit& unit) const;  // of block_max_ and its like
  BlockArrays BlockArraysAt(int64_t block) const;
  Partial PartialAt(int64_t unit) const;
  Partial PartialOf(const PlannedItem& plan, int kv_head, int64_t split) const;
  // Whether sketches of values take part in the answer.
  bool SketchesValues(const PlannedItem& plan) const;
  int64_t ItemBytes(const PlannedItem& plan) const;
  template <typename Predicate, typename Step>
  void ForStoredUnits(Predicate predicate, Step step);
  template <typename Step>
  void ForGroupUnits(Step step);
  template <typename Step>
  void ForGroups(Step step);
  template <typename ForUnits, typename ForHeads>
  void DrawForGroups(ForUnits for_units, ForHeads for_heads);
  template <typename ForUnits, typename ForHeads, typename Predicate>
  void ReadGroups(ForUnits for_units, ForHeads for_heads, Predicate chosen);

  const KvCache& cache_;
  ThreadPool& pool_;
  const int64_t min_shared_bytes_;
  const RowKernels& kernels_;
  const SketchScorer score_sketch_;
  const DecodeShape shape_;
  const DecodeContext context_;

  std::vector<PlannedItem> plans_;  // of the wave
  std::vector<UnitPlace> units_;
  std::vector<UnitPlace> groups_;
  // Of draws for groups: whether a thread takes a head through all steps, with blocks of its own for the longest
  // head's; and where their blocks begin, behind those of stored scores.
  bool whole_heads_ = false;
  int64_t head_blocks_ = 0;
  int64_t first_group_block_ = 0;
  GrowBuffer<float> queries_;          // packed, [item][H][padded_dim]; or of features, [item][H_kv][G * padded_dim]
  GrowBuffer<uint16_t> bf16_queries_;  // of items with plan.bf16_queries
  GrowBuffer<float> plain_queries_;    // [item][H][D], of items with SKETCHED
  GrowBuffer<int32_t> features_;       // of feature-major keys, [item][H_kv][D]
  GrowBuffer<int32_t> num_features_;   // [item][H_kv]
  // [unit]
  GrowBuffer<float> partial_max_;
  GrowBuffer<float> partial_sum_;
  GrowBuffer<float> partial_output_;
  GrowBuffer<int32_t> partial_rows_;
  GrowBuffer<sampling::StepSums> partial_errors_;
  GrowBuffer<uint64_t> unit_masses_;
  GrowBuffer<uint32_t> histograms_;
  GrowBuffer<float> spreads_;
  GrowBuffer<float> error_numbers_;
  GrowBuffer<float> error_vectors_;
  GrowBuffer<float> sketch_max_;
  GrowBuffer<float> sketch_sum_;
  GrowBuffer<float> sketch_output_;
  // [block]
  GrowBuffer<float> scores_;
  GrowBuffer<uint64_t> group_masses_;
  // [block of draws for groups]
  GrowBuffer<HeadVector> block_max_;
  GrowBuffer<float> squares_;
  GrowBuffer<uint32_t> inclusions_;
  // [item] ...
  GrowBuffer<TileRecord> tiles_;
  GrowBuffer<uint64_t> draws_;
  GrowBuffer<uint64_t> totals_;
  GrowBuffer<float> group_lse_;
  GrowBuffer<GroupSolution> solutions_;
  GrowBuffer<bool> corrected_;
  // [worker]
  std::vector<WorkerScratch> scratch_;
  std::vector<BudgetScratch> budget_scratch_;
  std::vector<FeatureScratch> feature_scratch_;
  std::vector<ReadScratch> read_scratch_;
  std::vector<std::vector<Unit>> group_scratch_;
  std::vector<std::vector<GroupUnit>> run_scratch_;
  std::vector<std::vector<BlockArrays>> first_scratch_;
  std::vector<std::vector<float>> error_scratch_;
  std::vector<std::vector<float>> vectors_;  // a query or output in fp32, and a merged output
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_DECODER_H_
