#ifndef SANTA_CLIENT_EXAMPLES_LLAMA_CONFIG_H_
#define SANTA_CLIENT_EXAMPLES_LLAMA_CONFIG_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace santa {

// The shape of a Llama model, from the config.json that Hugging Face's LlamaForCausalLM has.
struct LlamaConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of the SwiGLU MLP
  int32_t num_layers = 0;
  int32_t num_query_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int64_t max_positions = 0;
  float rope_theta = 0;
  float rms_norm_eps = 0;

  int32_t group_size() const { return num_query_heads / num_kv_heads; }
  int64_t query_size() const { return static_cast<int64_t>(num_query_heads) * head_dim; }
  int64_t kv_size() const { return static_cast<int64_t>(num_kv_heads) * head_dim; }

  // NOT_FOUND: no such file. INVALID_ARGUMENT: not JSON, a field is missing or out of range, or it describes a model
  // that this example does not run (scaled RoPE, biases, tied embeddings, a size that is no multiple of 16).
  static absl::StatusOr<LlamaConfig> Load(const std::string& path);
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_LLAMA_CONFIG_H_
