#include "client/examples/llama_config.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/examples/simd.h"

namespace santa {
namespace {

using Json = nlohmann::json;

absl::Status ReadNumber(const Json& json, const char* field, double low, double high, auto& out) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_number()) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is missing or not a number"));
  }
  const double value = found->get<double>();
  if (!(value >= low && value <= high)) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; allowed: [", low, ", ", high, "]"));
  }
  out = static_cast<std::remove_reference_t<decltype(out)>>(value);
  return absl::OkStatus();
}

bool Present(const Json& json, const char* field) {
  const auto found = json.find(field);
  return found != json.end() && !found->is_null() && *found != false;
}

absl::StatusOr<LlamaConfig> Parse(const Json& json) {
  LlamaConfig c;
  for (const absl::Status& status : {
           ReadNumber(json, "vocab_size", 1, 1 << 20, c.vocab_size),
           ReadNumber(json, "hidden_size", 1, 1 << 16, c.hidden_size),
           ReadNumber(json, "intermediate_size", 1, 1 << 18, c.intermediate_size),
           ReadNumber(json, "num_hidden_layers", 1, 1024, c.num_layers),
           ReadNumber(json, "num_attention_heads", 1, 1024, c.num_query_heads),
           ReadNumber(json, "num_key_value_heads", 1, 1024, c.num_kv_heads),
           ReadNumber(json, "head_dim", 1, 256, c.head_dim),
           ReadNumber(json, "max_position_embeddings", 1, 1 << 30, c.max_positions),
           ReadNumber(json, "rope_theta", 1, 1e12, c.rope_theta),
           ReadNumber(json, "rms_norm_eps", 0, 1, c.rms_norm_eps),
       }) {
    if (!status.ok()) return status;
  }
  for (const int64_t size : {c.vocab_size, c.hidden_size, c.intermediate_size, static_cast<int64_t>(c.head_dim)}) {
    if (size % kSimdAlign != 0) {
      return absl::InvalidArgumentError(absl::StrCat("the size ", size, " is no multiple of ", kSimdAlign));
    }
  }
  if (c.num_query_heads % c.num_kv_heads != 0) {
    return absl::InvalidArgumentError("num_attention_heads is no multiple of num_key_value_heads");
  }
  for (const char* field : {"rope_scaling", "attention_bias", "mlp_bias", "tie_word_embeddings"}) {
    if (Present(json, field)) return absl::InvalidArgumentError(absl::StrCat(field, " is not supported"));
  }
  return c;
}

}  // namespace

absl::StatusOr<LlamaConfig> LlamaConfig::Load(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  const Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
  absl::StatusOr<LlamaConfig> config = Parse(json);
  if (!config.ok()) return absl::Status(config.status().code(), absl::StrCat(path, ": ", config.status().message()));
  return config;
}

}  // namespace santa
