// The bytes of an attend item's tensors, wherever they lie.
#ifndef SANTA_SERVER_RPC_ITEM_TENSORS_H_
#define SANTA_SERVER_RPC_ITEM_TENSORS_H_

#include <string_view>

#include "proto/santa/attention/v1/attention.pb.h"

namespace santa {

// Empty where the item has no such tensor, or no data in it.
struct ItemTensors {
  std::string_view q;
  std::string_view k;
  std::string_view v;
  bool q_in_place = false;  // q was left where it came in, and its sender may write it even now: not to be looked at
  bool mapped = false;      // the others, and q too unless it is in place, lie in memory that the device reads
};

// Those of the message itself.
inline ItemTensors TensorsOf(const attention::v1::AttendItem& item) {
  return {.q = item.q().data(), .k = item.k().data(), .v = item.v().data()};
}

}  // namespace santa

#endif  // SANTA_SERVER_RPC_ITEM_TENSORS_H_
