#include "server/testing/steps.h"

#include <utility>

namespace santa {

KvLayout TestLayout(int32_t num_layers) {
  return {.num_layers = num_layers,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 8,
          .page_size = 4,
          .dtype = DType::kFloat32};
}

float TokenValue(int id, bool value, int32_t kv_head, int32_t d) {
  return static_cast<float>(id * 2 + (value ? 1 : 0)) + static_cast<float>(kv_head * 8 + d) / 16;
}

TestStep::TestStep(const KvLayout& layout, std::string tenant, int32_t layer) : layout_(layout) {
  step_.tenant = std::move(tenant);
  step_.layer = layer;
}

TestStep& TestStep::Append(const SequenceHandle& sequence, int64_t position, const std::vector<int>& ids) {
  StepItem item;
  item.sequence = sequence;
  AddTokens(position, ids, &tensors_.emplace_back(), &item);
  step_.items.push_back(item);
  return *this;
}

TestStep& TestStep::Attend(const SequenceHandle& sequence, int64_t position) {
  StepItem item;
  item.sequence = sequence;
  AddQuery(position, &tensors_.emplace_back(), &item);
  step_.items.push_back(item);
  return *this;
}

TestStep& TestStep::AppendAndAttend(const SequenceHandle& sequence, int64_t position, const std::vector<int>& ids) {
  StepItem item;
  item.sequence = sequence;
  Tensors& tensors = tensors_.emplace_back();
  AddTokens(position, ids, &tensors, &item);
  AddQuery(position + static_cast<int64_t>(ids.size()) - 1, &tensors, &item);
  step_.items.push_back(item);
  return *this;
}

void TestStep::AddTokens(int64_t position, const std::vector<int>& ids, Tensors* tensors, StepItem* item) const {
  for (const int id : ids) {
    for (int32_t head = 0; head < layout_.num_kv_heads; ++head) {
      for (int32_t d = 0; d < layout_.head_dim; ++d) {
        tensors->k.push_back(TokenValue(id, false, head, d));
        tensors->v.push_back(TokenValue(id, true, head, d));
      }
    }
  }
  item->tokens = {.position = position,
                  .count = static_cast<int64_t>(ids.size()),
                  .dtype = DType::kFloat32,
                  .k = tensors->k.data(),
                  .v = tensors->v.data()};
}

void TestStep::AddQuery(int64_t position, Tensors* tensors, StepItem* item) const {
  const size_t size = static_cast<size_t>(layout_.num_query_heads) * layout_.head_dim;
  tensors->q.assign(size, 1.0F);
  tensors->o.assign(size, -1.0F);
  tensors->lse.assign(layout_.num_query_heads, -1.0F);
  item->position = position;
  item->q = tensors->q.data();
  item->o = tensors->o.data();
  item->lse = tensors->lse.data();
}

std::vector<float> MeanOfTokens(const KvLayout& layout, const std::vector<int>& ids) {
  std::vector<float> mean;
  for (int32_t head = 0; head < layout.num_query_heads; ++head) {
    for (int32_t d = 0; d < layout.head_dim; ++d) {
      double sum = 0;
      for (const int id : ids) sum += TokenValue(id, true, head / layout.group_size(), d);
      mean.push_back(static_cast<float>(sum / static_cast<double>(ids.size())));
    }
  }
  return mean;
}

}  // namespace santa
