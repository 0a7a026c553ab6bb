// What the units of a key/value head that drew together (kernels/cpu/group_draw.h) come to.
#ifndef SANTA_KERNELS_CPU_GROUP_MERGE_H_
#define SANTA_KERNELS_CPU_GROUP_MERGE_H_

#include <vector>

#include "kernels/cpu/group_draw.h"

namespace santa::cpu {

// One head's answer; o is unit * the merged sums.
struct GroupAnswer {
  double lse = 0;
  double unit = 0;
  double norm = 0;           // |o|^2
  double squared_error = 0;  // of the standard error; NaN where it is not known
};

// Merges the partials of one head of the group, in the order of their splits, into merged, packed [padded_dim]. norm
// and squared_error only with `errors`. scratch: of one worker.
GroupAnswer MergeGroupHead(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head,
                           int in_group, bool errors, std::vector<float>& scratch, float* merged);

// With a value sketch, once rows are read: sets solution.reads_again if there is a head that goes by its sketch and
// should not.
void CheckSketches(const DecodeContext& context, const PlannedItem& plan, const GroupItem& item, int kv_head);

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_GROUP_MERGE_H_
