// The methods that need every score before the first draw: scores, or masses, of all visible tokens are stored.
//
//     SANTA, STRATIFIED, SYSTEMATIC   StoreScores | WeighHeads | PlaceDraws | GatherDraws
//     S2ANTA_PROP                     StoreTiles  |              ShareBudgets | GatherDraws
//
// Each step needs the one before to have finished for every unit of the item.
#ifndef SANTA_KERNELS_CPU_STORED_SCORES_H_
#define SANTA_KERNELS_CPU_STORED_SCORES_H_

#include <cstdint>

#include "kernels/cpu/unit.h"

namespace santa::cpu {

// A tile of S2ANTA_PROP, for one query head.
struct TileRecord {
  uint64_t masses;  // sum of the rows' masses against the tile's own largest score
  float max;        // that score
  float sum;        // of exp(score - max)
  // Once draws are shared out: its own, and how many a mass of 1 has in the mean.
  uint32_t budget;
  double draws_per_mass;
};

// Arrays of one item that its units share.
struct StoredItem {
  TileRecord* tiles;      // S2ANTA_PROP: [query head][tile]
  uint64_t* draws;        // SANTA: [query head][S], ascending
  uint64_t* unit_masses;  // others: [kv_head][split][G], a unit's sum of masses, and then that of all units before it
  uint64_t* totals;       // others: [query head], the sum of all masses
  Partial first_partial;  // of unit (0, 0); the others follow
};

struct StoredUnit {
  const Unit& unit;
  const StoredItem& item;
  BlockArrays first;  // of the unit's first block

  uint64_t* masses() const {
    return item.unit_masses + (unit.kv_head * unit.plan.num_splits + unit.split) * unit.context.shape.group;
  }
  TileRecord* tiles(int head) const { return item.tiles + (unit.first_head() + head) * unit.plan.tiling.count; }
};

// Per group of units of one item; first[u]: unit u's first block.
void StoreScores(UnitGroup units, const BlockArrays* first);
void StoreTiles(UnitGroup units, const BlockArrays* first, const StoredItem& item);

// Per unit.
void WeighHeads(const StoredUnit& stored);
void GatherDraws(const StoredUnit& stored);

// Scratch of one worker for ShareBudgets.
struct BudgetScratch {
  GrowBuffer<uint64_t> masses;
  GrowBuffer<uint64_t> remainders;
  GrowBuffer<uint32_t> budgets;
};

// Per key/value head.
void PlaceDraws(const DecodeContext& context, const PlannedItem& plan, const StoredItem& item, int kv_head);
void ShareBudgets(const DecodeContext& context, const PlannedItem& plan, const StoredItem& item, int kv_head,
                  BudgetScratch& scratch);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_STORED_SCORES_H_
