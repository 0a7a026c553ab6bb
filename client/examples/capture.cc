// Writes what a decode step of the model attends with, for kernel_bench --input: queries, keys and values of chosen
// layers and key/value heads at the end of a held-out passage, as bf16.
#include <cstdint>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/examples/decoder.h"
#include "client/examples/local_attention.h"
#include "client/examples/run_setup.h"
#include "client/safetensors.h"
#include "client/tensor.h"

ABSL_DECLARE_FLAG(std::string, model);  // of run_setup.h

ABSL_FLAG(int64_t, context, 32768, "Tokens (bytes of text) in the cache, the query's own among them.");
ABSL_FLAG(std::string, passage, "python_argparse", "The held-out passage: the name of a text in --heldout.");
ABSL_FLAG(int32_t, pass_keys, 8, "Pass keys hidden in the passage.");
ABSL_FLAG(std::vector<std::string>, layers, (std::vector<std::string>{"2"}), "Layers, separated by commas.");
ABSL_FLAG(std::vector<std::string>, kv_heads, (std::vector<std::string>{"0"}),
          "Key/value heads of each of those layers, separated by commas.");
ABSL_FLAG(std::string, out, "model_qkv.safetensors", "The file to write.");

namespace santa {
namespace {

// Local attention that keeps what its last step came with.
class Recorder : public AttentionProvider {
 public:
  struct Rows {
    std::vector<float> q, k, v;
  };

  Recorder(const LlamaConfig& config, ThreadPool* pool)
      : query_size_(config.query_size()),
        kv_size_(config.kv_size()),
        rows_(config.num_layers),
        local_(config.num_query_heads, pool) {}

  int64_t Add(KvHistory history) { return local_.Add(std::move(history)); }
  const Rows& rows(int32_t layer) const { return rows_[layer]; }

  absl::StatusOr<int64_t> Fork(int64_t parent, uint64_t sampling_key) override {
    return local_.Fork(parent, sampling_key);
  }
  absl::Status Release(int64_t sequence) override { return local_.Release(sequence); }
  absl::Status Attend(int32_t layer, std::span<const AttentionStep> steps) override {
    const AttentionStep& step = steps.front();
    rows_[layer] = {{step.q, step.q + query_size_}, {step.k, step.k + kv_size_}, {step.v, step.v + kv_size_}};
    return local_.Attend(layer, steps);
  }

 private:
  int64_t query_size_;
  int64_t kv_size_;
  std::vector<Rows> rows_;  // [layer]
  LocalAttention local_;
};

absl::StatusOr<std::vector<int32_t>> ParseIndices(const std::string& flag, const std::vector<std::string>& texts,
                                                  int32_t count) {
  std::vector<int32_t> indices;
  for (const std::string& text : texts) {
    int32_t index = 0;
    if (!absl::SimpleAtoi(text, &index) || index < 0 || index >= count) {
      return absl::InvalidArgumentError(absl::StrCat("--", flag, " has ", text, "; allowed: [0, ", count, ")"));
    }
    indices.push_back(index);
  }
  if (indices.empty()) return absl::InvalidArgumentError(absl::StrCat("--", flag, " is empty"));
  return indices;
}

absl::Status Run() {
  ThreadPool pool;
  const auto model = LlamaModel::Load(FindFile(absl::GetFlag(FLAGS_model)), &pool);
  if (!model.ok()) return model.status();
  const LlamaConfig& c = model->config();
  const auto layers = ParseIndices("layers", absl::GetFlag(FLAGS_layers), c.num_layers);
  if (!layers.ok()) return layers.status();
  const auto kv_heads = ParseIndices("kv_heads", absl::GetFlag(FLAGS_kv_heads), c.num_kv_heads);
  if (!kv_heads.ok()) return kv_heads.status();
  const int64_t context = absl::GetFlag(FLAGS_context);
  const auto passages =
      LoadPassages({absl::GetFlag(FLAGS_passage)},
                   {.context = context + 1, .continuation = 2, .num_keys = absl::GetFlag(FLAGS_pass_keys)});
  if (!passages.ok()) return passages.status();
  const std::string text = passages->front().prompt + passages->front().continuation;

  // All but the last token at once, and the last as a decode step.
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < context; ++i) tokens.push_back(static_cast<uint8_t>(text[i]));
  KvHistory history(c, ElementType::kBFloat16);
  const std::span<const int32_t> all(tokens);
  if (const auto logits = Prefill(*model, all.first(context - 1), history, 0); !logits.ok()) return logits.status();
  Recorder recorder(c, &pool);
  const int64_t sequence = recorder.Add(history);
  const std::vector<DecodeToken> last = {{.sequence = sequence, .position = context - 1, .token = tokens.back()}};
  if (const auto logits = DecodeStep(*model, last, recorder); !logits.ok()) return logits.status();

  const int64_t dim = c.head_dim;
  const int64_t group = c.num_query_heads / c.num_kv_heads;
  std::vector<float> q, k, v;
  for (const int32_t layer : *layers) {
    std::vector<float> keys(context * c.kv_size()), values(keys.size());
    const Recorder::Rows& step = recorder.rows(layer);
    history.Append(layer, 1, step.k.data(), step.v.data());
    history.Read(layer, 0, context, keys.data(), values.data());
    for (const int32_t head : *kv_heads) {
      const auto first = step.q.begin() + head * group * dim;
      q.insert(q.end(), first, first + group * dim);
      for (int64_t token = 0; token < context; ++token) {
        const int64_t row = (token * c.num_kv_heads + head) * dim;
        k.insert(k.end(), keys.begin() + row, keys.begin() + row + dim);
        v.insert(v.end(), values.begin() + row, values.begin() + row + dim);
      }
    }
  }
  const auto heads = static_cast<int64_t>(layers->size() * kv_heads->size());
  const Tensor q_tensor = FromFloats(q, {heads, group, dim}, ElementType::kBFloat16);
  const Tensor k_tensor = FromFloats(k, {heads, context, dim}, ElementType::kBFloat16);
  const Tensor v_tensor = FromFloats(v, {heads, context, dim}, ElementType::kBFloat16);
  return WriteSafetensors(absl::GetFlag(FLAGS_out),
                          {{"q", q_tensor.view()}, {"k", k_tensor.view()}, {"v", v_tensor.view()}},
                          {{"passage", absl::GetFlag(FLAGS_passage)}});
}

}  // namespace
}  // namespace santa

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Writes queries, keys and values of the model, for kernel_bench --input.");
  absl::ParseCommandLine(argc, argv);
  if (const absl::Status status = santa::Run(); !status.ok()) {
    std::cerr << "capture: " << status << "\n";
    return 1;
  }
  return 0;
}
