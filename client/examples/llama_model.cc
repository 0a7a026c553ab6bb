#include "client/examples/llama_model.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/examples/simd.h"
#include "client/safetensors.h"

namespace santa {

// Takes tensors out of a safetensors file and remembers the first error.
class LlamaModel::Loader {
 public:
  explicit Loader(const Safetensors& file) : file_(file) {}

  std::vector<float> Take(const std::string& name, const std::vector<int64_t>& shape) {
    if (!status_.ok()) return {};
    const absl::StatusOr<TensorView> view = file_.Get(name);
    if (!view.ok()) {
      status_ = view.status();
      return {};
    }
    if (view->shape != shape) {
      status_ = absl::InvalidArgumentError(absl::StrCat(name, " has shape [", absl::StrJoin(view->shape, ", "),
                                                        "]; config.json asks for [", absl::StrJoin(shape, ", "), "]"));
      return {};
    }
    absl::StatusOr<std::vector<float>> values = ToFloats(*view);
    if (!values.ok()) {
      status_ = absl::Status(values.status().code(), absl::StrCat(name, ": ", values.status().message()));
      return {};
    }
    return *std::move(values);
  }

  Linear TakeLinear(const std::string& name, int64_t in, int64_t out) {
    const std::vector<float> rows = Take(name + ".weight", {out, in});
    if (!status_.ok()) return {};
    Linear linear = {in, out, std::vector<float>(rows.size())};
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) linear.weight[i * out + o] = rows[o * in + i];
    }
    return linear;
  }

  const absl::Status& status() const { return status_; }

 private:
  const Safetensors& file_;
  absl::Status status_;
};

absl::StatusOr<LlamaModel> LlamaModel::Load(const std::string& folder, ThreadPool* pool) {
  const absl::StatusOr<LlamaConfig> config = LlamaConfig::Load(folder + "/config.json");
  if (!config.ok()) return config.status();
  const absl::StatusOr<Safetensors> file = Safetensors::Open(folder + "/model.safetensors");
  if (!file.ok()) return file.status();

  const LlamaConfig& c = *config;
  LlamaModel model(c, pool);
  Loader loader(*file);
  model.embedding_ = loader.Take("model.embed_tokens.weight", {c.vocab_size, c.hidden_size});
  for (int32_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    Layer layer;
    layer.attention_norm = loader.Take(prefix + "input_layernorm.weight", {c.hidden_size});
    layer.q = loader.TakeLinear(prefix + "self_attn.q_proj", c.hidden_size, c.query_size());
    layer.k = loader.TakeLinear(prefix + "self_attn.k_proj", c.hidden_size, c.kv_size());
    layer.v = loader.TakeLinear(prefix + "self_attn.v_proj", c.hidden_size, c.kv_size());
    layer.o = loader.TakeLinear(prefix + "self_attn.o_proj", c.query_size(), c.hidden_size);
    layer.mlp_norm = loader.Take(prefix + "post_attention_layernorm.weight", {c.hidden_size});
    layer.gate = loader.TakeLinear(prefix + "mlp.gate_proj", c.hidden_size, c.intermediate_size);
    layer.up = loader.TakeLinear(prefix + "mlp.up_proj", c.hidden_size, c.intermediate_size);
    layer.down = loader.TakeLinear(prefix + "mlp.down_proj", c.intermediate_size, c.hidden_size);
    model.layers_.push_back(std::move(layer));
  }
  model.final_norm_ = loader.Take("model.norm.weight", {c.hidden_size});
  model.head_ = loader.TakeLinear("lm_head", c.hidden_size, c.vocab_size);
  if (!loader.status().ok()) return loader.status();
  return model;
}

RotaryAngles LlamaModel::Angles(std::span<const int64_t> positions) const {
  const int64_t half = config_.head_dim / 2;
  std::vector<float> frequency(half);
  for (int64_t i = 0; i < half; ++i) {
    frequency[i] = std::pow(config_.rope_theta, -static_cast<float>(2 * i) / static_cast<float>(config_.head_dim));
  }
  RotaryAngles angles;
  angles.cosine.reserve(positions.size() * half);
  angles.sine.reserve(positions.size() * half);
  for (const int64_t position : positions) {
    for (const float f : frequency) {
      const float angle = static_cast<float>(position) * f;
      angles.cosine.push_back(std::cos(angle));
      angles.sine.push_back(std::sin(angle));
    }
  }
  return angles;
}

void LlamaModel::Embed(std::span<const int32_t> tokens, float* x) const {
  for (const int32_t token : tokens) {
    x = std::copy_n(embedding_.data() + token * config_.hidden_size, config_.hidden_size, x);
  }
}

void LlamaModel::Project(int32_t layer, int64_t n, const RotaryAngles& angles, const float* x, float* q, float* k,
                         float* v) const {
  const Layer& l = layers_[layer];
  const std::vector<float> normed = Norm(l.attention_norm, n, x);
  Apply(l.q, n, normed.data(), q);
  Apply(l.k, n, normed.data(), k);
  Apply(l.v, n, normed.data(), v);
  Rotate(n, config_.num_query_heads, angles, q);
  Rotate(n, config_.num_kv_heads, angles, k);
}

void LlamaModel::Finish(int32_t layer, int64_t n, const float* o, float* x) const {
  const Layer& l = layers_[layer];
  const int64_t hidden = config_.hidden_size;
  std::vector<float> update(n * hidden);
  Apply(l.o, n, o, update.data());
  for (int64_t i = 0; i < n * hidden; ++i) x[i] += update[i];

  const std::vector<float> normed = Norm(l.mlp_norm, n, x);
  std::vector<float> gate(n * config_.intermediate_size), up(gate.size());
  Apply(l.gate, n, normed.data(), gate.data());
  Apply(l.up, n, normed.data(), up.data());
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];  // SwiGLU
  Apply(l.down, n, gate.data(), update.data());
  for (int64_t i = 0; i < n * hidden; ++i) x[i] += update[i];
}

void LlamaModel::Logits(int64_t n, const float* x, float* logits) const {
  Apply(head_, n, Norm(final_norm_, n, x).data(), logits);
}

void LlamaModel::Apply(const Linear& linear, int64_t n, const float* x, float* y) const {
  // Blocks of rows, and of columns when there are few rows: a block is worth a thread's while.
  constexpr int64_t kRows = 96;
  constexpr int64_t kLeastProducts = 1 << 20;
  const int64_t columns =
      n > kRows ? linear.out : std::max<int64_t>(128, kLeastProducts / (n * linear.in) / kSimdAlign * kSimdAlign);
  const int64_t row_blocks = (n + kRows - 1) / kRows;
  const int64_t column_blocks = (linear.out + columns - 1) / columns;
  std::fill_n(y, n * linear.out, 0.0f);
  pool_->ParallelFor(row_blocks * column_blocks, [&](int64_t block) {
    const int64_t row = block % row_blocks * kRows;
    const int64_t column = block / row_blocks * columns;
    MatMulAdd(std::min(kRows, n - row), std::min(columns, linear.out - column), linear.in, x + row * linear.in,
              linear.in, linear.weight.data() + column, linear.out, y + row * linear.out + column, linear.out);
  });
}

std::vector<float> LlamaModel::Norm(const std::vector<float>& weight, int64_t n, const float* x) const {
  const int64_t hidden = config_.hidden_size;
  std::vector<float> out(n * hidden);
  for (int64_t t = 0; t < n; ++t) {
    const float* row = x + t * hidden;
    double squares = 0;
    for (int64_t i = 0; i < hidden; ++i) squares += static_cast<double>(row[i]) * row[i];
    const float factor = static_cast<float>(1 / std::sqrt(squares / hidden + config_.rms_norm_eps));
    for (int64_t i = 0; i < hidden; ++i) out[t * hidden + i] = row[i] * factor * weight[i];
  }
  return out;
}

void LlamaModel::Rotate(int64_t n, int32_t heads, const RotaryAngles& angles, float* x) const {
  const int64_t half = config_.head_dim / 2;
  for (int64_t t = 0; t < n; ++t) {
    const float* cosine = angles.cosine.data() + t * half;
    const float* sine = angles.sine.data() + t * half;
    for (int32_t h = 0; h < heads; ++h, x += 2 * half) {
      for (int64_t i = 0; i < half; ++i) {
        const float low = x[i], high = x[i + half];
        x[i] = low * cosine[i] - high * sine[i];
        x[i + half] = high * cosine[i] + low * sine[i];
      }
    }
  }
}

}  // namespace santa
