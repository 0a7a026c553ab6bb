// An attend item's tensors, wherever their bytes lie.
#ifndef SANTA_SERVER_RPC_ITEM_TENSORS_H_
#define SANTA_SERVER_RPC_ITEM_TENSORS_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "proto/santa/attention/v1/attention.pb.h"

namespace santa {

// One of them, as it came.
struct TensorFields {
  static constexpr int kMostExtents = 8;

  bool present = false;  // in the item; the others are empty where it is not
  int dtype = 0;         // v1::DataType, or a number that is none
  int num_extents = 0;
  std::array<int64_t, kMostExtents> extents = {};  // the first ones
  std::string_view data;
};

struct ItemTensors {
  TensorFields q;
  TensorFields k;
  TensorFields v;
  bool q_in_place = false;  // q was left where it came in, and its sender may write it even now: not to be looked at
  bool mapped = false;      // the others, and q too unless it is in place, lie in memory that the device reads
};

inline TensorFields FieldsOf(bool present, const attention::v1::Tensor& tensor) {
  TensorFields fields = {
      .present = present, .dtype = tensor.dtype(), .num_extents = tensor.shape_size(), .data = tensor.data()};
  std::copy_n(tensor.shape().begin(), std::min(fields.num_extents, TensorFields::kMostExtents), fields.extents.begin());
  return fields;
}

// Those of the message itself.
inline ItemTensors TensorsOf(const attention::v1::AttendItem& item) {
  return {.q = FieldsOf(item.has_q(), item.q()),
          .k = FieldsOf(item.has_k(), item.k()),
          .v = FieldsOf(item.has_v(), item.v())};
}

}  // namespace santa

#endif  // SANTA_SERVER_RPC_ITEM_TENSORS_H_
