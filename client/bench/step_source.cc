#include "client/bench/step_source.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "client/wire.h"

namespace santa::bench {

Tensor RandomTensor(const std::vector<int64_t>& shape, ElementType type, std::mt19937_64& random, float means) {
  const int64_t row = std::accumulate(shape.begin() + 1, shape.end(), int64_t{1}, std::multiplies<>());
  std::vector<float> values(shape[0] * row);
  std::normal_distribution<float> normal;
  std::vector<float> around(row, 0.0f);
  if (means != 0) {
    for (float& mean : around) mean = means * normal(random);
  }
  for (size_t i = 0; i < values.size(); ++i) values[i] = around[i % row] + normal(random);
  return FromFloats(values, shape, type);
}

StepSource::StepSource(const LoadOptions& options, const v1::KvLayout& layout,
                       std::span<const v1::SequenceHandle> sequences, std::vector<int64_t> tokens, uint64_t seed)
    : append_(options.append), tokens_(std::move(tokens)), appended_(options.layers, 0) {
  std::mt19937_64 random(seed);
  const auto tensor = [&](int64_t heads) {
    return ToWire(RandomTensor({1, heads, layout.head_dim()}, options.dtype, random).view());
  };
  for (size_t i = 0; i < sequences.size(); ++i) {
    v1::AttendItem& item = *template_.add_items();
    *item.mutable_handle() = sequences[i];
    *item.mutable_q() = tensor(layout.num_query_heads());
    if (append_) {
      *item.mutable_k() = tensor(layout.num_kv_heads());
      *item.mutable_v() = tensor(layout.num_kv_heads());
    }
    item.mutable_options()->set_method(options.method);
    item.mutable_options()->set_sample_count(options.SampleCountOf(tokens_[i]));
    item.mutable_options()->set_score_draws(static_cast<uint32_t>(options.score_draws));
  }
  template_.mutable_items(0)->mutable_options()->set_want_statistics(true);
  form_ = template_;
  for (v1::AttendItem& item : *form_.mutable_items()) {
    item.mutable_q()->clear_data();
    if (!append_) continue;
    item.mutable_k()->clear_data();
    item.mutable_v()->clear_data();
  }
}

LoadStep StepSource::Next() { return Next(template_); }

LoadStep StepSource::NextForm() { return Next(form_); }

void StepSource::Write(std::span<const TensorRooms> rooms) const {
  const auto write = [](const v1::Tensor& tensor, std::span<char> room) {
    std::copy_n(tensor.data().data(), std::min(tensor.data().size(), room.size()), room.data());
  };
  for (int i = 0; i < template_.items_size(); ++i) {
    write(template_.items(i).q(), rooms[i].q);
    write(template_.items(i).k(), rooms[i].k);
    write(template_.items(i).v(), rooms[i].v);
  }
}

LoadStep StepSource::Next(const v1::AttendRequest& request) {
  LoadStep step = {.request = request};
  uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    number = steps_++;
    step.layer = static_cast<uint32_t>(number % appended_.size());
    step.appended = appended_[step.layer];
    if (append_) ++appended_[step.layer];
  }
  step.request.set_layer(step.layer);
  for (int i = 0; i < step.request.items_size(); ++i) {
    v1::AttendItem& item = *step.request.mutable_items(i);
    item.set_position(tokens_[i] + step.appended - (append_ ? 0 : 1));
    item.mutable_options()->set_seed(number);
  }
  return step;
}

void StepSource::Refused(uint32_t layer, int64_t appended) {
  const std::lock_guard lock(mutex_);
  appended_[layer] = std::min(appended_[layer], appended);
}

}  // namespace santa::bench
