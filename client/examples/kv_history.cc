#include "client/examples/kv_history.h"

namespace santa {
namespace {

float Round(float value, ElementType dtype) {
  if (dtype == ElementType::kBFloat16) return BFloat16ToFloat(FloatToBFloat16(value));
  if (dtype == ElementType::kFloat16) return Float16ToFloat(FloatToFloat16(value));
  return value;
}

}  // namespace

KvHistory::Block& KvHistory::WritableBlock(Layer& layer) {
  if (layer.length % kBlockTokens == 0) {
    layer.blocks.push_back(std::make_shared<Block>());
    layer.blocks.back()->data.resize(2 * kv_heads_ * head_block());
  } else if (layer.blocks.back().use_count() > 1) {  // a copy of this history has it too
    layer.blocks.back() = std::make_shared<Block>(*layer.blocks.back());
  }
  return *layer.blocks.back();
}

void KvHistory::Append(int32_t layer, int64_t n, const float* k, const float* v) {
  Layer& l = layers_[layer];
  for (int64_t t = 0; t < n; ++t, ++l.length) {
    float* data = WritableBlock(l).data.data();
    const int64_t slot = l.length % kBlockTokens;
    for (int32_t h = 0; h < kv_heads_; ++h, k += head_dim_, v += head_dim_) {
      float* keys = data + h * head_block() + slot;
      float* values = data + (kv_heads_ + h) * head_block() + slot * head_dim_;
      for (int32_t d = 0; d < head_dim_; ++d) {
        keys[d * kBlockTokens] = Round(k[d], dtype_);
        values[d] = Round(v[d], dtype_);
      }
    }
  }
}

void KvHistory::Read(int32_t layer, int64_t begin, int64_t end, float* k, float* v) const {
  for (int64_t t = begin; t < end; ++t) {
    const int64_t slot = t % kBlockTokens;
    for (int32_t h = 0; h < kv_heads_; ++h, k += head_dim_, v += head_dim_) {
      const float* keys = Keys(layer, h, t / kBlockTokens) + slot;
      const float* values = Values(layer, h, t / kBlockTokens) + slot * head_dim_;
      for (int32_t d = 0; d < head_dim_; ++d) {
        k[d] = keys[d * kBlockTokens];
        v[d] = values[d];
      }
    }
  }
}

}  // namespace santa
