// COORDINATED and SKETCHED: one draw of rows for all query heads of a key/value head (kernels/sampling/inclusion.h).
//
//     WeighGroup | FindMass | CountSquares | SolveGroup | Include | ReadRows
//
// and with a target error (kernels/sampling/target_error.h), of which that was the pilot,
//
//     SolveTarget | Include | ReadRows
//
// FindMass and SolveGroup are for a key/value head, the others for a unit; each step needs the one before to have
// finished for every unit of the item. Scores are kept in full, as weights against the largest score of their block:
// codes, which the definition counts in, would save memory that a CPU has.
#ifndef SANTA_KERNELS_CPU_GROUP_DRAW_H_
#define SANTA_KERNELS_CPU_GROUP_DRAW_H_

#include <cstdint>

#include "kernels/cpu/grow_buffer.h"
#include "kernels/cpu/unit.h"
#include "kernels/sampling/inclusion.h"

namespace santa::cpu {

// Of one key/value head of an item.
struct GroupSolution {
  int64_t rows = 0;  // that take part in the draw
  sampling::InclusionThreshold threshold;
  // With a target: the draw is the pilot; nothing is left to do; and the rows that a pilot read in vain.
  bool pilot = false;
  bool done = false;
  int64_t spent_rows = 0;
};

// What a unit's rows leave for the standard error (kernels/sampling/standard_error.h), in the units of its partial:
// t = 1 - pi, w the row's weight / pi. Numbers: t, t^2; then for each head of the group t w, t w^2, t w^2 |v|^2.
// Vectors: for each head the packed sums of t w v, and of t w^2 v.
struct GroupErrors {
  float* numbers;
  float* vectors;

  static int64_t NumbersSize(const DecodeShape& shape) { return 2 + 3 * int64_t{shape.group}; }
  static int64_t VectorsSize(const DecodeShape& shape) { return 2 * int64_t{shape.group} * shape.padded_dim; }
  float* first(const DecodeShape& shape, int head) const { return vectors + int64_t{head} * shape.padded_dim; }
  float* second(const DecodeShape& shape, int head) const { return first(shape, shape.group + head); }
};

// Arrays of one item that its units share.
struct GroupItem {
  float* lse;               // [H], natural, of all visible tokens as they were scored
  GroupSolution* solution;  // [kv_head]
  uint32_t* histograms;     // [unit][kInclusionBins]
  float* spreads;           // [unit][G][kInclusionBins], of a head's p^2; null without a target
  uint64_t* totals;         // [unit], the sum of its inclusions
  Partial first_partial;    // of unit (0, 0); the others follow
};

struct GroupUnit {
  const Unit& unit;
  const GroupItem& item;
  BlockArrays first;      // weights, of the unit's first block
  HeadVector* block_max;  // [block][chunk]
  float* squares;         // [block][kScoreRows]: a^2
  uint32_t* inclusions;   // [block][kScoreRows]
  const float* queries;   // [G][D], as they are; of SKETCHED
  SketchScorer score_sketch;
  GroupErrors errors;  // null where they are not asked for

  int64_t index() const { return unit.kv_head * unit.plan.num_splits + unit.split; }
  const float* lse() const { return item.lse + unit.first_head(); }
  const GroupSolution& solution() const { return item.solution[unit.kv_head]; }
};

// Scratch of one worker for ReadRows.
struct ReadScratch {
  GrowBuffer<const uint8_t*> keys;  // of the rows read
  GrowBuffer<const uint8_t*> values;
  GrowBuffer<float> chances;     // pi
  GrowBuffer<uint8_t> gathered;  // keys one after the other
  GrowBuffer<float> weights;     // three times [chunk][row][pitch]: w, t w, t w^2
  GrowBuffer<float> norms;
};

void WeighGroup(const GroupUnit& group);
void FindMass(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head);
void CountSquares(const GroupUnit& group);
void SolveGroup(const PlannedItem& plan, const GroupItem& item, int kv_head);
// After a pilot: the threshold for the target, given |o|^2 and E |o^ - o|^2 of each head of the group as the pilot has
// them, or that the pilot's answer will do.
struct PilotHead {
  double norm;
  double squared_error;
};
void SolveTarget(const DecodeShape& shape, const PlannedItem& plan, const GroupItem& item, int kv_head,
                 const PilotHead* heads);
void Include(const GroupUnit& group);
void ReadRows(const GroupUnit& group, ReadScratch& scratch);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_GROUP_DRAW_H_
