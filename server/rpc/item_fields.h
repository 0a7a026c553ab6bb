// An attend item's fields as they came, whoever has parsed them and wherever their bytes lie: nothing is checked yet.
#ifndef SANTA_SERVER_RPC_ITEM_FIELDS_H_
#define SANTA_SERVER_RPC_ITEM_FIELDS_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "proto/santa/attention/v1/attention.pb.h"
#include "server/kv/sequence_store.h"

namespace santa {

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

// As v1::AttentionOptions has them.
struct OptionFields {
  int method = 0;  // v1::Method, or a number that is none
  uint32_t sample_count = 0;
  uint64_t seed = 0;
  float scale = 0;
  uint32_t window = 0;
  float soft_cap = 0;
  std::span<const float> sink_logits;
  int budget_rounding = 0;  // v1::BudgetRounding, likewise
  bool want_statistics = false;
  float target_relative_error = 0;
  uint32_t score_draws = 0;
};

struct ItemFields {
  bool has_handle = false;
  SequenceHandle handle;
  int64_t position = 0;
  OptionFields options;
  ItemTensors tensors;
};

inline TensorFields FieldsOf(bool present, const attention::v1::Tensor& tensor) {
  TensorFields fields = {
      .present = present, .dtype = tensor.dtype(), .num_extents = tensor.shape_size(), .data = tensor.data()};
  std::copy_n(tensor.shape().begin(), std::min(fields.num_extents, TensorFields::kMostExtents), fields.extents.begin());
  return fields;
}

inline OptionFields FieldsOf(const attention::v1::AttentionOptions& options) {
  return {.method = options.method(),
          .sample_count = options.sample_count(),
          .seed = options.seed(),
          .scale = options.scale(),
          .window = options.window(),
          .soft_cap = options.soft_cap(),
          .sink_logits = {options.sink_logits().data(), static_cast<size_t>(options.sink_logits_size())},
          .budget_rounding = options.budget_rounding(),
          .want_statistics = options.want_statistics(),
          .target_relative_error = options.target_relative_error(),
          .score_draws = options.score_draws()};
}

// What they refer to is the message's.
inline ItemFields FieldsOf(const attention::v1::AttendItem& item) {
  return {.has_handle = item.has_handle(),
          .handle = {.id = item.handle().id(), .generation = item.handle().generation()},
          .position = item.position(),
          .options = FieldsOf(item.options()),
          .tensors = {.q = FieldsOf(item.has_q(), item.q()),
                      .k = FieldsOf(item.has_k(), item.k()),
                      .v = FieldsOf(item.has_v(), item.v())}};
}

}  // namespace santa

#endif  // SANTA_SERVER_RPC_ITEM_FIELDS_H_
