// The part of a Llama model that is not attention: embedding, projections with rotary positions, MLP, output head.
#ifndef SANTA_CLIENT_EXAMPLES_LLAMA_MODEL_H_
#define SANTA_CLIENT_EXAMPLES_LLAMA_MODEL_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/examples/llama_config.h"
#include "client/examples/thread_pool.h"

namespace santa {

// Rotary angles of n tokens: cosine and sine, [n][head_dim / 2].
struct RotaryAngles {
  std::vector<float> cosine;
  std::vector<float> sine;
};

// Weights in fp32 (widened from the file), arithmetic in fp32. A decoder layer is Project, attention, Finish; all
// tensors are row-major over n tokens, H and H_kv heads of head_dim. A token's results do not depend on the others.
// Not thread safe: calls share the pool, which must outlive the model.
class LlamaModel {
 public:
  // `folder` holds config.json and model.safetensors with Hugging Face's tensor names.
  static absl::StatusOr<LlamaModel> Load(const std::string& folder, ThreadPool* pool);

  const LlamaConfig& config() const { return config_; }
  ThreadPool& pool() const { return *pool_; }

  RotaryAngles Angles(std::span<const int64_t> positions) const;

  // x: [n][hidden]. Tokens are below vocab_size.
  void Embed(std::span<const int32_t> tokens, float* x) const;

  // q: [n][H][D], k and v: [n][H_kv][D], of x after the layer's first norm; q and k rotated.
  void Project(int32_t layer, int64_t n, const RotaryAngles& angles, const float* x, float* q, float* k,
               float* v) const;

  // Adds the projection of attention's output o, [n][H][D], and then the MLP to x.
  void Finish(int32_t layer, int64_t n, const float* o, float* x) const;

  // logits: [n][vocab].
  void Logits(int64_t n, const float* x, float* logits) const;

 private:
  // A linear layer's weight, transposed to [in][out] so that x w is a plain matrix product.
  struct Linear {
    int64_t in = 0;
    int64_t out = 0;
    std::vector<float> weight;
  };
  struct Layer {
    std::vector<float> attention_norm, mlp_norm;
    Linear q, k, v, o, gate, up, down;
  };
  class Loader;

  LlamaModel(const LlamaConfig& config, ThreadPool* pool) : config_(config), pool_(pool) {}
  void Apply(const Linear& linear, int64_t n, const float* x, float* y) const;  // y = x w
  std::vector<float> Norm(const std::vector<float>& weight, int64_t n, const float* x) const;
  void Rotate(int64_t n, int32_t heads, const RotaryAngles& angles, float* x) const;

  LlamaConfig config_;
  ThreadPool* pool_;
  std::vector<float> embedding_;  // [vocab][hidden]
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  Linear head_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_LLAMA_MODEL_H_
