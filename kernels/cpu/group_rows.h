// Reading the rows that a group drew (kernels/cpu/group_draw.h): their exact scores, and what they add to each head.
#ifndef SANTA_KERNELS_CPU_GROUP_ROWS_H_
#define SANTA_KERNELS_CPU_GROUP_ROWS_H_

#include <cstdint>

#include "kernels/cpu/group_draw.h"
#include "kernels/cpu/grow_buffer.h"

namespace santa::cpu {

inline constexpr int kBatchRows = 16;  // rows that are scored, or added up, together: they stay in the L1 cache

// What brings a chunk's weights to the units of the partial.
struct WeightUnits {
  HeadVector exact = {{1, 1, 1, 1}};
  HeadVector sketched = {};  // 0 for a head that does without
};

// Scratch of one worker.
struct ReadScratch {
  // Of all rows read by a run of units.
  GrowBuffer<int32_t> rows;          // tokens, from a unit's first one on
  GrowBuffer<int32_t> first_rows;    // [unit]
  GrowBuffer<const uint8_t*> order;  // where they lie, as they are read
  // Of the rows read by a unit.
  GrowBuffer<const uint8_t*> codes;    // of the values; of SKETCHED with a value sketch, as the next two
  GrowBuffer<const uint16_t*> ranges;  // of the values' pages
  GrowBuffer<float> sketched_weights;  // [chunk][row][pitch]
  GrowBuffer<float> weights;           // [chunk][row][pitch]
  GrowBuffer<float> chances;           // pi
  GrowBuffer<float> sketched_values;   // packed, [row][padded_dim]
  GrowBuffer<float> differences;
  GrowBuffer<WeightUnits> units;  // [chunk]
  GrowBuffer<uint8_t> gathered;   // keys of a batch of rows, one after the other
  // Of rows left to chance.
  GrowBuffer<int32_t> chain;              // which of all
  GrowBuffer<float> taus;                 // of the step into each; 0 where there is none
  GrowBuffer<const uint8_t*> chain_rows;  // twice [row]: values, differences
  GrowBuffer<float> products;             // [kind][row]
  GrowBuffer<float> step_weights;         // twice [row][pitch], and kChunkHeads more
};

// Writes the units' partials (the maximum the largest score of a row read, or the sketch's if that is larger) and
// errors.
void ReadRows(GroupRun groups, ReadScratch& scratch);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_GROUP_ROWS_H_
