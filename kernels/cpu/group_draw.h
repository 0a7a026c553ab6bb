// COORDINATED and SKETCHED: one draw of rows for all query heads of a key/value head (kernels/sampling/inclusion.h).
//
//     WeighGroup | FindMass | CountSquares | SolveGroup | Include | ReadRows
//
// and with a target error (kernels/sampling/target_error.h), of which that was the pilot,
//
//     SolveTarget | Include | ReadRows
//
// FindMass and SolveGroup are for a key/value head, the others for a unit; each step needs the one before to have
// finished for every unit of the item. ReadRows is in group_rows.h, what merges its sums in group_merge.h. Scores are
// kept in full, as weights against the largest score of their block: codes, which the definition counts in, would save
// memory that a CPU has.
//
// With a value sketch (kernels/sampling/sketch.h) WeighGroup also sums up what the sketches say, and ReadRows the rows'
// differences from it. A head whose sketch is no help (sampling::kLeastCorrectedMass) is found after that; its group
// reads its rows once more, and the head does without.
#ifndef SANTA_KERNELS_CPU_GROUP_DRAW_H_
#define SANTA_KERNELS_CPU_GROUP_DRAW_H_

#include <algorithm>
#include <cstdint>
#include <span>

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
  bool reads_again = false;  // a head has been found to do without its value sketch
};

// What a unit's rows leave for the standard error (kernels/sampling/standard_error.h), in the units of its partial. Of
// rows of t = 1 - pi > 0, in order: b is what a row adds to the mass, its weight / pi, less the sketch's where values
// are sketched; a what it adds to the sum, b v without. Numbers: t, tau; then for each head of the group tau |step of
// a|^2 and tau (step of b)^2. Vectors, of SKETCHED: for each head the packed sum of tau (step of b) (step of a).
struct GroupErrors {
  float* numbers = nullptr;
  float* vectors = nullptr;

  static int64_t NumbersSize(const DecodeShape& shape) { return 2 + 2 * int64_t{shape.group}; }
  static int64_t VectorsSize(const DecodeShape& shape) { return int64_t{shape.group} * shape.padded_dim; }
};

// Arrays of one item that its units share.
struct GroupItem {
  float* lse;                     // [H], natural, of all visible tokens as they were scored
  GroupSolution* solution;        // [kv_head]
  uint32_t* histograms;           // [unit][kInclusionBins], of a run of units in its first one's place
  int64_t runs_per_head;          // a run is all of a head's units, or one
  float* spreads;                 // [unit][G][kInclusionBins], of a head's p^2; null without a target
  uint64_t* totals;               // [unit], the sum of its inclusions
  Partial first_partial;          // of unit (0, 0); the others follow
  GroupErrors first_errors = {};  // likewise; null where they are not asked for
  // Where values are sketched, else null: likewise, what the sketches say of all candidates; and whether a head goes by
  // that, [H].
  Partial first_sketch = {};
  bool* corrected = nullptr;

  bool corrects() const { return corrected != nullptr; }
  Partial partial(const DecodeShape& shape, int64_t unit) const { return first_partial.Next(shape, unit); }
  Partial sketch(const DecodeShape& shape, int64_t unit) const { return first_sketch.Next(shape, unit); }
  GroupErrors errors(const DecodeShape& shape, int64_t unit) const {
    if (first_errors.numbers == nullptr) return {};
    return {first_errors.numbers + unit * GroupErrors::NumbersSize(shape),
            first_errors.vectors + unit * GroupErrors::VectorsSize(shape)};
  }
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

  int64_t index() const { return unit.kv_head * unit.plan.num_splits + unit.split; }
  const float* lse() const { return item.lse + unit.first_head(); }
  const GroupSolution& solution() const { return item.solution[unit.kv_head]; }
  GroupErrors errors() const { return item.errors(unit.context.shape, index()); }
  Partial sketch() const { return item.sketch(unit.context.shape, index()); }

  // Of a block's rows those that take part in the draw.
  int Candidates(int64_t begin, int64_t end) const {
    return static_cast<int>(std::clamp<int64_t>(unit.plan.full - begin, 0, end - begin));
  }

  // The unit's blocks as (first token, one past the last, its number in the unit, arrays).
  template <typename Body>
  void ForEachBlock(Body body) const {
    BlockArrays arrays = first;
    int64_t number = 0;
    for (int64_t begin = unit.begin(); begin < unit.end(); arrays = arrays.Next(unit.context.shape), ++number) {
      const int64_t end = BlockEnd(begin, unit.end());
      body(begin, end, number, arrays);
      begin = end;
    }
  }

  // exp(a block's largest score - lse) of a chunk's heads; 0 for a head that is not a number.
  HeadVector FactorsOf(const HeadVector& max, int chunk) const;
};

// Neighbouring units of a key/value head, one or more.
using GroupRun = std::span<const GroupUnit>;

void WeighGroup(const GroupUnit& group);
void FindMass(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head);
void CountSquares(GroupRun groups);
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

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_GROUP_DRAW_H_
