#include "client/bench/step_source.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "client/wire.h"

namespace santa::bench {

Tensor RandomTensor(const std::vector<int64_t>& shape, ElementType type, std::mt19937_64& random) {
  std::vector<float> values(std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()));
  std::normal_distribution<float> normal;
  for (float& value : values) value = normal(random);
  return FromFloats(values, shape, type);
}

StepSource::StepSource(const LoadOptions& options, const v1::KvLayout& layout,
                       std::span<const v1::SequenceHandle> sequences, uint64_t seed)
    : append_(options.append), positions_(options.layers, options.append ? options.tokens : options.tokens - 1) {
  std::mt19937_64 random(seed);
  const auto tensor = [&](int64_t heads) {
    return ToWire(RandomTensor({1, heads, layout.head_dim()}, options.dtype, random).view());
  };
  for (const v1::SequenceHandle& sequence : sequences) {
    v1::AttendItem& item = *template_.add_items();
    *item.mutable_handle() = sequence;
    *item.mutable_q() = tensor(layout.num_query_heads());
    if (append_) {
      *item.mutable_k() = tensor(layout.num_kv_heads());
      *item.mutable_v() = tensor(layout.num_kv_heads());
    }
    item.mutable_options()->set_method(options.method);
    item.mutable_options()->set_sample_count(options.sample_count());
  }
  template_.mutable_items(0)->mutable_options()->set_want_statistics(true);
}

LoadStep StepSource::Next() {
  LoadStep step = {.request = template_};
  uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    number = steps_++;
    step.layer = static_cast<uint32_t>(number % positions_.size());
    step.position = positions_[step.layer];
    if (append_) ++positions_[step.layer];
  }
  step.request.set_layer(step.layer);
  for (v1::AttendItem& item : *step.request.mutable_items()) {
    item.set_position(step.position);
    item.mutable_options()->set_seed(number);
  }
  return step;
}

void StepSource::Refused(uint32_t layer, int64_t position) {
  const std::lock_guard lock(mutex_);
  if (append_) positions_[layer] = std::min(positions_[layer], position);
}

}  // namespace santa::bench
