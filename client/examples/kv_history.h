#ifndef SANTA_CLIENT_EXAMPLES_KV_HISTORY_H_
#define SANTA_CLIENT_EXAMPLES_KV_HISTORY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "client/examples/llama_config.h"
#include "client/tensor.h"

namespace santa {

// Keys and values of one sequence, in the layout that local attention reads. Copies share full blocks, so that forking
// a long prompt is cheap. Not thread safe while it grows.
class KvHistory {
 public:
  static constexpr int64_t kBlockTokens = 128;

  // Values are rounded to `dtype` as they are stored, so that local attention sees the numbers that a server with this
  // storage type has. kFloat32, kBFloat16 or kFloat16.
  KvHistory(const LlamaConfig& config, ElementType dtype)
      : kv_heads_(config.num_kv_heads), head_dim_(config.head_dim), dtype_(dtype), layers_(config.num_layers) {}

  int32_t num_layers() const { return static_cast<int32_t>(layers_.size()); }
  int32_t num_kv_heads() const { return kv_heads_; }
  int32_t head_dim() const { return head_dim_; }
  ElementType dtype() const { return dtype_; }
  int64_t length(int32_t layer) const { return layers_[layer].length; }

  // k and v: [n][H_kv][D].
  void Append(int32_t layer, int64_t n, const float* k, const float* v);

  // The tokens [begin, end) as Append takes them.
  void Read(int32_t layer, int64_t begin, int64_t end, float* k, float* v) const;

  // Block i of a head: tokens [i * kBlockTokens, (i + 1) * kBlockTokens), zero beyond the length.
  // Keys are transposed, [D][kBlockTokens]; values are [kBlockTokens][D].
  const float* Keys(int32_t layer, int32_t head, int64_t i) const {
    return layers_[layer].blocks[i]->Keys(*this, head);
  }
  const float* Values(int32_t layer, int32_t head, int64_t i) const {
    return layers_[layer].blocks[i]->Values(*this, head);
  }

 private:
  struct Block {
    std::vector<float> data;  // [K|V][H_kv][head of a block]

    const float* Keys(const KvHistory& h, int32_t head) const { return data.data() + h.head_block() * head; }
    const float* Values(const KvHistory& h, int32_t head) const { return Keys(h, h.kv_heads_ + head); }
  };
  struct Layer {
    int64_t length = 0;
    std::vector<std::shared_ptr<Block>> blocks;
  };

  int64_t head_block() const { return kBlockTokens * head_dim_; }
  Block& WritableBlock(Layer& layer);

  int32_t kv_heads_;
  int32_t head_dim_;
  ElementType dtype_;
  std::vector<Layer> layers_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_KV_HISTORY_H_
