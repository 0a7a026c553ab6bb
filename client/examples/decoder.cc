#include "client/examples/decoder.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "client/examples/local_attention.h"

namespace santa {
namespace {

constexpr int64_t kChunk = 768;  // tokens that pass through the layers together: bounds the activations' memory

absl::Status CheckTokens(const LlamaConfig& config, std::span<const int32_t> tokens) {
  if (tokens.empty()) return absl::InvalidArgumentError("no tokens");
  for (const int32_t token : tokens) {
    if (token < 0 || token >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token ", token, "; allowed: [0, ", config.vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

// What n tokens need while they pass through the layers.
struct Activations {
  Activations(const LlamaConfig& c, int64_t n)
      : x(n * c.hidden_size), q(n * c.query_size()), k(n * c.kv_size()), v(n * c.kv_size()), o(n * c.query_size()) {}
  std::vector<float> x, q, k, v, o;
};

}  // namespace

absl::StatusOr<std::vector<float>> Prefill(const LlamaModel& model, std::span<const int32_t> tokens, KvHistory& history,
                                           int64_t want_logits) {
  const LlamaConfig& c = model.config();
  const auto total = static_cast<int64_t>(tokens.size());
  if (absl::Status status = CheckTokens(c, tokens); !status.ok()) return status;
  if (want_logits < 0 || want_logits > total) {
    return absl::InvalidArgumentError(absl::StrCat("want_logits is ", want_logits, "; allowed: [0, ", total, "]"));
  }
  const int64_t first = history.length(0);
  std::vector<float> logits(want_logits * c.vocab_size);
  for (int64_t begin = 0; begin < total; begin += kChunk) {
    const int64_t n = std::min(kChunk, total - begin);
    std::vector<int64_t> positions(n);
    std::iota(positions.begin(), positions.end(), first + begin);
    const RotaryAngles angles = model.Angles(positions);
    Activations a(c, n);
    model.Embed(tokens.subspan(begin, n), a.x.data());
    for (int32_t layer = 0; layer < c.num_layers; ++layer) {
      model.Project(layer, n, angles, a.x.data(), a.q.data(), a.k.data(), a.v.data());
      history.Append(layer, n, a.k.data(), a.v.data());
      AttendCausal(history, layer, positions[0], n, c.num_query_heads, a.q.data(), a.o.data(), model.pool());
      model.Finish(layer, n, a.o.data(), a.x.data());
    }
    const int64_t skip = std::max<int64_t>(0, total - want_logits - begin);  // of this chunk's tokens
    if (skip < n) {
      model.Logits(n - skip, a.x.data() + skip * c.hidden_size,
                   logits.data() + (begin + skip - (total - want_logits)) * c.vocab_size);
    }
  }
  return logits;
}

absl::StatusOr<std::vector<float>> DecodeStep(const LlamaModel& model, std::span<const DecodeToken> tokens,
                                              AttentionProvider& attention) {
  const LlamaConfig& c = model.config();
  const auto n = static_cast<int64_t>(tokens.size());
  std::vector<int32_t> ids;
  std::vector<int64_t> positions;
  for (const DecodeToken& token : tokens) {
    ids.push_back(token.token);
    positions.push_back(token.position);
  }
  if (absl::Status status = CheckTokens(c, ids); !status.ok()) return status;
  const RotaryAngles angles = model.Angles(positions);
  Activations a(c, n);
  std::vector<AttentionStep> steps;
  for (int64_t i = 0; i < n; ++i) {
    steps.push_back({.sequence = tokens[i].sequence,
                     .position = tokens[i].position,
                     .q = a.q.data() + i * c.query_size(),
                     .k = a.k.data() + i * c.kv_size(),
                     .v = a.v.data() + i * c.kv_size(),
                     .o = a.o.data() + i * c.query_size()});
  }
  model.Embed(ids, a.x.data());
  for (int32_t layer = 0; layer < c.num_layers; ++layer) {
    model.Project(layer, n, angles, a.x.data(), a.q.data(), a.k.data(), a.v.data());
    if (absl::Status status = attention.Attend(layer, steps); !status.ok()) return status;
    model.Finish(layer, n, a.o.data(), a.x.data());
  }
  std::vector<float> logits(n * c.vocab_size);
  model.Logits(n, a.x.data(), logits.data());
  return logits;
}

}  // namespace santa
