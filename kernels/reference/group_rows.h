// COORDINATED and SKETCHED over kernels/sampling, in plain loops: which rows a group reads, and with what weights.
#ifndef SANTA_KERNELS_REFERENCE_GROUP_ROWS_H_
#define SANTA_KERNELS_REFERENCE_GROUP_ROWS_H_

#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/sampling/uniform.h"

namespace santa::reference {

// The visible tokens of one key/value head, from position `first` on. Scores are natural.
struct GroupScores {
  int64_t first = 0;
  std::vector<std::vector<float>> exact;   // [G][visible]
  std::vector<std::vector<float>> scored;  // by what chooses: SKETCHED's candidates by their sketch, else exact
  std::vector<bool> candidate;             // [visible]: takes part in the draw; others are read for certain
};

// ln sum exp of natural scores; NaN if one is.
double LogSumExp(const std::vector<float>& scores);

// pi of every row in units of 2^-20; 2^20 for those that are no candidates.
std::vector<uint32_t> Inclusions(const GroupScores& scores, const AttentionOptions& options);

// Which rows are read.
std::vector<bool> RowsRead(const GroupScores& scores, const std::vector<uint32_t>& inclusions,
                           const sampling::RandomStream& stream);

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_GROUP_ROWS_H_
